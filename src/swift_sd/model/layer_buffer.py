"""Keys and values of one layer: where they lie, and how room is made for more."""

from __future__ import annotations

import torch
from torch import Tensor

GROWTH = 1.5  # a full buffer is replaced by one this much larger
SLIDING_SPARE = 256  # rows that a sliding layer writes before it moves its window to the front


class LayerBuffer:
    """Keys and values of one layer, `[batch, kv_heads, rows, head_dim]` each.

    Row 0 holds position `origin`: 0 for full attention; a layer with a sliding window forgets what
    lies before its window, now and then, all at once.
    """

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.origin = 0

    @property
    def is_sliding(self) -> bool:
        """Whether the layer attends to a window only; transformers' mask builders ask."""
        return self.window is not None

    def first_visible(self, position: int) -> int:
        """The earliest position that a query at `position` may attend to."""
        return 0 if self.window is None else max(0, position - self.window + 1)

    def write(
        self, keys: Tensor, values: Tensor, start: int, committed: int, reserve: int
    ) -> tuple[Tensor, Tensor]:
        """Store rows at positions `start` … and return all that these queries can see, as views."""
        count = keys.shape[2]
        end = start + count
        if self.keys is None or end - self.origin > self.keys.shape[2]:
            self._make_room(keys, values, start, end, self.first_visible(committed), reserve)
        assert self.keys is not None
        assert self.values is not None
        row = start - self.origin
        self.keys.narrow(2, row, count).copy_(keys)
        self.values.narrow(2, row, count).copy_(values)
        first = self.first_visible(start)
        return (
            self.keys.narrow(2, first - self.origin, end - first),
            self.values.narrow(2, first - self.origin, end - first),
        )

    def room(
        self, start: int, count: int, committed: int, reserve: int
    ) -> tuple[Tensor, Tensor, int]:
        """The buffers, with room for `count` rows at positions `start` …, and the first's row."""
        assert self.keys is not None
        assert self.values is not None
        if start + count - self.origin > self.keys.shape[2]:
            keep_from = self.first_visible(committed)
            self._make_room(self.keys, self.values, start, start + count, keep_from, reserve)
        return self.keys, self.values, start - self.origin

    @property
    def device(self) -> torch.device:
        """Where the rows are, once there are any."""
        assert self.keys is not None
        return self.keys.device

    def move(self, positions: Tensor, to: int) -> None:
        """Copy the rows at `positions`, `[n]`, int64, to the positions from `to` on."""
        assert self.keys is not None
        assert self.values is not None
        rows = positions - self.origin if self.origin else positions
        for rows_of in (self.keys, self.values):
            rows_of.narrow(2, to - self.origin, len(positions)).copy_(rows_of.index_select(2, rows))

    def _make_room(
        self, keys: Tensor, values: Tensor, start: int, end: int, keep_from: int, reserve: int
    ) -> None:
        """Replace the buffers by ones with room up to `end`, keeping [keep_from, start)."""
        if self.window is not None:
            rows = end - keep_from + min(self.window, SLIDING_SPARE)
        elif self.keys is None:
            rows = max(end, reserve)
        else:
            rows = max(end, int(GROWTH * self.keys.shape[2]))
        new_keys = self._moved(self.keys, keys, rows, keep_from, start)
        new_values = self._moved(self.values, values, rows, keep_from, start)
        # Together and last: should memory run out above, the old ones are still right.
        self.keys, self.values, self.origin = new_keys, new_values, keep_from

    def _moved(self, old: Tensor | None, like: Tensor, rows: int, begin: int, end: int) -> Tensor:
        new = like.new_empty(like.shape[0], like.shape[1], rows, like.shape[3])
        if old is not None and end > begin:
            new.narrow(2, 0, end - begin).copy_(old.narrow(2, begin - self.origin, end - begin))
        return new

    def compact(self, committed: int) -> None:
        """Give back what a long prompt left in a sliding layer before its window."""
        if self.window is None or self.keys is None or self.values is None:
            return
        if self.keys.shape[2] > 2 * (self.window + SLIDING_SPARE):
            keep = self.first_visible(committed)
            self._make_room(self.keys, self.values, committed, committed, keep, 0)

    def load(self, keys: Tensor, values: Tensor, length: int, reserve: int) -> None:
        """Start from the last rows of a prefix of `length` positions, which are copied."""
        self.origin = length - keys.shape[2]
        self._make_room(keys, values, self.origin, length, self.origin, reserve)
        assert self.keys is not None
        assert self.values is not None
        self.keys.narrow(2, 0, keys.shape[2]).copy_(keys)
        self.values.narrow(2, 0, values.shape[2]).copy_(values)

    def copied(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Copies of the rows at positions `begin` to `end` - 1."""
        assert self.keys is not None
        assert self.values is not None
        row, count = begin - self.origin, end - begin
        return self.keys.narrow(2, row, count).clone(), self.values.narrow(2, row, count).clone()

    def restore(self, begin: int, keys: Tensor, values: Tensor) -> None:
        """Put rows that were copied back to the positions from `begin` on."""
        assert self.keys is not None
        assert self.values is not None
        row, count = begin - self.origin, keys.shape[2]
        self.keys.narrow(2, row, count).copy_(keys)
        self.values.narrow(2, row, count).copy_(values)

    def tail(self, length: int) -> tuple[Tensor, Tensor]:
        """Copies of the rows below position `length` that later queries can still see."""
        return self.copied(self.first_visible(length), length)
