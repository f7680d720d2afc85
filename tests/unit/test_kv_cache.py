"""The cache's bookkeeping: what is written, kept, forgotten and never copied."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swift_sd.model import layer_buffer
from swift_sd.model.kv_cache import KVCache

HEADS, WIDTH = 2, 3


def rows(numbers: list[int]) -> torch.Tensor:
    """Keys `[1, heads, n, width]` whose every entry tells which row it is."""
    column = torch.tensor(numbers, dtype=torch.float32).view(1, 1, -1, 1)
    return column.repeat(1, HEADS, 1, WIDTH)


def write(cache: KVCache, numbers: list[int], layers: list[int] | None = None) -> list[list[int]]:
    """Write rows through the given layers, as one forward does; return the keys each one saw."""
    seen = []
    for layer in range(len(cache.buffers)) if layers is None else layers:
        keys, values = cache.update(rows(numbers), -rows(numbers), layer)
        assert torch.equal(values, -keys)
        assert torch.equal(keys, rows(keys[0, 0, :, 0].int().tolist()))
        seen.append(keys[0, 0, :, 0].int().tolist())
    cache.advance(len(numbers))
    return seen


def test_a_forward_sees_everything_before_it_and_itself():
    cache = KVCache([None, None])
    assert write(cache, [10, 11, 12]) == [[10, 11, 12]] * 2
    assert write(cache, [13]) == [[10, 11, 12, 13]] * 2


def test_rollback_forgets_the_scratch_and_the_next_write_goes_over_it():
    cache = KVCache([None])
    write(cache, [10, 11])
    cache.commit(2)
    write(cache, [90])
    write(cache, [91])
    cache.rollback()
    assert cache.get_seq_length() == 2
    assert write(cache, [12]) == [[10, 11, 12]]


def test_commit_keeps_the_first_scratch_rows_and_forgets_the_others():
    cache = KVCache([None])
    write(cache, [10, 11, 90, 91])
    cache.commit(2)
    assert (cache.committed, cache.cursor) == (2, 2)
    assert write(cache, [12]) == [[10, 11, 12]]
    cache.commit(0)
    assert write(cache, [13]) == [[10, 11, 13]]


@pytest.mark.parametrize("count", [-1, 3])
def test_more_than_was_written_cannot_be_committed(count):
    cache = KVCache([None])
    write(cache, [10, 11])
    with pytest.raises(AssertionError):
        cache.commit(count)


def test_a_layer_that_drafts_skip_is_whole_again_after_the_verifying_forward():
    cache = KVCache([None, None])
    write(cache, [10, 11])
    cache.commit(2)
    write(cache, [90], layers=[0])
    write(cache, [91], layers=[0])
    assert cache.get_seq_length(1) == 4
    cache.rollback()
    assert write(cache, [12, 13, 14]) == [[10, 11, 12, 13, 14]] * 2


def addresses(cache: KVCache) -> list[int]:
    return [t.data_ptr() for b in cache.buffers for t in (b.keys, b.values)]


def test_drafting_rollback_and_commit_never_move_the_prefix():
    cache = KVCache([None, None, None], reserve=64)
    write(cache, list(range(20)))
    cache.commit(20)
    before = addresses(cache)
    for _ in range(5):
        write(cache, [90, 91, 92], layers=[0, 2])
        cache.rollback()
        write(cache, [30, 31, 32, 33])
        cache.commit(3)
    assert addresses(cache) == before


def test_what_a_forward_sees_is_the_storage_itself():
    cache = KVCache([None], reserve=16)
    keys, _ = cache.update(rows([10, 11]), rows([10, 11]), 0)
    assert keys.data_ptr() == cache.buffers[0].keys.data_ptr()


def test_the_reserve_is_allocated_at_the_first_write_and_then_growth_is_geometric():
    cache = KVCache([None], reserve=100)
    sizes = []
    for number in range(400):
        write(cache, [number])
        cache.commit(1)
        sizes.append(cache.buffers[0].keys.shape[2])
    assert sizes[0] == 100
    assert sorted(set(sizes)) == [100, 150, 225, 337, 505]
    assert write(cache, [400]) == [list(range(401))]


def test_growing_keeps_the_scratch_too():
    cache = KVCache([None], reserve=4)
    write(cache, [10, 11, 12])
    cache.commit(3)
    write(cache, [90])
    assert write(cache, [91, 92]) == [[10, 11, 12, 90, 91, 92]]
    cache.rollback()
    assert write(cache, [13]) == [[10, 11, 12, 13]]


def test_one_forward_far_beyond_the_reserve_fits():
    cache = KVCache([None, 4], reserve=2)
    assert write(cache, list(range(1000)))[0] == list(range(1000))


def test_mask_sizes_say_how_many_keys_a_forward_meets_and_where_they_start():
    cache = KVCache([None, 4])
    assert cache.get_mask_sizes(6, 0) == (6, 0)
    assert cache.get_mask_sizes(6, 1) == (6, 0)
    write(cache, list(range(6)))
    cache.commit(6)
    assert cache.get_mask_sizes(1, 0) == (7, 0)
    assert cache.get_mask_sizes(1, 1) == (4, 3)  # positions 3, 4, 5 and the query's own
    assert cache.get_mask_sizes(3, 1) == (6, 3)  # the first query still sees position 3


def test_transformers_is_told_which_layers_slide_and_that_nothing_is_static():
    cache = KVCache([None, 4])
    assert cache.is_sliding == [False, True]
    assert not cache.is_compileable
    assert cache.get_max_length() == -1
    assert not cache.is_initialized
    write(cache, [10])
    assert cache.is_initialized


def test_a_long_prompts_rows_are_given_back_by_a_sliding_layer_only():
    cache = KVCache([None, 4], reserve=10)
    write(cache, list(range(2000)))
    cache.commit(2000)
    full, sliding = cache.buffers
    address = full.keys.data_ptr()
    cache.compact()
    assert full.keys.data_ptr() == address
    assert sliding.keys.shape[2] <= 2 * (4 + layer_buffer.SLIDING_SPARE)
    assert write(cache, [2000, 2001])[1] == [1997, 1998, 1999, 2000, 2001]


ROUNDS = st.lists(
    st.tuples(
        st.lists(st.integers(1, 3), max_size=4),  # drafting forwards
        st.sets(st.integers(0, 4)),  # layers that the draft skips
        st.integers(1, 9),  # rows verified
        st.integers(0, 9),  # of which are kept
        st.booleans(),  # memory is given back
    ),
    max_size=14,
)


@settings(max_examples=150)
@given(
    windows=st.lists(st.sampled_from([None, 1, 2, 3, 5, 8]), min_size=1, max_size=5),
    prompt=st.integers(1, 30),
    reserve=st.integers(0, 40),
    spare=st.integers(0, 6),
    plan=ROUNDS,
)
def test_every_layer_sees_its_window_of_the_true_sequence(windows, prompt, reserve, spare, plan):
    """Against a list, under random drafts, verifications, commits and memory given back."""
    sequence: list[int] = []
    fresh = iter(range(10**6))

    def forward(count: int, scratch: list[int], skipped: set[int]) -> list[int]:
        new = [next(fresh) for _ in range(count)]
        layers = [layer for layer in range(len(windows)) if layer not in skipped]
        start = len(sequence) + len(scratch)
        for layer in layers:
            length, first = cache.get_mask_sizes(count, layer)
            window = windows[layer]
            assert first == (0 if window is None else max(0, start - window + 1))
            assert length == start + count - first
        for layer, seen in zip(layers, write(cache, new, layers), strict=True):
            assert seen == (sequence + scratch + new)[cache.buffers[layer].first_visible(start) :]
        return new

    before, layer_buffer.SLIDING_SPARE = layer_buffer.SLIDING_SPARE, spare
    try:
        cache = KVCache(windows, reserve)
        sequence += forward(prompt, [], set())
        cache.commit(prompt)
        for drafts, skipped, verified, kept, gives_back in plan:
            scratch: list[int] = []
            for count in drafts:
                scratch += forward(count, scratch, skipped)
            cache.rollback()
            new = forward(verified, [], set())
            cache.commit(min(kept, verified))
            sequence += new[:kept]
            if gives_back:
                cache.compact()
        for buffer, window in zip(cache.buffers, windows, strict=True):
            keys, values = buffer.tail(cache.committed)
            begin = 0 if window is None else max(0, len(sequence) - window + 1)
            assert torch.equal(keys, rows(sequence[begin:]))
            assert torch.equal(values, -keys)
            if window is not None and len(sequence) > 200:
                assert buffer.keys.shape[2] < 100  # does not grow with the sequence
    finally:
        layer_buffer.SLIDING_SPARE = before
