"""Tokens of earlier texts serve those alone who may know of them."""

import pytest
import torch

from swift_sd import Swift, SwiftConfig
from swift_sd.adapting.governor import Governor, Purse
from swift_sd.drafting.growth import CostGrowth
from swift_sd.drafting.memory import Memories, Memory
from swift_sd.drafting.recycling import Successors
from swift_sd.testing.families import tiny_model


def empty() -> Memory:
    return Memory(Successors(), None)


def test_each_name_has_a_memory_and_those_used_last_are_kept():
    memories = Memories(empty, most=2)
    nobody, one = memories.of(None), memories.of("one")
    assert nobody is not one
    assert memories.of(None) is nobody
    memories.of("two")  # "one" was used least recently
    assert memories.of(None) is nobody
    assert memories.of("one") is not one


@pytest.fixture
def swift(monkeypatch):
    """Drafts what it remembers, whether it pays or not."""
    monkeypatch.setattr(CostGrowth, "pruned", lambda self, tree, **_: tree)
    monkeypatch.setattr(Governor, "_choice", lambda self, promises: 0)
    monkeypatch.setattr(Governor, "_is_plain_due", False)
    monkeypatch.setattr(Purse, "may_ask", True)
    return Swift(tiny_model("llama"), config=SwiftConfig(drafters=("recycling",)))


def drafted_at_once(swift, **name) -> int:
    """Tokens proposed in the first round after the prompt."""
    steps = swift.steps(torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=8, **name)
    _, first, *_ = steps
    return first.drafted


def test_one_name_tells_another_nothing(swift):
    assert drafted_at_once(swift, memory="one") == 0
    assert drafted_at_once(swift, memory="one") > 0
    assert drafted_at_once(swift, memory="two") == 0
    assert drafted_at_once(swift) == 0
    assert drafted_at_once(swift) > 0


def test_the_shortlist_of_one_name_is_not_that_of_another():
    wide = {"hidden_size": 128, "intermediate_size": 192, "vocab_size": 10_000}
    model = tiny_model("llama", head_dim=16, num_attention_heads=8, **wide)
    swift = Swift(model, config=SwiftConfig(draft_bits=8, early_stop=0.0))
    arguments = {"do_sample": False, "max_new_tokens": 4, "eos_token_id": None}
    for _ in swift.steps(torch.arange(9_000, 9_011).unsqueeze(0), memory="one", **arguments):
        pass
    for _ in swift.steps(torch.arange(8_000, 8_011).unsqueeze(0), memory="two", **arguments):
        pass
    one, two = (swift._experience.memories.of(name).shortlist for name in ("one", "two"))
    assert one._is_listed[9_000:9_011].all()
    assert not two._is_listed[9_000:9_011].any()
