"""What finding out may cost in all: whatever is allowed is spent, on a simulated clock."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from swift_sd import LayerSet
from swift_sd.adapting.adaptation import AT_ONCE, LOOKED_AT, Adaptation
from swift_sd.adapting.allowance import MOST, PROBE, Allowance
from swift_sd.adapting.basis import seconds_to_measure
from swift_sd.adapting.costs import Costs
from swift_sd.adapting.kinds import Kind, Met
from swift_sd.adapting.ledger import Purse
from swift_sd.adapting.objective import sublayer_bits
from swift_sd.adapting.rate_search import RateSearch
from swift_sd.decoding.trace import Step
from swift_sd.drafting.pace import Pace, Prior

STEP, TRIAL, ASK, SCORE, TOKENS = 1.0, 1.0, 0.1, 2.0, 32  # seconds, but for the last
PACE = Prior(verify={1: STEP, LOOKED_AT: STEP, TOKENS + 1: SCORE}, draft={1: STEP})


class Stream:
    """Rounds with searches by an `Adaptation`, whose scores come from harms that are given.

    Args:
        depth: layers of the model that there might be.
        harm: of each sublayer, in -log(acceptance).
        won: tokens that a round with drafts gives, once sublayers are skipped.
    """

    def __init__(self, monkeypatch, depth, harm, draw, won=1):
        self.pace, self.purse = Pace(torch.device("cpu"), PACE), Purse()
        sublayers = SimpleNamespace(depth=depth)
        self.learned = Adaptation(
            sublayers, self.pace, 25, lambda: None, lambda: None, clock=lambda: self.now
        )
        self.learned._timed = math.inf  # its costs are given, and never old
        none = LayerSet.none(depth)
        self.kind, self.view = Kind(np.zeros(1)), SimpleNamespace(layer_set=none, use=self.use)
        self.met = Met(np.zeros(1), self.kind, 0.0, in_doubt=False)
        self.costs = Costs(
            STEP, (STEP / (3 * depth),) * depth, (2 * STEP / (3 * depth),) * depth, 0.0, 8
        )
        self.harm, self.draw, self.won, self.now = harm, draw, won, 0.0
        self.spent = {"trials": 0.0, "asking": 0.0, "searching": 0.0}
        self.time = 0.0
        monkeypatch.setattr(self.learned, "_window", lambda state: TOKENS)
        monkeypatch.setattr(self.learned, "_started", self.started)
        monkeypatch.setattr(self.learned, "_matchness", self.matchness)

    def use(self, layer_set):
        self.view.layer_set = layer_set

    def started(self, *_):
        self.now += seconds_to_measure(self.pace, LOOKED_AT, None, None)
        return RateSearch(self.costs, lambda rows: STEP)

    def matchness(self, candidate, *_):
        self.now += SCORE
        chance = math.exp(-self.harm @ sublayer_bits(candidate))
        return self.draw.binomial(TOKENS, chance) / TOKENS

    def run(self, rounds):
        for number in range(rounds):
            if self.purse.may_lose:
                self.purse.lose(TRIAL)
                self.spent["trials"] += TRIAL
            if self.purse.may_ask:
                self.purse.ask(ASK)
                self.spent["asking"] += ASK
            drafts = self.view.layer_set.skip_ratio > 0
            step = Step((1,) * (self.won if drafts else 1), verify=STEP)
            self.purse.elapse(STEP)
            self.purse.account(STEP)
            self.learned.has_changed(self.kind, step)
            before = self.now
            if drafts or number % AT_ONCE == 0:
                self.learned.improve(self.met, None, self.view)
            self.spent["searching"] += self.now - before
            self.time += STEP + self.now - before
        return self

    @property
    def all_spent(self):
        return sum(self.spent.values())


@pytest.mark.parametrize("depth", [12, 30])
@pytest.mark.parametrize("seed", range(3))
def test_in_vain_three_percent_of_an_answer_and_one_of_a_stream(seed, depth, monkeypatch):
    draw = np.random.default_rng([seed, 1])
    harm = draw.uniform(0.2, 0.6, 2 * (depth - 2))
    stream = Stream(monkeypatch, depth, harm, draw).run(256)
    assert stream.all_spent <= 0.03 * 256
    stream.run(10000 - 256)
    assert stream.all_spent <= 0.01 * 10000
    assert all(seconds > 0 for seconds in stream.spent.values())
    assert stream.view.layer_set.skip_ratio == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_settled_search_takes_two_percent_of_the_time(seed, monkeypatch):
    """Half of the sublayers are superfluous; drafts without them double the speed."""
    draw = np.random.default_rng([seed, 2])
    harm = draw.uniform(0.2, 0.6, 36) * draw.permutation([0, 1] * 18)
    stream = Stream(monkeypatch, 20, harm, draw, won=2).run(6000)
    found = sublayer_bits(stream.view.layer_set).astype(bool)
    assert found.any()
    assert not found[harm > 0].any()
    searched, time = stream.spent["searching"], stream.time
    stream.run(3000)
    assert stream.spent["searching"] - searched <= 0.006 * (stream.time - time)


@pytest.mark.parametrize("eager", [False, True])
def test_a_search_that_has_ended_looks_again_after_a_time_that_pays_for_it(eager):
    allowance, score = Allowance(Pace(torch.device("cpu"), PACE), eager=eager), 3.0
    for _ in range(2):
        allowance.spend(score, scored=True, doubted=False)
        for _ in range(math.ceil(score / PROBE) - 1):
            assert not allowance.affords_probe
            allowance.elapse(Step((1,), verify=STEP))
        allowance.elapse(Step((1,), verify=STEP))
        assert allowance.affords_probe != eager


def test_the_first_score_is_expected_to_take_what_the_first_look_took():
    allowance = Allowance(Pace(torch.device("cpu"), PACE), eager=False)

    def go_on(rounds):
        for _ in range(rounds):
            allowance.elapse(Step((1,), verify=STEP))
        return allowance.affords_score(2.0)

    allowance.spend(20 * STEP, scored=False, doubted=False)
    assert not go_on(math.floor(40 / MOST) - 1)
    assert go_on(2)
    allowance.spend(STEP, scored=True, doubted=False)  # so the next one will, too
    assert go_on(1)


@pytest.mark.parametrize("seed", range(3))
def test_what_becomes_superfluous_later_is_found_though_the_search_has_ended(seed, monkeypatch):
    draw = np.random.default_rng([seed, 3])
    stream = Stream(monkeypatch, 12, np.full(20, 1.0), draw, won=2)
    search = stream.kind.search = RateSearch(stream.costs, lambda rows: STEP)
    while not search.is_finished:
        candidate = search.ask()
        search.tell(candidate, stream.matchness(candidate), TOKENS)
    stream.run(6000)
    assert search.is_finished
    assert stream.view.layer_set.skip_ratio == 0
    stream.harm = np.zeros(20)
    told, before = stream.learned.told, stream.spent["searching"]
    stream.run(6000)
    assert stream.learned.told > told
    assert stream.view.layer_set.skip_ratio > 0.2
    assert stream.spent["searching"] - before <= 0.06 * 6000
