"""Drafting goes on while it pays and is tried again rarely when it does not."""

import pytest
import torch

from swift_sd.adapting.governor import CREDIT, PLAIN_EVERY, SHARE, Governed, Governor, Ledger
from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.decoding.trace import Step
from swift_sd.drafting.calibration import Calibration
from swift_sd.drafting.growth import CostGrowth
from swift_sd.drafting.pace import Pace


class Nothing:
    """A free drafter that never knows anything."""

    name = "nothing"

    def propose(self, state, budget):
        return DraftTree()


class Stream:
    """Plain steps take a second; drafted rounds what `round_of(turn)` says: tokens and seconds."""

    name = "stream"

    def __init__(self, round_of, noise=0.0):
        self.pace = Pace(torch.device("cpu"))
        self.ledger = Ledger(self.pace)
        growth = CostGrowth(Calibration(), self.pace, is_tree=False)
        nothing = Governed(Nothing(), Ledger(self.pace))
        self.governed = Governor(nothing, Governed(self, self.ledger), growth, self.pace)
        self.round_of = round_of
        self.tokens = self.seconds = 0.0
        self.drafted = []
        self.asked = False
        self.noise = torch.Generator().manual_seed(0), noise

    def propose(self, state, budget):
        self.asked = True
        return DraftTree.chain([1])

    def learn(self, tree, path, step):
        pass

    def run(self, tokens):
        until = self.tokens + tokens
        while self.tokens < until:
            self.asked = False
            tree = self.governed.propose(None, 4)
            count, seconds = self.round_of(self.tokens) if self.asked else (1, 1.0)
            generator, size = self.noise
            seconds *= 1 + size * float(torch.rand(1, generator=generator) - 0.5)
            step = Step((7,) * count, "stream" if len(tree) else None, verify=seconds)
            self.governed.learn(tree, [0], step)
            self.tokens += count
            self.seconds += seconds
            self.drafted.append(self.asked)
        return self


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("loss", [1.05, 1.5, 3.0])
def test_what_never_pays_costs_little(loss, noise):
    stream = Stream(lambda tokens: (1, loss), noise)
    stream.run(256)
    assert stream.seconds / stream.tokens < 1.03
    stream.run(5000)
    assert stream.seconds / stream.tokens < 1.012
    assert sum(stream.drafted[-3000:]) > 3  # it is still tried


def test_what_pays_goes_on_but_for_a_plain_round_now_and_then():
    stream = Stream(lambda tokens: (3, 2.0)).run(1000)
    assert sum(stream.drafted) / len(stream.drafted) > 0.97
    assert False in stream.drafted[-2 * PLAIN_EVERY :]
    assert stream.ledger.advantage == pytest.approx(1.5)


def test_a_change_for_the_better_is_found_and_one_for_the_worse_too():
    stream = Stream(lambda tokens: (1, 1.5) if (tokens // 1000) % 2 == 0 else (4, 2.0))
    stream.run(1000)
    begin = stream.seconds
    stream.run(1000)
    assert stream.seconds - begin < 750  # 500 if it had been known at once
    begin = stream.seconds
    stream.run(1000)
    assert stream.seconds - begin < 1040  # noticed within thirty rounds


def test_the_first_rounds_are_plain_so_that_it_is_known_what_that_costs():
    stream = Stream(lambda tokens: (3, 2.0)).run(6)
    assert stream.drafted[:3] == [False, False, True]


def test_the_bounds_are_what_is_said():
    assert CREDIT / 256 + SHARE <= 0.02
