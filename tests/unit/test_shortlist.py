"""Drafts that choose among some tokens only; the output is the whole model's."""

import pytest
import torch

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.model.compiled_draft import CompiledDraft, CompiledWeights
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.shortlist import LEAST, Shortlist
from swift_sd.model.sublayers import find_sublayers
from swift_sd.model.view import View
from swift_sd.testing.families import tiny_model

VOCABULARY = 10_000
WIDE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
}


def listed(shortlist):
    return shortlist.tokens.tolist()


def test_it_starts_with_the_first_tokens_and_lists_what_is_added():
    shortlist = Shortlist(VOCABULARY)
    assert listed(shortlist) == [*range(LEAST)]
    shortlist.add([9_000, 5, 9_000, VOCABULARY - 1])
    assert listed(shortlist) == [*range(LEAST), 9_000, VOCABULARY - 1]
    assert shortlist.tokens.dtype == torch.int32


def test_small_vocabularies_are_read_whole():
    assert Shortlist(LEAST).tokens is None
    assert Shortlist(50).tokens is None


def test_where_it_does_not_serve_the_whole_head_is_read_until_it_would():
    shortlist = Shortlist(VOCABULARY)
    shortlist.judge(range(5_000, 5_020))  # none of them was listed
    assert shortlist.tokens is None
    shortlist.judge([*range(5_000, 5_020)] * 20)  # now they are
    assert {5_000, 5_019} < set(listed(shortlist))


def test_one_surprise_is_no_reason():
    shortlist = Shortlist(VOCABULARY)
    shortlist.judge([*range(100), 6_000])
    assert 6_000 in listed(shortlist)


def test_it_does_not_grow_without_bound():
    shortlist = Shortlist(VOCABULARY)
    for first in range(LEAST, VOCABULARY, 100):
        shortlist.add(range(first, min(VOCABULARY, first + 100)))
        assert len(listed(shortlist)) <= VOCABULARY / 2 + 100


@torch.no_grad()
@pytest.mark.parametrize("bits", [4, 8])
def test_listed_logits_are_the_same_and_all_others_impossible(bits):
    model = tiny_model("llama", **WIDE)
    weights = CompiledWeights(model, find_sublayers(model), bits)
    shortlist = Shortlist(VOCABULARY)
    shortlist.add([9_999])
    nothing = LayerSet.none(model.config.num_hidden_layers)
    cache = KVCache(attention_windows(model.config))
    View(model).forward(torch.arange(3, 12).unsqueeze(0), cache, keep=1)
    cache.commit(9)
    tokens = torch.tensor([[7, 8_000, 9]])
    whole = CompiledDraft(weights, nothing).forward(tokens, cache)
    cache.rollback()
    short = CompiledDraft(weights, nothing, shortlist).forward(tokens, cache)
    assert torch.equal(short[..., listed(shortlist)], whole[..., listed(shortlist)])
    left_out = [token for token in range(VOCABULARY) if token not in set(listed(shortlist))]
    assert (short[..., left_out] == -torch.inf).all()


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.8, "top_k": 0}])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("first", [5, 9_000], ids=["frequent", "rare"])
def test_the_output_is_the_whole_models(options, bits, first):
    model = tiny_model("qwen2", **WIDE)
    prompt = torch.arange(first, first + 11).unsqueeze(0)
    arguments = {"do_sample": False, **options, "max_new_tokens": 40, "pad_token_id": 0}
    swift = Swift(model, config=SwiftConfig(draft_bits=bits))
    assert swift._experience.draft_weights.shortlist.tokens is not None
    for seed in range(3):
        torch.manual_seed(seed)
        expected = model.generate(prompt, **arguments)
        torch.manual_seed(seed)
        assert torch.equal(swift.generate(prompt, **arguments), expected)


def test_it_can_be_switched_off():
    model = tiny_model("llama", **WIDE)
    swift = Swift(model, config=SwiftConfig(draft_bits=8, short_head=False))
    assert swift._experience.draft_weights.shortlist is None
