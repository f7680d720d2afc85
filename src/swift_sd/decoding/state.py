"""How far one response has come."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from swift_sd.decoding.noise import Noise
from swift_sd.decoding.stopping import Stopping
from swift_sd.decoding.warping import Warping, race, winner
from swift_sd.model.kv_cache import KVCache
from swift_sd.versions import CRITERIA_COME_FIRST

GROWTH = 1024  # ids to allocate at once


class DecodingState:
    """Tokens so far, the cache behind them, and the rules by which they go on.

    Args:
        tokens: the prompt, `[1, n]`, int64.
        cache: holds the keys and values of all tokens but the last once the prompt is read.
        warping, stopping: made from the request's processors and criteria.
        device: where the model is; logits processors work where the prompt is.
        context: positions that the model was made for.
        keep_scores, keep_logits: whether to record them for each new token.
    """

    def __init__(
        self,
        tokens: Tensor,
        cache: KVCache,
        warping: Warping,
        stopping: Stopping,
        *,
        device: torch.device | None = None,
        context: float = float("inf"),
        keep_scores: bool = False,
        keep_logits: bool = False,
    ) -> None:
        self.cache = cache
        self.warping = warping
        self.stopping = stopping
        self.scores: list[Tensor] | None = [] if keep_scores else None
        self.logits: list[Tensor] | None = [] if keep_logits else None
        self.noise = Noise() if warping.do_sample else None
        self._like: Tensor | None = None  # scores that noise was drawn for
        self.finished = False
        self.hear: Callable[[int], None] = lambda token: None  # told of each token
        self.device = device or tokens.device
        self._context = context
        self.prompt_length = self._length = tokens.shape[1]
        self._ids = _room(self._length + GROWTH, tokens)
        self._ids[:, : self._length] = tokens

    @property
    def length(self) -> int:
        """Number of tokens, prompt included."""
        return self._length

    @property
    def tokens(self) -> Tensor:
        """All tokens so far, `[1, length]`; a view whose numbers never change."""
        return self._ids[:, : self._length]

    @property
    def last_token(self) -> Tensor:
        """The newest token, `[1, 1]`, on the model's device: the one that the cache lacks."""
        return self._ids[:, self._length - 1 : self._length].to(self.device)

    def last_token_and(self, drafted: Sequence[int]) -> Tensor:
        """The row to verify: the newest token and the drafted ones, `[1, 1 + drafted]`."""
        if not drafted:
            return self.last_token
        row = torch.tensor([list(drafted)], dtype=torch.long, device=self.device)
        return torch.cat([self.last_token, row], dim=1)

    def room_for_draft(self) -> int:
        """Most tokens that may be drafted now.

        The target's own token must still fit behind them, and no draft may reach beyond the
        context: learned positions end there, and the target may well stop before.
        """
        room = self.stopping.room(self._length) - 1
        return int(max(0, min(room, self._context - 1 - self.cache.committed)))

    @property
    def is_argmax(self) -> bool:
        """Whether each next token is the argmax of its logits, and nothing else is asked for."""
        return self.warping.is_argmax and self.scores is None and self.logits is None

    def guess(self, drafted: Sequence[int], logits: Tensor) -> Tensor:
        """How likely a drafter with `logits` thinks each token to be what the target will choose.

        Args:
            drafted: what is guessed to come before it.
            logits: `[1, vocabulary]`.

        Returns:
            Chances `[vocabulary]`, float32, that sum to 1. When sampling they already count the
            noise with which the target will choose.
        """
        prefix = self.tokens_with(drafted) if self.warping.needs_prefix else self.tokens
        try:
            scores = self.warping.guess(prefix, logits)
        except ValueError:  # a draft may overflow where the target does not; some warpers object
            return torch.full_like(logits[0], torch.nan, dtype=torch.float32)
        if self.noise is None:
            return race(scores, None)[0]
        weights = race(scores, self.noise.ahead(len(drafted), scores))[0]
        return weights / weights.sum()

    def numbers(self, place: int, tokens: Sequence[int]) -> list[float]:
        """When sampling the noise of these tokens, `place` behind the next one; see `wins`."""
        assert self.noise is not None
        assert self._like is not None
        return self.noise.some(place, tokens, self._like)

    def tokens_with(self, drafted: Sequence[int]) -> Tensor:
        """All tokens so far and then `drafted`, `[1, length + drafted]`, until the next call."""
        end = self._length + len(drafted)
        self._make_room(end)
        if drafted:
            self._ids[0, self._length : end] = torch.tensor(
                list(drafted), dtype=torch.long, device=self._ids.device
            )
        return self._ids[:, :end]

    def choose(self, logits: Tensor, scores: Tensor | None = None) -> int:
        """The target's token for the next place, to be appended; to be asked once for each.

        Args:
            logits: the target's, `[1, vocabulary]`.
            scores: what `warping.scores` makes of them, if that is known already.
        """
        if self.is_argmax:
            return int(logits.float().argmax())  # argmax of 16-bit numbers is slow
        if scores is None:
            scores = self.warping.scores(self.tokens, logits)
        self._record(logits, scores)
        if self.noise is None:
            return winner(scores, None)
        self._like = scores
        return winner(scores, self.noise.take(scores))

    def append(self, token: int) -> None:
        """Add a token that the target chose, and find out whether the response ends with it."""
        self._make_room(self._length + 1)
        self._ids[0, self._length] = token
        self._length += 1
        scores = tuple(self.scores) if self.scores is not None else None
        if not CRITERIA_COME_FIRST:
            self.hear(token)
        self.finished = self.stopping.ends(self.tokens, token, scores)
        if CRITERIA_COME_FIRST:
            self.hear(token)

    def _record(self, logits: Tensor, scores: Tensor) -> None:
        """Keep a place's `[1, vocabulary]` logits and scores, where they were asked for."""
        if self.logits is not None:
            self.logits.append(logits.to(torch.float32, copy=True))
        if self.scores is not None:
            self.scores.append(scores)

    def _make_room(self, end: int) -> None:
        if end > self._ids.shape[1]:
            wider = _room(end + max(GROWTH, self._length), self._ids)
            wider[:, : self._length] = self.tokens
            self._ids = wider


def _room(count: int, like: Tensor) -> Tensor:
    """Storage for ids that can be written to whether or not the caller is in inference mode."""
    with torch.inference_mode(False):
        return torch.empty(1, count, dtype=torch.long, device=like.device)
