"""Costs measured beforehand are ratios of quick moments, whatever load comes and goes."""

import pytest
import torch

from swift_sd.adapting.prior import DRAFTED, LEAST, MOST, VERIFIED, measured_prior
from swift_sd.drafting.pace import Pace, Prior
from swift_sd.testing.families import tiny_model

PLAIN, ROW, DRAFT = 0.01, 0.001, 0.003
DRAFT_ROW = 0.0005


class Scripted:
    """A target and a draft whose forwards take known seconds, times what a load makes of it."""

    def __init__(self, load):
        self.now, self.load, self.forwards = 0.0, load, 0

    def clock(self):
        return self.now

    def _pass(self, seconds):
        self.now += seconds * self.load(self.forwards)
        self.forwards += 1

    def prefill(self, tokens, cache):
        pass

    def wait(self):
        pass

    def verify(self, tokens, cache):
        self._pass(PLAIN + ROW * (tokens.shape[1] - 1))

    def forward(self, tokens, cache):
        self._pass(DRAFT + DRAFT_ROW * (tokens.shape[1] - 1))


def measure(load, drafts=True):
    scripted = Scripted(load)
    view = scripted if drafts else None
    prior = measured_prior(tiny_model("llama"), scripted, view, scripted.clock)
    return prior, scripted


LOADS = {
    "none": lambda n: 1.0,
    "all the time": lambda n: 9.0,
    "at first": lambda n: 20.0 if n < 14 else 1.0,
    "every other forward of a turn": lambda n: 1.0 if n // 8 % 2 else 7.0,
    "now and then": lambda n: 30.0 if n % 5 == 0 else 1.0,
}


@pytest.mark.parametrize("load", LOADS)
def test_ratios_to_a_plain_step_are_true_under_any_load(load):
    prior, _ = measure(LOADS[load])
    plain = prior.verify[1]
    for rows in VERIFIED:
        assert prior.verify[rows] / plain == pytest.approx(1 + ROW / PLAIN * (rows - 1))
    for rows in DRAFTED:
        assert prior.draft[rows] / plain == pytest.approx((DRAFT + DRAFT_ROW * (rows - 1)) / PLAIN)


def test_a_quiet_machine_is_measured_in_few_forwards_and_a_busy_one_not_for_ever():
    in_a_turn = len(VERIFIED) + 2 * len(DRAFTED)
    _, quiet = measure(LOADS["none"])
    assert quiet.forwards == (1 + LEAST) * in_a_turn
    _, busy = measure(lambda n: 1.0 + n % 7 * n / 100)
    assert busy.forwards == (1 + MOST) * in_a_turn
    _, standing = measure(lambda n: 100.0 + n)
    assert standing.forwards == (1 + 2) * in_a_turn


def test_what_was_disturbed_in_all_turns_counts_as_unknown():
    """Every forward of the target over eight rows takes another time."""
    position = VERIFIED.index(8)

    def load(n):
        return 2.0 + n if n % (len(VERIFIED) + 2 * len(DRAFTED)) == position else 1.0

    prior, _ = measure(load)
    assert set(prior.verify) == {*VERIFIED} - {8}
    pace = Pace(torch.device("cpu"), prior)
    assert pace.verify(8) < 2 * PLAIN


def test_without_a_plain_step_nothing_is_believed():
    pace = Pace(torch.device("cpu"), Prior({2: 8.0}, {1: 6.0}))
    assert pace.verify(1) is pace.draft(1) is pace.step is None


def test_without_drafts_of_the_model_only_the_target_is_measured():
    prior, scripted = measure(LOADS["none"], drafts=False)
    assert (set(prior.verify), dict(prior.draft)) == ({*VERIFIED}, {})
    assert scripted.forwards == (1 + LEAST) * len(VERIFIED)
