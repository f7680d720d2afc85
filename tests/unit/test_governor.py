"""Whoever is fastest drafts, plain decoding included, and finding out costs little."""

import itertools
import math
import random

import pytest
import torch

from swift_sd.adapting import governor
from swift_sd.adapting.governor import AT_ONCE, PLAIN_EVERY, WARM, Governed, Governor, supposed
from swift_sd.adapting.ledger import ASKING, CREDIT, FORESIGHT, SHARE, TRUST, Ledger, Purse
from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.decoding.trace import Step
from swift_sd.drafting.curve import FRESH
from swift_sd.drafting.pace import Pace, Prior

COSTS = Prior({1: 1.0, 2: 1.1, 9: 1.8}, {1: 0.3})


class Simulated:
    """A drafter of whose rounds it is known what comes of them.

    Args:
        round_of: from the place in the stream and how many rounds it had to tokens and plain steps.
        promise: from the place to the speed it promises; None for what costs let suppose.
    """

    def __init__(self, name, round_of, promise=None):
        self.name, self.round_of, self.promise = name, round_of, promise
        self.rounds = 0

    def propose(self, state, budget, *, is_trial=False):
        self.rounds += 1
        return DraftTree.chain([1])

    def learn(self, tree, path, step, logits):
        pass


class Stream:
    """Decodes with simulated time; a plain step takes a second of a machine at its usual speed.

    Noise is in what is measured only, so that it neither helps nor hurts by itself.
    """

    def __init__(
        self, *drafters, noise=0.0, seed=0, prior=COSTS, speed=lambda tokens: 1.0, clock=None
    ):
        self.pace, self.purse = Pace(torch.device("cpu"), prior), Purse()
        self.drafters, self.speed = drafters, speed
        governed = [self.governed(one) for one in drafters]
        # Asking takes no time unless a test says so.
        self.governor = Governor(governed, self.pace, self.purse, clock or (lambda: 0.0))
        self.noise, self.draw = noise, random.Random(seed)
        self.tokens = self.seconds = self.plain_seconds = 0.0
        self.who = []

    def governed(self, one):
        ledger = Ledger(self.pace, self.purse, TRUST if one.promise is None else FORESIGHT)
        if one.promise is None:
            return Governed(one, ledger, lambda state, budget: supposed(self.pace), False)
        return Governed(one, ledger, lambda state, budget: one.promise(self.tokens), True)

    def run(self, tokens):
        until = self.tokens + tokens
        while self.tokens < until:
            tree = self.governor.propose(None, 4)
            name = self.governor.name if len(tree) else "plain"
            drafter = next((one for one in self.drafters if one.name == name), None)
            count, cost = drafter.round_of(self.tokens, drafter.rounds) if drafter else (1, 1.0)
            speed = self.speed(self.tokens)
            seconds = cost * speed * math.exp(self.draw.gauss(0, self.noise))
            # One row more takes a tenth of a step, drafting the rest.
            verify = min(seconds, seconds * 1.1 / cost) if drafter else seconds
            step = Step(
                (7,) * count, name, verified=len(tree), draft=seconds - verify, verify=verify
            )
            self.governor.learn(tree, [0], step, None)
            self.tokens += count
            self.seconds += cost * speed
            self.plain_seconds += count * speed
            self.who.append(name)
        return self

    @property
    def slowdown(self):
        """Time as a multiple of plain decoding's."""
        return self.seconds / self.plain_seconds


def never_right(cost):
    return Simulated("dear", lambda place, rounds: (1, cost))


SPEEDS = {
    "steady": lambda tokens: 1.0,
    "drifting": lambda tokens: 1 + 0.3 * math.sin(tokens / 60),
    "slower for good": lambda tokens: 1.0 if tokens < 100 else 2.0,
    "faster for good": lambda tokens: 2.0 if tokens < 100 else 1.0,
}


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("prior", [COSTS, None])
@pytest.mark.parametrize("loss", [1.05, 1.5, 3.0])
def test_what_never_pays_costs_little(loss, prior, speed):
    stream = Stream(never_right(loss), prior=prior, speed=SPEEDS[speed]).run(256)
    assert stream.slowdown < 1.03
    stream.run(2500)
    assert stream.slowdown < 1.01
    assert stream.who[-2000:].count("dear") > 1  # it is still tried


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("loss", [1.05, 1.5, 3.0])
def test_noise_does_not_make_it_dearer(loss, seed):
    stream = Stream(never_right(loss), noise=0.3, seed=seed)
    assert stream.run(256).slowdown < 1.03
    assert stream.run(2500).slowdown < 1.012


@pytest.mark.parametrize("promise", [1.1, 1.5, 3.0])
def test_promises_that_are_never_kept_cost_little(promise):
    liar = Simulated("free", lambda place, rounds: (1, 1.1), lambda place: promise)
    stream = Stream(liar).run(256)
    assert stream.slowdown < 1.03
    assert stream.run(2500).slowdown < 1.01


def test_two_that_do_not_pay_share_one_purse():
    liar = Simulated("free", lambda place, rounds: (1, 1.2), lambda place: 1.3)
    stream = Stream(liar, never_right(2.0)).run(256)
    assert stream.slowdown < 1.03 + 0.01
    assert stream.run(2500).slowdown < 1.01


def test_what_pays_goes_on_but_for_a_plain_round_now_and_then():
    stream = Stream(Simulated("dear", lambda place, rounds: (3, 2.0))).run(1000)
    assert stream.who.count("dear") / len(stream.who) > 0.97
    assert "plain" in stream.who[-2 * PLAIN_EVERY :]


def test_what_pays_is_found_within_a_short_answer():
    for prior, most in ((COSTS, 1), (None, 3)):
        stream = Stream(Simulated("dear", lambda place, rounds: (3, 2.0)), prior=prior).run(72)
        assert stream.who.count("plain") <= most
        assert stream.slowdown < 2 / 3 + 0.03


@pytest.mark.parametrize("seed", range(4))
def test_what_pays_on_average_survives_rounds_that_do_not(seed):
    draw = random.Random(seed)
    stream = Stream(
        Simulated("dear", lambda place, rounds: (draw.choice([1, 1, 2, 3, 6]), 2.0)), noise=0.2
    ).run(2000)
    assert stream.slowdown < 0.86  # 0.77 if it was known


def test_a_change_for_the_worse_is_noticed_and_one_for_the_better_too():
    right = itertools.cycle([(1, 1.5), (4, 2.0)])
    of_block = [next(right) for _ in range(10)]
    stream = Stream(Simulated("dear", lambda place, rounds: of_block[int(place // 1000)]))
    stream.run(1000)
    begin = stream.seconds
    stream.run(1000)
    assert stream.seconds - begin < 750  # 500 if it had been known at once
    begin = stream.seconds
    stream.run(1000)
    assert stream.seconds - begin < 1050  # noticed within fifty rounds
    assert stream.slowdown < 0.95


def test_right_at_first_and_then_never_is_no_loss_in_all():
    stream = Stream(Simulated("dear", lambda place, rounds: (3, 2.0) if rounds < 12 else (1, 2.0)))
    assert stream.run(256).slowdown < 1.03


def test_a_draft_that_becomes_dear_is_given_up():
    stream = Stream(
        Simulated("dear", lambda place, rounds: (2, 1.4) if rounds < 100 else (2, 4.0))
    ).run(2000)
    assert stream.who[-1000:].count("dear") < 10
    assert stream.slowdown < 1.01


def test_each_place_goes_to_whoever_promises_most_for_it():
    free = Simulated(
        "free",
        lambda place, rounds: (4, 1.2) if place % 100 < 50 else (1, 1.2),
        lambda place: 3.3 if place % 100 < 50 else 0.7,
    )
    stream = Stream(free, Simulated("dear", lambda place, rounds: (2, 1.4))).run(2000)
    seen = {name: stream.who.count(name) for name in ("free", "dear", "plain")}
    assert seen["plain"] < 30
    assert seen["free"] > 200
    assert seen["dear"] > 400
    assert stream.slowdown < 0.53  # 0.5 if all were known: half the tokens at 0.3, half at 0.7


def test_what_foresees_nothing_is_only_tried_to_see_what_rows_cost():
    stream = Stream(Simulated("free", lambda place, rounds: (1, 1.1), lambda place: 0.9))
    stream.run(4 * FRESH)
    assert stream.who.count("free") == 4


def test_the_first_rounds_are_plain_so_that_it_is_known_what_that_costs():
    for prior, plain in ((None, 2), (COSTS, 1)):
        stream = Stream(Simulated("dear", lambda place, rounds: (3, 2.0)), prior=prior).run(9)
        assert stream.who[: plain + 1] == ["plain"] * plain + ["dear"]


def ticking(seconds):
    """A clock that moves on whenever it is looked at."""
    ticks = itertools.count()
    return lambda: seconds * next(ticks)


def test_where_asking_is_dear_it_is_seldom_done():
    asked = []

    def promise(place):
        asked.append(place)
        return 0.9

    free = Simulated("free", lambda place, rounds: (1, 1.1), promise)
    stream = Stream(free, clock=ticking(0.1)).run(3000)
    cost = 0.2  # of asking and of learning from the round, which is itself time that goes by
    in_vain = len(asked) - stream.who.count("free")  # in trials it is a part of what they cost
    assert 0.8 * ASKING * 3000 <= cost * in_vain <= ASKING * 1.1 * 3000 + cost
    assert asked[-1] > 2900


def test_what_pays_is_asked_each_time_however_dear():
    free = Simulated("free", lambda place, rounds: (4, 2.0), lambda place: 2.0)
    stream = Stream(free, clock=ticking(0.1)).run(800)
    stream.purse.ask(100)
    stream.run(8000)
    assert stream.who.count("plain") < 0.1 * len(stream.who)


def test_what_pays_now_and_then_is_asked_all_the_time_though_it_is_dear():
    """A fifth of the places can be copied, five tokens of them; asking takes a tenth of a step."""
    asked = []

    def promise(place):
        asked.append(place)
        return 4.0 if place % 10 == 0 else 0.0

    free = Simulated("free", lambda place, rounds: (5, 1.2), promise)
    stream = Stream(free, clock=ticking(0.05)).run(3000)
    assert len(asked) > 0.95 * len(stream.who)
    assert stream.who.count("free") > 0.9 * 3000 / 10


@pytest.mark.parametrize(("short", "together"), [(2.0, WARM + 1), (0.5, 1)])
def test_where_steps_are_short_plain_rounds_are_measured_behind_others(
    monkeypatch, short, together
):
    monkeypatch.setattr(governor, "SHORT", short)  # seconds; a plain step takes one
    stream = Stream(Simulated("own", lambda place, rounds: (3, 1.2))).run(2000)
    runs = [len(list(run)) for who, run in itertools.groupby(stream.who) if who == "plain"]
    assert set(runs[1:]) == {together}


def test_a_draft_of_another_response_makes_a_short_plain_step_cold_too(monkeypatch):
    monkeypatch.setattr(governor, "SHORT", 2.0)
    pace, purse = Pace(torch.device("cpu"), COSTS), Purse()
    plain, drafting = (Governor([], pace, purse) for _ in range(2))
    before = pace.plain_rounds
    for _ in range(5 * AT_ONCE):  # two responses of a server in turn; nobody asks in the first
        drafting._chosen = Governed(never_right(2.0), Ledger(pace, purse, TRUST), None, False)
        drafting.learn(DraftTree.chain([1]), [0], Step((7,), verified=1, verify=1.1), None)
        plain.learn(DraftTree(), [0], Step((7,), verify=1.6), None)
    assert pace.plain_rounds <= before + 1
    assert pace.step == pytest.approx(1.0, rel=0.02)
    for _ in range(WARM + AT_ONCE):
        plain.learn(DraftTree(), [0], Step((7,), verify=1.0), None)
    assert pace.plain_rounds > before


def test_the_time_of_short_answers_counts_too():
    pace, purse = Pace(torch.device("cpu"), COSTS), Purse()
    pace.plain_rounds = 9
    purse.ask(2 * CREDIT)
    answers = 0
    while not purse.may_ask:  # of three rounds each, in which nobody may be asked
        one = Governor([], pace, purse)
        for _ in range(3):
            one.learn(DraftTree(), [0], Step((7,), verify=1.0), None)
        answers += 1
    assert 3 * answers == pytest.approx(2 * CREDIT / ASKING, abs=AT_ONCE + 3)


def test_a_new_drafter_starts_with_a_clean_account():
    pace, purse = Pace(torch.device("cpu"), COSTS), Purse()
    ledger = Ledger(pace, purse, TRUST)
    assert ledger.expected(1.5) == 1.5
    for _ in range(30):
        ledger.record(Step((1,), verified=1, draft=0.9, verify=1.1), 1.5)
    assert ledger.expected(1.5) < 0.7
    ledger.forget()
    assert ledger.expected(1.5) == 1.5


def test_a_single_slow_verification_is_not_the_drafters_fault():
    pace, purse = Pace(torch.device("cpu"), COSTS), Purse()
    usual, slow = (Ledger(pace, purse, TRUST) for _ in range(2))
    for turn in range(20):
        usual.record(Step((1, 2), verified=1, draft=0.3, verify=1.1), 1.5)
        slow.record(Step((1, 2), verified=1, draft=0.3, verify=1.1 if turn % 10 else 20.0), 1.5)
    assert slow.expected(1.5) > 0.9 * usual.expected(1.5) > 1.2


def test_what_costs_let_suppose():
    assert supposed(Pace(torch.device("cpu"))) == 1.0
    cheap = supposed(Pace(torch.device("cpu"), Prior({1: 1.0, 9: 1.0}, {1: 0.1})))
    dear = supposed(Pace(torch.device("cpu"), Prior({1: 1.0, 9: 1.0}, {1: 0.9})))
    assert cheap > 1.8 > 1 > dear


def test_the_bounds_are_what_is_said():
    assert CREDIT / 256 < 0.02
    assert SHARE < 0.005
