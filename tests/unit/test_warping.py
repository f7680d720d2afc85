"""Logits processors: called for the target exactly as in plain decoding, for the draft if pure."""

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from swift_sd.decoding.warping import Warping

PREFIX = torch.tensor([[3, 1]])
LOGITS = torch.tensor([[1.0, 2.0, 3.0, 4.0]])


class Counting(LogitsProcessor):
    """A user's own, with a state."""

    def __init__(self) -> None:
        self.calls = []

    def __call__(self, input_ids, scores):
        self.calls.append(input_ids.tolist())
        scores[:, 0] = 100.0  # in place, as users do
        return scores


def warping(*processors, do_sample=False) -> Warping:
    return Warping(LogitsProcessorList(processors), do_sample)


def test_without_processors_greedy_decoding_is_the_argmax_and_sampling_is_not():
    assert warping().is_argmax
    assert not warping(do_sample=True).is_argmax
    assert not warping(TemperatureLogitsWarper(2.0)).is_argmax


def test_pure_processors_of_transformers_apply_on_both_sides():
    both = warping(RepetitionPenaltyLogitsProcessor(2.0), TopKLogitsWarper(2))
    assert both.scores(PREFIX, LOGITS).tolist() == [[-torch.inf, -torch.inf, 3.0, 2.0]]
    assert torch.equal(both.guess(PREFIX, LOGITS), both.scores(PREFIX, LOGITS))
    assert both.needs_prefix


def test_a_users_processor_never_sees_a_guess():
    counting = Counting()
    mixed = warping(counting, TemperatureLogitsWarper(2.0))
    assert mixed.guess(PREFIX, LOGITS).tolist() == [[0.5, 1.0, 1.5, 2.0]]
    assert counting.calls == []
    assert mixed.scores(PREFIX, LOGITS).tolist() == [[50.0, 1.0, 1.5, 2.0]]
    assert counting.calls == [[[3, 1]]]


def test_a_users_subclass_of_a_pure_processor_is_the_users():
    class Mine(SuppressTokensLogitsProcessor):
        pass

    mine = warping(Mine([3]))
    assert not mine.needs_prefix
    assert mine.guess(PREFIX, LOGITS).argmax() == 3
    assert mine.scores(PREFIX, LOGITS).argmax() == 2


def test_processors_that_call_back_or_run_the_model_are_kept_from_the_draft():
    calls = []

    def allowed(batch, ids):
        calls.append(ids.tolist())
        return [1]

    constrained = warping(PrefixConstrainedLogitsProcessor(allowed, 1))
    constrained.guess(PREFIX, LOGITS)
    assert calls == []
    assert constrained.scores(PREFIX, LOGITS).argmax() == 1
    assert calls == [[3, 1]]
    guided = warping(UnbatchedClassifierFreeGuidanceLogitsProcessor(2.0, model=None))
    assert torch.equal(guided.guess(PREFIX, LOGITS), LOGITS)


def test_the_logits_given_are_not_written_to():
    logits = LOGITS.clone()
    warping(Counting()).scores(PREFIX, logits)
    warping(SuppressTokensLogitsProcessor([3])).guess(PREFIX, logits)
    assert torch.equal(logits, LOGITS)


def test_scores_are_float32_whatever_the_models_type():
    for side in (warping().scores, warping().guess):
        assert side(PREFIX, LOGITS.bfloat16()).dtype == torch.float32
