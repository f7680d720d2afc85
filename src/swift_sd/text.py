"""Token ids into text, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer


class TextPieces(TextStreamer):
    """Turns tokens into text that can be printed at once: words only when they are complete."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self._ready: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers with each piece."""
        self._ready.append(text)

    def add(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text that `tokens` complete."""
        for token in tokens:
            self.put(torch.tensor([token]))  # type: ignore[no-untyped-call]
        return self._taken()

    def finish(self) -> Iterator[str]:
        """What is left at the end."""
        self.end()  # type: ignore[no-untyped-call]
        return self._taken()

    def _taken(self) -> Iterator[str]:
        ready, self._ready = self._ready, []
        return (piece for piece in ready if piece)
