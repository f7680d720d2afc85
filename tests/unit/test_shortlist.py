"""Drafts that choose among some tokens only; the output is the whole model's."""

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.adapting.governor import Governor
from swift_sd.drafting.growth import CostGrowth
from swift_sd.model.compiled_draft import CompiledDraft, CompiledWeights
from swift_sd.model.draft_weights import DraftWeights
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.shortlist import LEAST, Shortlist
from swift_sd.model.sublayers import find_sublayers
from swift_sd.model.token_ranking import ranked_tokens
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


@pytest.mark.parametrize(("size", "is_short"), [(LEAST, False), (LEAST + 8, True)])
def test_small_vocabularies_are_read_whole(size, is_short):
    model = tiny_model("llama", **{**WIDE, "vocab_size": size}).to(torch.bfloat16)
    weights = DraftWeights(model, find_sublayers(model), 8, has_short_head=True)
    assert (weights.new_shortlist() is not None) == is_short


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
    for first in range(LEAST, VOCABULARY - 100, 50):
        shortlist.add(range(first, first + 100))
        assert len(listed(shortlist)) <= max(2 * LEAST, VOCABULARY / 2)
        # What came last is kept, whatever goes, also if it was there before.
        assert shortlist._is_listed[first : first + 100].all()


def test_a_vocabulary_that_is_hardly_larger_than_the_list_is_no_reason_to_begin_anew():
    shortlist = Shortlist(LEAST + 100)
    shortlist.add([LEAST + 5])
    shortlist.add([LEAST + 7])
    assert listed(shortlist)[-2:] == [LEAST + 5, LEAST + 7]


def bpe(tokens, merges):
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, merges)))


def test_characters_come_first_then_merges_in_their_order_wherever_their_ids_are():
    tokenizer = bpe(
        ["abc", "<s>", "ab", "c", "a", "bc", "b"], [("b", "c"), ("a", "b"), ("ab", "c")]
    )
    assert ranked_tokens(tokenizer) == [1, 3, 4, 6, 5, 2, 0]
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    assert ranked_tokens(tokenizer) == [7, 1, 3, 4, 6, 5, 2, 0]


def test_a_vocabulary_with_chances_is_ranked_by_them():
    backend = Tokenizer(models.Unigram([("a", -3.0), ("b", -1.0), ("ab", -2.0)], unk_id=0))
    assert ranked_tokens(PreTrainedTokenizerFast(tokenizer_object=backend)) == [1, 2, 0]


def test_without_a_tokenizer_that_tells_there_is_no_ranking():
    assert ranked_tokens(None) is None
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    assert ranked_tokens(PreTrainedTokenizerFast(tokenizer_object=words)) is None


def test_it_starts_with_what_is_ranked_first():
    ranking = [*range(VOCABULARY + 50)][::-1]  # of more tokens than the model has
    assert listed(Shortlist(VOCABULARY, ranking))[0] == VOCABULARY - LEAST


def test_drafts_by_the_papers_rule_tell_it_of_the_text():
    model = tiny_model("llama", **WIDE)
    config = SwiftConfig(draft_bits=8, early_stop=0.0, layer_set=LayerSet.none(5))
    swift = Swift(model, config=config)
    prompt = torch.arange(9_000, 9_011).unsqueeze(0)
    out = swift.generate(prompt, do_sample=False, max_new_tokens=24, eos_token_id=None)
    assert swift.trace.summary()["drafted_tokens"] > 0
    # They are no frequent tokens, so that in the end the whole head is read; they are listed now.
    assert swift._experience.memories.of(None).shortlist._is_listed[out[0, :15]].all()


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
def test_the_output_is_the_whole_models(options, bits, first, monkeypatch):
    # The model drafts in every round, whether it pays or not.
    monkeypatch.setattr(CostGrowth, "pruned", lambda self, tree, **_: tree)
    monkeypatch.setattr(Governor, "_choice", lambda self, promises: len(promises) - 1)
    model = tiny_model("qwen2", **WIDE)
    prompt = torch.arange(first, first + 11).unsqueeze(0)
    arguments = {"do_sample": False, **options, "max_new_tokens": 40, "pad_token_id": 0}
    swift = Swift(model, config=SwiftConfig(draft_bits=bits))
    assert swift._experience.memories.of(None).shortlist.tokens is not None
    drafted = 0
    for seed in range(3):
        torch.manual_seed(seed)
        expected = model.generate(prompt, **arguments)
        torch.manual_seed(seed)
        assert torch.equal(swift.generate(prompt, **arguments), expected)
        drafted += swift.trace.summary()["drafted_tokens"]
    assert drafted


def test_it_can_be_switched_off():
    model = tiny_model("llama", **WIDE)
    swift = Swift(model, config=SwiftConfig(draft_bits=8, short_head=False))
    assert swift._experience.memories.of(None).shortlist is None
