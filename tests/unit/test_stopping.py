"""A response ends where transformers' criteria end it."""

import math

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
)

from swift_sd.decoding.stopping import Stopping


class Says(StoppingCriteria):
    """Always gives one answer, and counts how often it was asked."""

    def __init__(self, answer) -> None:
        self.answer = answer
        self.asked = []

    def __call__(self, input_ids, scores, **kwargs):
        self.asked.append((input_ids.tolist(), scores))
        return self.answer


def ends(stopping: Stopping, tokens: list[int]) -> bool:
    return stopping.ends(torch.tensor([tokens]), tokens[-1], None)


def test_without_criteria_nothing_ends():
    stopping = Stopping(StoppingCriteriaList())
    assert not ends(stopping, list(range(500)))
    assert stopping.room(500) == math.inf


def test_the_shortest_of_several_lengths_counts():
    criteria = StoppingCriteriaList([MaxLengthCriteria(9), MaxLengthCriteria(7)])
    stopping = Stopping(criteria)
    assert [stopping.room(length) for length in (5, 6, 7)] == [2, 1, 0]
    assert [ends(stopping, [1] * length) for length in (6, 7, 8)] == [False, True, True]


def test_any_of_several_end_tokens_ends():
    criteria = StoppingCriteriaList([EosTokenCriteria([2, 5]), EosTokenCriteria(7)])
    stopping = Stopping(criteria)
    assert stopping.eos == {2, 5, 7}
    assert [ends(stopping, [2, token]) for token in (1, 2, 5, 7)] == [False, True, True, True]


@pytest.mark.parametrize("answer", [torch.tensor([True]), True, torch.tensor(True)])
def test_a_users_criterion_may_answer_with_a_tensor_or_a_bool(answer):
    assert ends(Stopping(StoppingCriteriaList([Says(answer)])), [1, 2])


@pytest.mark.parametrize("answer", [torch.tensor([False]), False])
def test_a_users_criterion_may_decline(answer):
    assert not ends(Stopping(StoppingCriteriaList([Says(answer)])), [1, 2])


def test_every_criterion_is_asked_even_when_another_one_already_ends():
    first, second = Says(torch.tensor([True])), Says(torch.tensor([False]))
    criteria = StoppingCriteriaList([EosTokenCriteria(2), first, second])
    scores = (torch.zeros(1, 3),)
    assert Stopping(criteria).ends(torch.tensor([[1, 2]]), 2, scores)
    assert first.asked == second.asked == [([[1, 2]], scores)]


def test_time_is_asked_of_transformers_own_criterion():
    assert ends(Stopping(StoppingCriteriaList([MaxTimeCriteria(-1.0)])), [1])
    assert not ends(Stopping(StoppingCriteriaList([MaxTimeCriteria(1e6)])), [1])


def test_a_subclass_of_the_length_criterion_is_called_not_read():
    class Never(MaxLengthCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.tensor([False])

    stopping = Stopping(StoppingCriteriaList([Never(3)]))
    assert stopping.room(10) == math.inf
    assert not ends(stopping, [1] * 10)
