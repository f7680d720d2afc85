"""One verification: the target's forward over a draft, and its choices read from it row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter

import torch
from torch import Tensor

from swift_sd.decoding.acceptance import accept
from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.warping import leads
from swift_sd.model.target import Target


class Verification:
    """What the target says to a draft.

    A forward over several rows rounds differently from forwards over one row each, which is how
    plain decoding computes. Where the two best tokens are closer than that, the row is computed
    again on its own.

    Args:
        tolerance: how close they must be for it, in units of the rounding of their logits; 0 never
            computes a row again.
        clock: tells the seconds that this takes.

    Attributes:
        path: the rows that were asked for, each the right continuation of the one before.
        decided_again: how many of them were computed again.
        seconds_again: the time it took.
    """

    def __init__(
        self,
        target: Target,
        state: DecodingState,
        tree: DraftTree,
        tolerance: float,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._target = target
        self._state = state
        self._tree = tree
        self._clock = clock
        self._start = state.cache.committed
        rows = state.last_token_and(tree.tokens)  # [1, 1 + nodes]
        ancestry = None if tree.is_chain else tree.ancestry
        self._logits = target.verify(rows, state.cache, ancestry)  # [1, 1 + nodes, vocabulary]
        self._tolerance = tolerance * torch.finfo(self._logits.dtype).eps if len(tree) else 0.0
        self._positions: list[int] = []  # of the rows on the path, in the cache's scratch
        self._committed = 0
        self._read: dict[int, tuple[int, bool]] = {}
        self.path: list[int] = []
        self.decided_again = 0
        self.seconds_again = 0.0
        target.wait()  # what follows reads from the device at once: this costs nothing more

    def accept(self) -> Iterator[tuple[int, int]]:
        """Rows on the path with the token that follows each; see `acceptance.accept`.

        Take each token into the state before asking for the next.
        """
        return accept(self._tree, self._choose)

    @property
    def logits(self) -> Tensor:
        """Behind each row, `[1 + nodes, vocabulary]`, as the one forward computed them."""
        return self._logits[0]

    def commit(self, count: int) -> None:
        """Keep the cache's rows of the first `count` on the path, and forget all others."""
        self._state.cache.commit_path(self._positions[self._committed : count])
        self._committed = count

    def _choose(self, row: int) -> int:
        self.path.append(row)
        self._positions.append(self._start + row)
        state, logits, scores = self._state, self._logits[:, row], None
        if state.is_argmax:
            token, is_close = self._argmax(row)
            return state.choose(self._alone()) if is_close else token
        if self._tolerance:
            warping = state.warping
            guessed = warping.guess(state.tokens, logits)
            # Others than pure processors may be asked once only. What they add or forbid then
            # stands for the row alone as well.
            scores = guessed if warping.is_pure else warping.scores(state.tokens, logits)
            if self._is_close(logits, scores):
                logits = self._alone()
                again = warping.guess(state.tokens, logits)
                if warping.is_pure:
                    scores = again
                else:
                    scores = scores + (again - guessed).nan_to_num(0.0, 0.0, 0.0)
        return state.choose(logits, scores)

    def _argmax(self, row: int) -> tuple[int, bool]:
        """The best token of a row and whether another one is close."""
        if row not in self._read:
            # All rows at once, so that a device sends one answer; a CPU reads what is asked for.
            rows = range(row, row + 1) if self._logits.is_cpu else range(self._logits.shape[1])
            logits = self._logits[0, rows.start : rows.stop].float()
            if self._tolerance:
                tokens, lead, score = leads(logits)
                close = (lead <= self._tolerance * score.abs()).tolist()
            else:
                tokens, close = logits.argmax(dim=-1), [False] * len(rows)
            self._read |= zip(rows, zip(tokens.tolist(), close, strict=True), strict=True)
        return self._read[row]

    def _is_close(self, logits: Tensor, scores: Tensor) -> bool:
        noise = self._state.noise.ahead(0, scores) if self._state.noise else None
        token, lead, score = leads(scores, noise)
        # Whichever is larger: processors may stretch the scores or move them.
        size = torch.maximum(score.abs(), logits[0, token].to(score).abs())
        return bool(lead <= self._tolerance * size)

    def _alone(self) -> Tensor:
        """The logits `[1, vocabulary]` of the last row on the path, from a forward over it alone.

        Its keys and values are written anew, behind those of the path before it. A row keeps or
        lowers its place when a path is committed, so that rows further down are not overwritten.
        """
        begin = self._clock()
        place = len(self.path) - 1
        self.commit(place)
        logits = self._target.verify(self._state.last_token, self._state.cache)
        self._positions[place] = self._start + place
        self._target.wait()
        self.decided_again += 1
        self.seconds_again += self._clock() - begin
        return logits[:, 0]
