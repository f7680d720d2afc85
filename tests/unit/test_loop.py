"""The loop against a scripted target: who proposes what never changes what comes out."""

import pytest
import torch
from transformers import LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria

from swift_sd.decoding.loop import decode
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.stopping import Stopping
from swift_sd.decoding.warping import Warping
from swift_sd.model.kv_cache import KVCache
from swift_sd.testing.scripted import ScriptedDrafter, scripted_target

VOCABULARY = 11


def following(prefix):
    """The scripted target's next token: a function of the whole prefix."""
    return sum((place + 1) * token for place, token in enumerate(prefix)) % VOCABULARY


def logits(prefix):
    return torch.nn.functional.one_hot(torch.tensor(following(prefix)), VOCABULARY).float()


def continuation(prefix, count):
    tokens = list(prefix)
    for _ in range(count):
        tokens.append(following(tokens))
    return tokens[len(prefix) :]


def right(prefix, budget):
    return continuation(prefix, budget)


def wrong(prefix, budget):
    return [(token + 1) % VOCABULARY for token in continuation(prefix, budget)]


def right_then_wrong(prefix, budget):
    good = continuation(prefix, budget)
    return [*good[:2], *((token + 1) % VOCABULARY for token in good[2:])]


def nothing(prefix, budget):
    return []


def start(prompt, new_tokens, end=None):
    criteria = StoppingCriteriaList([MaxLengthCriteria(len(prompt) + new_tokens)])
    if end is not None:
        criteria.append(EosTokenCriteria(end))
    warping = Warping(LogitsProcessorList(), do_sample=False)
    return DecodingState(torch.tensor([prompt]), KVCache([None]), warping, Stopping(criteria))


def run(script, prompt=(3, 1, 4), new_tokens=12, limit=4, end=None, chunk=None):
    target = scripted_target(logits)
    state = start(list(prompt), new_tokens, end)
    drafter = None if script is None else ScriptedDrafter(script)
    steps = list(decode(target, drafter, state, state.tokens, limit, prefill_chunk=chunk))
    return state, steps, target


@pytest.mark.parametrize("script", [None, right, wrong, right_then_wrong, nothing])
@pytest.mark.parametrize("limit", [0, 1, 4, 25])
def test_the_drafter_does_not_change_the_tokens(script, limit):
    state, steps, _ = run(script, limit=limit)
    assert state.tokens[0].tolist()[3:] == continuation((3, 1, 4), 12)
    assert [token for step in steps for token in step.tokens] == continuation((3, 1, 4), 12)


def test_right_drafts_cost_one_forward_a_round():
    _, steps, target = run(right)
    # One token by the prefill, then five a round; the last round may draft none beyond the limit.
    assert [len(step.tokens) for step in steps] == [1, 5, 5, 1]
    assert [(step.drafted, step.accepted) for step in steps[1:]] == [(4, 4), (4, 4), (0, 0)]
    assert target.module.forwards == 4


def test_wrong_drafts_still_give_a_token_a_round():
    _, steps, _ = run(wrong)
    assert all(len(step.tokens) == 1 and step.accepted == 0 for step in steps)
    assert len(steps) == 12


def test_partly_right_drafts_count_what_came_out():
    _, steps, _ = run(right_then_wrong)
    assert [(step.drafted, step.accepted) for step in steps[1:4]] == [(4, 2), (4, 2), (4, 2)]


def test_the_draft_leaves_room_for_the_targets_own_token():
    budgets = []

    def script(prefix, budget):
        budgets.append(budget)
        return []

    run(script, new_tokens=6, limit=4)
    assert budgets == [4, 3, 2, 1]


@pytest.mark.parametrize("script", [right, right_then_wrong])
def test_the_cache_holds_all_tokens_but_the_last(script):
    state, _, _ = run(script)
    keys, _ = state.cache.buffers[0].tail(state.cache.committed)
    assert keys.flatten().int().tolist() == state.tokens[0].tolist()[:-1]
    assert state.cache.cursor == state.cache.committed


def test_end_of_sequence_in_a_draft_drops_what_was_drafted_behind_it():
    free = continuation((3, 1, 4), 12)
    end = free[3]
    state, steps, _ = run(right, end=end)
    expected = free[: free.index(end) + 1]
    assert state.tokens[0].tolist()[3:] == expected
    assert sum(len(step.tokens) for step in steps) == len(expected)
    assert state.cache.committed == state.length - 1


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_the_prompt_may_be_read_in_chunks(chunk):
    state, _, _ = run(right, prompt=(5, 6, 7, 8, 9), chunk=chunk)
    assert state.tokens[0].tolist()[5:] == continuation((5, 6, 7, 8, 9), 12)


def test_closing_half_way_leaves_a_consistent_state_that_can_go_on():
    target, state = scripted_target(logits), start([3, 1, 4], 12)
    rounds = decode(target, ScriptedDrafter(right), state, state.tokens, 4)
    next(rounds)
    next(rounds)
    rounds.close()
    assert state.cache.cursor == state.cache.committed == state.length - 1
    keys, _ = state.cache.buffers[0].tail(state.cache.committed)
    assert keys.flatten().int().tolist() == state.tokens[0].tolist()[:-1]
