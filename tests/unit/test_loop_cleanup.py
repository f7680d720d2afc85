"""However the loop is left, the cache holds every token but the last, and nothing else."""

import pytest
import torch
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.stopping_criteria import MaxLengthCriteria

from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.decoding.loop import decode
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.stopping import Stopping
from swift_sd.decoding.warping import Warping
from swift_sd.model.kv_cache import KVCache
from swift_sd.model.target import Target


class Interrupted:
    """Writes two rows of scratch like a drafter, then the user presses a key."""

    name = "interrupted"

    def __init__(self, view, after: int) -> None:
        self.view, self.left = view, after

    def propose(self, state, budget):
        self.left -= 1
        self.view.forward(torch.tensor([[5, 6]]), state.cache)
        if self.left < 0:
            raise KeyboardInterrupt
        state.cache.rollback()
        return DraftTree()

    def learn(self, tree, path, step, logits):
        pass


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupt_in_a_draft_leaves_no_scratch(model_of, prompt, after):
    target = Target(model_of())
    stopping = Stopping(StoppingCriteriaList([MaxLengthCriteria(40)]))
    state = DecodingState(
        prompt(), KVCache([None] * 5), Warping(LogitsProcessorList(), False), stopping
    )
    rounds = decode(target, Interrupted(target, after), state, prompt(), max_draft_tokens=4)
    with pytest.raises(KeyboardInterrupt):
        list(rounds)
    assert state.length == 12 + 1 + after
    assert state.cache.committed == state.cache.cursor == state.length - 1


def test_a_loop_closed_between_rounds_is_consistent(model_of, prompt):
    target = Target(model_of())
    stopping = Stopping(StoppingCriteriaList([MaxLengthCriteria(40)]))
    state = DecodingState(
        prompt(), KVCache([None] * 5), Warping(LogitsProcessorList(), False), stopping
    )
    rounds = decode(target, None, state, prompt(), max_draft_tokens=4)
    for _ in range(3):
        next(rounds)
    rounds.close()
    assert state.cache.committed == state.cache.cursor == state.length - 1 == 14
    expected = model_of().generate(prompt(), max_new_tokens=3, do_sample=False)
    assert torch.equal(state.tokens, expected)
