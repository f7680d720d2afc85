"""Tokens of one response: appended, looked ahead of, and never overwritten."""

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.logits_process import TemperatureLogitsWarper
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from swift_sd.decoding import state as state_module
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.stopping import Stopping
from swift_sd.decoding.warping import Warping
from swift_sd.model.kv_cache import KVCache


def state_of(tokens, criteria=(), processors=(), do_sample=False, **kwargs) -> DecodingState:
    return DecodingState(
        torch.tensor([tokens]),
        KVCache([None]),
        Warping(LogitsProcessorList(processors), do_sample),
        Stopping(StoppingCriteriaList(criteria)),
        **kwargs,
    )


def test_tokens_start_as_the_prompt_and_grow_by_appending():
    state = state_of([5, 6])
    assert (state.length, state.tokens.tolist(), state.last_token.tolist()) == (2, [[5, 6]], [[6]])
    state.append(7)
    assert (state.length, state.tokens.tolist()) == (3, [[5, 6, 7]])
    assert state.last_token.tolist() == [[7]]
    assert state.tokens.dtype == torch.long


def test_the_prompt_tensor_of_the_caller_is_not_written_to():
    given = torch.tensor([[5, 6]])
    state = DecodingState(
        given, KVCache([None]), Warping(LogitsProcessorList(), False), Stopping([])
    )
    state.append(7)
    assert given.tolist() == [[5, 6]]


def test_drafted_tokens_are_seen_behind_the_others_but_do_not_stay():
    state = state_of([5, 6])
    assert state.tokens_with([8, 9]).tolist() == [[5, 6, 8, 9]]
    assert state.tokens.tolist() == [[5, 6]]
    assert state.tokens_with([]).tolist() == [[5, 6]]
    state.append(7)
    assert state.tokens.tolist() == [[5, 6, 7]]


def test_a_view_handed_out_earlier_keeps_its_numbers_for_thousands_of_tokens():
    state = state_of([5])
    views = []
    for token in range(2 * state_module.GROWTH + 10):
        state.append(token)
        state.tokens_with([99, 98])
        if token % 500 == 0:
            views.append((token, state.tokens))
    for token, view in views:
        assert view.tolist() == [[5, *range(token + 1)]]


def test_looking_far_ahead_of_the_storage_makes_room():
    state = state_of([5])
    drafted = list(range(state_module.GROWTH + 50))
    assert state.tokens_with(drafted).tolist() == [[5, *drafted]]


def test_finished_follows_the_criteria_token_by_token():
    state = state_of([5, 2], [EosTokenCriteria(2), MaxLengthCriteria(4)])
    assert not state.finished  # an end token in the prompt ends nothing
    state.append(3)
    assert not state.finished
    state.append(4)
    assert state.finished
    ended = state_of([5], [EosTokenCriteria(2)])
    ended.append(2)
    assert ended.finished


def test_argmax_suffices_only_when_nothing_else_is_asked_for():
    assert state_of([5]).is_argmax
    assert not state_of([5], do_sample=True).is_argmax
    assert not state_of([5], processors=[TemperatureLogitsWarper(0.5)]).is_argmax
    assert not state_of([5], keep_scores=True).is_argmax
    assert not state_of([5], keep_logits=True).is_argmax


def test_logits_and_scores_are_recorded_where_asked_for_and_logits_are_copied():
    logits, scores = torch.ones(1, 3, dtype=torch.float16), torch.zeros(1, 3)
    state = state_of([5], keep_scores=True, keep_logits=True)
    assert state.choose(logits, scores) == 0
    logits.fill_(9)
    assert [kept.tolist() for kept in state.logits] == [[[1.0, 1.0, 1.0]]]
    assert state.logits[0].dtype == torch.float32
    assert [kept.tolist() for kept in state.scores] == [[[0.0, 0.0, 0.0]]]
    nothing = state_of([5])
    nothing.choose(logits, scores)
    assert (nothing.logits, nothing.scores) == (None, None)


def test_what_only_the_prompt_has_is_never_drawn():
    """A model's embedding may be larger than its head."""
    state = state_of([5, 60], do_sample=True)
    state.choose(torch.zeros(1, 11))
    known, beyond, other = state.numbers(0, [3, 60, 4])
    assert (known, other) == tuple(state.noise.ahead(0, torch.zeros(1, 11))[0, [3, 4]].tolist())
    assert beyond == float("inf")
