"""Whatever was believed of costs and drafts, for however long: what is true is found out again."""

import random
import threading
from functools import cache

import pytest
import torch

from swift_sd.adapting.governor import Governed, Governor, supposed
from swift_sd.adapting.ledger import TRUST, Ledger, Purse
from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.decoding.trace import Step
from swift_sd.drafting.calibration import FADE, Calibration, Calibrations
from swift_sd.drafting.curve import CONTRADICTED, FRESH, LIFETIME, Curve
from swift_sd.drafting.growth import CostGrowth
from swift_sd.drafting.pace import Pace, Prior

ANSWER = 96  # tokens
CONFIDENCE = 0.85  # of every draft token, and its chance


class Machine:
    """Seconds of forwards by their rows; a busy one may take other multiples of a plain step."""

    def __init__(self, plain=1.0, row=0.05, draft=0.3):
        self.plain, self.row, self.draft = plain, row, draft

    def verify(self, rows):
        return self.plain * (1 + self.row * (rows - 1))


QUIET = Machine()
BUSY = Machine(plain=2.0, row=1.0, draft=4.0)  # 8 rows cost eight plain steps


def prior_of(machine, plain=None):
    """What is measured beforehand on a machine; of a plain step perhaps something else."""
    verify = {rows: machine.verify(rows) for rows in (1, 2, 4, 8)}
    return Prior(verify | ({1: plain} if plain else {}), {1: machine.draft, 4: 1.2 * machine.draft})


class OwnDraft:
    """Drafts as long as the growth says, and is right as often as it is confident."""

    name = "own"

    def __init__(self, growth, machine, chance, draw):
        self.growth, self.machine, self.chance, self.draw = growth, machine, chance, draw
        self.drafted = 0

    def propose(self, state, budget, *, is_trial=False):
        self.drafted = 1
        while self.drafted < budget and self.growth.goes_on(
            [CONFIDENCE] * self.drafted, ["own"] * self.drafted, is_trial=is_trial
        ):
            self.drafted += 1
        chain = DraftTree(
            [1] * self.drafted,
            [*range(-1, self.drafted - 1)],
            [CONFIDENCE] * self.drafted,
            ["own"] * self.drafted,
        )
        return self.growth.pruned(chain, is_trial=is_trial)

    def learn(self, tree, path, step, logits):
        forwards = [(1, self.machine().draft)] * self.drafted
        self.growth.learn(tree, path, step, forwards)


class Decoder:
    """The real governor, growth and pace, on a machine whose seconds are known."""

    def __init__(self, prior=None, machine=QUIET, chance=CONFIDENCE, seed=0):
        self.machine, self.chance, self.draw = machine, chance, random.Random(seed)
        self.pace, purse = Pace(torch.device("cpu"), prior), Purse()
        self.calibrations = Calibrations()
        growth = CostGrowth(self.calibrations, self.pace, is_tree=False)
        self.own = OwnDraft(growth, lambda: self.machine, chance, self.draw)
        ledger = Ledger(self.pace, purse, TRUST)
        one = Governed(
            self.own,
            ledger,
            lambda state, budget: supposed(self.pace),
            foresees=False,
            forget=self.calibrations["own"].forget,
        )
        self.governor = Governor([one], self.pace, purse, clock=lambda: 0.0)

    def speed(self, tokens):
        """Of so many tokens, as a multiple of plain decoding's."""
        made = seconds = 0.0
        while made < tokens:
            tree = self.governor.propose(None, 25)
            drafted = self.own.drafted if self.governor.name != "none" else 0
            right = 0
            while right < len(tree) and self.draw.random() < self.chance:
                right += 1
            verify = self.machine.verify(1 + len(tree))
            step = Step(
                (*(1,) * right, 2),
                "own" if len(tree) else None,
                verified=len(tree),
                draft=drafted * self.machine.draft,
                verify=verify,
            )
            self.governor.learn(tree, range(right + 1), step, None)
            made += right + 1
            seconds += step.seconds
        return made * self.machine.plain / seconds


@cache
def settled():
    """The speed of objects that were made on a quiet machine and have decoded for long."""
    speeds = []
    for seed in range(3):
        decoder = Decoder(prior_of(QUIET), seed=seed)
        decoder.speed(5 * ANSWER)
        speeds.append(decoder.speed(20 * ANSWER))
    return sum(speeds) / len(speeds)


PRIORS = {
    "everything slow alike": prior_of(Machine(plain=8.0, row=0.05, draft=2.4)),
    "rows and drafts dear, plain steps too": prior_of(BUSY),
    "rows and drafts dear, plain steps true": prior_of(BUSY, plain=1.0),
    "eight and six plain steps": Prior({1: 1.0, 2: 8.0, 4: 8.0, 8: 8.0}, {1: 6.0, 4: 6.0}),
    "only rows": Prior({1: 1.0, 2: 8.0, 4: 8.0, 8: 8.0}, {1: 0.3}),
    "only drafts": Prior({1: 1.0, 2: 1.1, 8: 1.4}, {1: 6.0}),
    "plain steps of a busy machine": prior_of(QUIET, plain=9.0),
    "nothing": None,
}


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("seed", range(3))
def test_after_three_answers_a_wrong_prior_has_lost_its_power(prior, seed):
    decoder = Decoder(PRIORS[prior], seed=seed)
    decoder.speed(3 * ANSWER)
    assert decoder.speed(6 * ANSWER) > 0.85 * settled() > 1.3


@pytest.mark.parametrize("busy", [4, 40])
def test_a_load_that_comes_and_goes_leaves_nothing_behind(busy):
    decoders = [Decoder(prior_of(QUIET), seed=seed) for seed in range(6)]
    for decoder in decoders:
        decoder.speed(5 * ANSWER)
    for _ in range(2):
        under_load, soon, later = [], [], []
        for decoder in decoders:
            decoder.machine = BUSY
            under_load.append(decoder.speed(busy * ANSWER))
            decoder.machine = QUIET
            decoder.speed(3 * ANSWER)
            soon.append(decoder.speed(6 * ANSWER))
            later.append(decoder.speed(6 * ANSWER))
        assert min(under_load) > 0.9  # the first rounds drafted as before
        assert sum(soon) / len(soon) > 0.85 * settled()  # one may have had bad luck
        assert min(later) > 0.85 * settled()


@pytest.mark.parametrize("row", [0.05, 1.0])
@pytest.mark.parametrize("chance", [0.0, 0.3])
def test_what_is_tried_again_in_vain_costs_less_than_a_hundredth(row, chance):
    """On text that no draft foresees, and where several rows cost as much as several steps."""
    machine = Machine(row=row, draft=0.9)
    decoder = Decoder(prior_of(machine), machine, chance=chance)
    decoder.speed(5 * ANSWER)
    assert decoder.speed(60 * ANSWER) > 0.99


def test_drafts_that_were_wrong_for_long_are_used_as_soon_as_they_are_right():
    decoder = Decoder(prior_of(QUIET), chance=0.0)
    decoder.speed(30 * ANSWER)
    decoder.chance = CONFIDENCE
    decoder.speed(5 * ANSWER)
    assert decoder.speed(6 * ANSWER) > 0.85 * settled()


def test_a_drafter_with_nothing_to_propose_does_not_take_the_trials_of_another():
    decoder = Decoder(PRIORS["eight and six plain steps"])
    silent = Governed(
        Silent(),
        Ledger(decoder.pace, Purse(), TRUST),
        lambda state, budget: 0.0,
        foresees=True,
        has_draft=lambda: False,
    )
    governor = decoder.governor
    both = [silent, *governor._all]
    decoder.governor = Governor(both, decoder.pace, governor._purse, clock=lambda: 0.0)
    decoder.speed(3 * ANSWER)
    assert decoder.speed(6 * ANSWER) > 0.85 * settled()
    assert silent.drafter.asked == 0


class Silent:
    """Foresees nothing, ever."""

    name, asked = "silent", 0

    def propose(self, state, budget, *, is_trial=False):
        self.asked += 1
        return DraftTree()

    def learn(self, tree, path, step, logits):
        pass


def test_what_promised_nothing_says_nothing_of_a_drafter():
    pace = Pace(torch.device("cpu"), prior_of(QUIET))
    ledger = Ledger(pace, Purse(), TRUST)
    for _ in range(30_000):
        ledger.record(Step((1,), verified=1, verify=1.05), 0.0)
    assert ledger.expected(1.2) == 1.2


def test_a_machine_that_stood_still_for_hours_is_no_reason_to_give_up():
    decoder = Decoder(prior_of(QUIET), chance=0.0)
    decoder.speed(2 * ANSWER)
    purse = decoder.governor._purse
    ledger = decoder.governor._all[0].ledger
    ledger.record(Step((1,), verified=1, draft=1e6, verify=1.05), 1.3)
    purse.ask(1e6)
    decoder.chance = CONFIDENCE
    decoder.speed(100 * ANSWER)
    assert decoder.speed(6 * ANSWER) > 0.85 * settled()


def test_responses_on_several_threads_may_measure_while_beliefs_expire():
    pace, wrong = Pace(torch.device("cpu"), prior_of(BUSY)), []

    def respond(seed):
        draw = random.Random(seed)
        try:
            for _ in range(1500):
                pace.elapse()
                pace.saw_round(Step((1,), verified=draw.randrange(40), verify=draw.random()))
                pace.saw_draft(draw.randrange(1, 9), draw.random())
                pace.verify(draw.randrange(1, 40))
                pace.rounds += draw.randrange(60)
        except Exception as error:  # on a thread it would be lost
            wrong.append(error)

    threads = [threading.Thread(target=respond, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_one_busy_measurement_of_some_rows_is_not_for_ever():
    pace = Pace(torch.device("cpu"), prior_of(QUIET))
    for _ in range(9):
        pace.saw_round(Step((1,), verified=7, verify=8.0))
    assert pace.verify(8) > 4
    for _ in range(2 * LIFETIME):
        pace.elapse()
        pace.saw_round(Step((1,), verified=3, verify=QUIET.verify(4)))
    assert pace.verify(8) < 2


def test_a_prior_counts_by_its_ratio_to_a_plain_step():
    pace = Pace(torch.device("cpu"), Prior({1: 2.0, 8: 3.0}, {1: 1.0}))
    for _ in range(9):
        pace.saw_round(Step((1,), verify=1.5))
    assert pace.verify(1) == pytest.approx(1.5)
    assert pace.verify(8) == pytest.approx(1.5 * 1.5)
    assert pace.draft(1) == pytest.approx(0.75)


def test_a_prior_that_plain_steps_contradict_is_dropped_as_a_whole():
    pace = Pace(torch.device("cpu"), Prior({1: 9.0, 8: 60.0}, {1: 9.0}))
    pace.saw_round(Step((1,), verify=1.0))
    assert pace.verify(1) == 1.0
    assert pace.verify(8) < 2
    assert pace.draft(1) is None


def test_a_prior_that_a_draft_contradicts_is_dropped_as_a_whole():
    pace = Pace(torch.device("cpu"), Prior({1: 1.0, 8: 8.0}, {1: 6.0, 4: 7.0}))
    pace.saw_draft(1, 0.3)
    assert (pace.draft(1), pace.verify(8) < 2) == (0.3, True)
    assert pace.draft(4) < 1


def test_what_was_measured_long_ago_counts_as_one_measurement():
    curve = Curve(1, 33)
    for _ in range(20):
        curve.saw(4, 1.0, now=0)
    for _ in range(3):
        curve.saw(4, 1.2, now=FRESH + 1)
    assert curve.at(4) == 1.2


def test_what_is_contradicted_takes_with_it_what_is_as_old():
    curve = Curve(1, 33, keep=(1,))
    for rows, seconds in ((1, 1.0), (4, 4.0), (8, 8.0)):
        curve.saw(rows, seconds, now=0)
    curve.saw(2, 1.5, now=300)
    assert curve.saw(4, 1.6, now=301)
    assert (curve.at(1), curve.at(2), curve.at(4)) == (1.0, 1.5, 1.6)
    assert curve.at(8) < 3


def test_what_is_slower_than_believed_contradicts_nothing():
    curve = Curve(1, 33, {4: 1.1, 8: 1.2})
    assert not curve.saw(4, 3.0)
    assert curve.at(8) is not None
    assert not curve.saw(8, 1.2 / CONTRADICTED)


def test_a_dear_number_of_rows_is_tried_again_more_seldom():
    curve = Curve(1, 33, keep=(1,))
    for rows, seconds in ((1, 1.0), (2, 1.1), (8, 9.0)):
        curve.saw(rows, seconds, now=0)
    curve.expire(LIFETIME + 1)
    assert curve.at(2) != 1.1 or not curve.knows(2)
    assert curve.at(8) == 9.0
    curve.expire(2 * LIFETIME)
    assert curve.at(8) < 2


def test_a_bin_that_nothing_is_offered_from_any_more_forgets():
    calibration = Calibration()
    for _ in range(200):
        calibration.tell(0.05, False)
    assert calibration.chance(0.05) < 0.002
    for _ in range(12 * FADE):
        calibration.tell(0.9, True)
    assert calibration.chance(0.05) > 0.04
