"""The target: the user's own model, exactly as it is."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from swift_sd.model.kv_cache import KVCache
from swift_sd.model.view import View


class Verifier(Protocol):
    """What `View.forward` is, over several rows of one sequence behind a prompt."""

    def forward(self, tokens: Tensor, cache: KVCache, *, ancestry: Tensor | None = None) -> Tensor:
        """See `View.forward`."""
        ...


class Target(View):
    """Reads prompts and verifies drafts; what it commits is what plain decoding computes.

    Args:
        module: the model.
        verifier: what verifies in its place, giving the same to the bit, however many rows.
        reader: what reads prompts in its place, giving the same to the bit.
    """

    def __init__(
        self, module: nn.Module, verifier: Verifier | None = None, reader: View | None = None
    ) -> None:
        super().__init__(module)
        self._verifier = verifier
        self._reader: View = reader or self

    def prefill(self, tokens: Tensor, cache: KVCache, chunk: int | None = None) -> Tensor:
        """Read the part of the prompt that is not in `cache` yet, and commit it.

        Args:
            tokens: `[batch, new]`, int64, at least one.
            chunk: read at most this many tokens a forward, to bound memory; None for all at once.

        Returns:
            Logits of the last position, `[batch, vocabulary]`.
        """
        size = chunk or tokens.shape[1]
        for begin in range(0, tokens.shape[1], size):
            piece = tokens[:, begin : begin + size]
            logits = self._reader.forward(piece, cache, keep=1)
            cache.commit(piece.shape[1])
        cache.compact()
        return logits[:, -1]

    def verify(self, tokens: Tensor, cache: KVCache, ancestry: Tensor | None = None) -> Tensor:
        """Logits after each of `tokens`, `[batch, new, vocabulary]`; nothing is committed yet.

        Args:
            ancestry: how they follow each other, see `View.forward`; None for one by one.
        """
        if self._verifier is not None:
            return self._verifier.forward(tokens, cache, ancestry=ancestry)
        return self.forward(tokens, cache, ancestry=ancestry)
