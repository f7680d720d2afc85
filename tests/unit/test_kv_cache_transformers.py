"""Prefixes taken over from transformers' own cache, and given back to it."""

import pytest
import torch
from transformers import DynamicCache

from swift_sd.model.kv_cache import (
    KVCache,
    attention_windows,
    generate_cache_name,
    read_prefix,
    write_back,
)
from swift_sd.model.view import View
from swift_sd.testing.families import tiny_model

CACHE = generate_cache_name()

FAMILIES = ("llama", "mistral", "gemma3_text")  # full, sliding, and both


@torch.no_grad()
def read_by_transformers(model, ids, chunk=None) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    for piece in ids.split(chunk or ids.shape[1], dim=1):
        model(input_ids=piece, **{CACHE: cache})
    return cache


def read_by_us(model, ids) -> KVCache:
    cache = KVCache(attention_windows(model.config))
    View(model).forward(ids, cache)
    cache.commit(ids.shape[1])
    return cache


def assert_same_contents(ours: DynamicCache, theirs: DynamicCache) -> None:
    assert ours.get_seq_length() == theirs.get_seq_length()
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        assert type(mine) is type(other)
        assert mine.get_seq_length() == other.get_seq_length()
        assert mine.get_mask_sizes(3) == other.get_mask_sizes(3)
        torch.testing.assert_close(mine.keys, other.keys)
        torch.testing.assert_close(mine.values, other.values)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return tiny_model(request.param)


@pytest.mark.parametrize("length", [1, 5, 7, 8, 9, 30])  # the window is 8
def test_writing_back_leaves_what_transformers_own_forward_would(model, prompt, length):
    ids = prompt(length)
    ours = DynamicCache(config=model.config)
    write_back(read_by_us(model, ids), ours)
    assert_same_contents(ours, read_by_transformers(model, ids))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 30])
def test_a_prefix_that_was_read_in_goes_on_like_one_that_was_computed(model, prompt, length):
    ids, more = prompt(length), prompt(5, seed=1)
    taken = KVCache(attention_windows(model.config), reserve=40)
    read_prefix(read_by_transformers(model, ids), taken)
    assert (taken.committed, taken.cursor) == (length, length)
    computed = read_by_us(model, ids)
    view = View(model)
    torch.testing.assert_close(view.forward(more, taken), view.forward(more, computed))
    for cache in (taken, computed):
        cache.commit(3)
    last = prompt(1, seed=2)
    torch.testing.assert_close(view.forward(last, taken), view.forward(last, computed))


def test_a_prefix_read_by_transformers_in_pieces_is_taken_over_too(model, prompt):
    ids, more = prompt(20), prompt(2, seed=1)
    taken = KVCache(attention_windows(model.config))
    read_prefix(read_by_transformers(model, ids, chunk=3), taken)
    expected = View(model).forward(more, read_by_us(model, ids))
    torch.testing.assert_close(View(model).forward(more, taken), expected)


def test_the_prefix_is_copied_both_ways(model, prompt):
    source = read_by_transformers(model, prompt(20))
    before = [layer.keys.clone() for layer in source.layers]
    ours = KVCache(attention_windows(model.config))
    read_prefix(source, ours)
    for buffer in ours.buffers:
        buffer.keys.fill_(7)
    for layer, keys in zip(source.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
    write_back(ours, source)
    for buffer in ours.buffers:
        buffer.keys.fill_(9)
    assert all(bool((layer.keys == 7).all()) for layer in source.layers)


def test_scratch_is_not_written_back(model, prompt):
    ids = prompt(20)
    ours = read_by_us(model, ids)
    View(model).forward(prompt(6, seed=3), ours)
    result = DynamicCache(config=model.config)
    write_back(ours, result)
    assert_same_contents(result, read_by_transformers(model, ids))


def test_nothing_committed_leaves_an_empty_cache_empty(model):
    target = DynamicCache(config=model.config)
    write_back(KVCache(attention_windows(model.config)), target)
    assert target.get_seq_length() == 0


def test_the_views_logits_are_the_models_own(model, prompt):
    ids = prompt(20)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    cache = KVCache(attention_windows(model.config))
    view = View(model)
    parts = []
    for piece in ids.split([9, 1, 4, 6], dim=1):
        parts.append(view.forward(piece, cache))
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keep", [1, 2, 6])
def test_only_the_last_positions_are_kept_when_asked(model, prompt, keep):
    ids = prompt(6)
    all_logits = View(model).forward(ids, KVCache(attention_windows(model.config)))
    kept = View(model).forward(ids, KVCache(attention_windows(model.config)), keep=keep)
    torch.testing.assert_close(kept, all_logits[:, -keep:])
