"""What finding out may cost in all: whatever is allowed is spent, and nothing comes of it."""

import math

import numpy as np
import pytest
import torch

from swift_sd.adapting.allowance import FIRST, Allowance
from swift_sd.adapting.costs import Costs
from swift_sd.adapting.governor import Purse
from swift_sd.adapting.objective import sublayer_bits
from swift_sd.adapting.rate_search import RateSearch
from swift_sd.decoding.trace import Step
from swift_sd.drafting.pace import Pace, Prior

STEP, TRIAL, ASK, SCORE, TOKENS = 1.0, 1.0, 0.1, 2.0, 32  # seconds, but for the last


class InVain:
    """A stream in which no draft pays and all sublayers matter, on a simulated clock."""

    def __init__(self, depth, seed):
        self.pace = Pace(torch.device("cpu"), Prior(verify={1: STEP, TOKENS: SCORE}))
        self.purse, self.allowance = Purse(), Allowance(self.pace, eager=False)
        self.costs = Costs(
            STEP, (STEP / (3 * depth),) * depth, (2 * STEP / (3 * depth),) * depth, 0.0, 8
        )
        self.draw = np.random.default_rng([seed, 1])
        self.harm = self.draw.uniform(0.2, 0.6, 2 * (depth - 2))
        self.search = None
        self.spent = {"trials": 0.0, "asking": 0.0, "searching": 0.0}

    def run(self, tokens):
        for _ in range(tokens):
            self.explore()
            self.purse.elapse(STEP)
            self.purse.account(STEP)
            self.allowance.elapse(Step((1,), verify=STEP))
        return self

    def explore(self):
        if self.purse.affords(TRIAL):
            self.purse.lose(TRIAL)
            self.spent["trials"] += TRIAL
        if self.purse.may_ask:
            self.purse.ask(ASK)
            self.spent["asking"] += ASK
        if self.search is None:
            if self.allowance.affords_start(1.0):
                self.search = RateSearch(self.costs, lambda rows: STEP, rounded=False)
                self.pay(FIRST * STEP, scored=False)
        elif self.allowance.affords_doubt or (
            not self.search.is_finished
            and self.allowance.affords_score(self.search.hope / self.search.gain)
        ):
            candidate = self.search.ask()
            chance = math.exp(-self.harm @ sublayer_bits(candidate))
            self.search.tell(candidate, self.draw.binomial(TOKENS, chance) / TOKENS, TOKENS)
            self.pay(SCORE, scored=True)

    def pay(self, seconds, *, scored):
        self.allowance.spend(seconds, scored=scored, doubted=False)
        self.spent["searching"] += seconds


@pytest.mark.parametrize("depth", [12, 30])
@pytest.mark.parametrize("seed", range(3))
def test_in_vain_three_percent_of_an_answer_and_one_of_a_stream(seed, depth):
    stream = InVain(depth, seed).run(256)
    assert sum(stream.spent.values()) <= 0.03 * 256
    stream.run(10000 - 256)
    assert sum(stream.spent.values()) <= 0.01 * 10000
    assert all(seconds > 0 for seconds in stream.spent.values())
    assert stream.search.best.skip_ratio == 0
