"""One preallocated cache that the target and all its cheaper views write into.

Positions below `committed` are the prefix that the target wrote. Positions from there on are
scratch: a draft writes them, `rollback` forgets them, the verifying forward writes over them, and
`commit` keeps those of the accepted tokens. All three move integers only; keys and values stay
where they are, but for those of a token that was accepted beside the main chain of a tree.

A view that skips an attention sublayer leaves a gap in that layer's scratch. Nobody reads it: the
verifying forward fills all layers before any of them reads so far. This is why lengths belong to
the cache and not to its layers, which transformers' own caches do the other way round.
"""

from __future__ import annotations

import inspect
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationMixin

from swift_sd.model.layer_buffer import LayerBuffer

CACHE_NAMES = ("cache", "past_key_values")  # of the argument: since transformers 5.24, and before


class KVCache(Cache):
    """The cache handed to the model.

    Args:
        windows: for each layer its sliding window in tokens, or None for full attention.
        reserve: positions to allocate at the first write; more are added geometrically.
    """

    def __init__(self, windows: Sequence[int | None], reserve: int = 0) -> None:
        self.buffers = [LayerBuffer(window) for window in windows]
        layers: Any = self.buffers
        super().__init__(layers=layers)
        self.reserve = reserve
        self.committed = 0
        self.cursor = 0
        self._reach = 0  # end of what was written since the last rollback

    def advance(self, count: int) -> None:
        """`count` positions were written by a forward; the next one writes behind them."""
        self.cursor += count
        self._reach = max(self._reach, self.cursor)

    def retreat(self, count: int) -> None:
        """The next forward writes over the last `count` scratch positions."""
        assert 0 <= count <= self.cursor - self.committed
        self.cursor -= count

    def room(self, buffer: LayerBuffer, count: int) -> tuple[Tensor, Tensor, int]:
        """Keys and values of a layer, to be written at the cursor, and the row where that is."""
        return buffer.room(self.cursor, count, self.committed, self.reserve)

    def rollback(self) -> None:
        """Forget everything written since the last commit."""
        self.cursor = self._reach = self.committed

    def commit(self, count: int) -> None:
        """Keep the first `count` scratch positions; the next forward writes behind them."""
        assert 0 <= count <= self._reach - self.committed
        self.committed += count
        self.cursor = self.committed

    def commit_path(self, positions: Sequence[int]) -> None:
        """Keep these scratch positions, in ascending order, moved together behind the prefix.

        Scratch behind them stays as it is until it is written over, so that a path can be committed
        in parts.
        """
        assert not positions or self.committed <= positions[0] <= positions[-1] < self._reach
        moved = [
            position
            for place, position in enumerate(positions, self.committed)
            if position != place
        ]
        if moved:
            first = self.committed + len(positions) - len(moved)
            with torch.inference_mode():  # which the rows were written in
                # Sent to the device once for all layers.
                places = torch.tensor(moved, dtype=torch.long, device=self.buffers[0].device)
                for buffer in self.buffers:
                    buffer.move(places, first)
        self.commit(len(positions))

    def can_rewind(self, count: int) -> bool:
        """Whether a forward could start `count` positions before the end: see `rewound`."""
        start = self.committed - count
        return start >= 0 and all(
            buffer.keys is not None and buffer.origin <= buffer.first_visible(start)
            for buffer in self.buffers
        )

    @contextmanager
    def rewound(self, count: int) -> Iterator[None]:
        """Inside, the last `count` positions count as scratch; afterwards they are as before.

        For forwards that run known tokens again: nothing that they write remains.
        """
        assert self.can_rewind(count)
        end = self.committed
        kept = [buffer.copied(end - count, end) for buffer in self.buffers]
        self.committed = self.cursor = end - count
        try:
            yield
        finally:
            with torch.inference_mode():
                for buffer, rows in zip(self.buffers, kept, strict=True):
                    buffer.restore(end - count, *rows)
            self.committed = end
            self.rollback()

    def compact(self) -> None:
        """Give back memory that only the prompt needed."""
        for buffer in self.buffers:
            buffer.compact(self.committed)

    # What transformers' attention layers and mask builders ask of a cache.

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write a layer's `[batch, kv_heads, new, head_dim]`; return all rows it may attend to."""
        return self.buffers[layer_idx].write(
            key_states, value_states, self.cursor, self.committed, self.reserve
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions before the next write, the same for all layers."""
        return self.cursor

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """How many keys the next queries meet in a layer, and the position of the first."""
        first = self.buffers[layer_idx].first_visible(self.cursor)
        return self.cursor + query_length - first, first

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: no limit."""
        return -1

    @property
    def is_compileable(self) -> bool:
        """False: lengths are Python integers."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Whether every layer has been written."""
        return all(buffer.keys is not None for buffer in self.buffers)


def cache_name(parameters: Container[str]) -> str:
    """What a function with these parameters calls its cache."""
    return next((name for name in CACHE_NAMES if name in parameters), CACHE_NAMES[-1])


def generate_cache_name() -> str:
    """What `generate` and its outputs call the cache in this version of transformers."""
    return cache_name(inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters)


def attention_windows(config: Any) -> list[int | None]:
    """Each layer's sliding window in tokens by a transformers configuration, None for full."""
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    return [getattr(layer, "sliding_window", None) for layer in cache.layers]


def read_prefix(source: Any, cache: KVCache) -> None:
    """Commit to the empty `cache` what a transformers `DynamicCache` holds."""
    length = source.get_seq_length()
    for buffer, layer in zip(cache.buffers, source.layers, strict=True):
        buffer.load(layer.keys, layer.values, length, cache.reserve)
    cache.committed = cache.cursor = length


def write_back(cache: KVCache, target: Any) -> None:
    """Make a transformers `DynamicCache` hold what is committed, as its own forward would have."""
    if not cache.committed:  # stopped before the prompt was read: some layers have no rows at all
        return
    for buffer, layer in zip(cache.buffers, target.layers, strict=True):
        keys, values = buffer.tail(cache.committed)
        if not layer.is_initialized:
            layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        if layer.is_sliding:
            layer.cumulative_length = cache.committed
