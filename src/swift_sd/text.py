"""Token ids into text, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer


class TextPieces(TextStreamer):
    """Turns tokens into text that can be printed at once: nothing in it changes later."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self._ready: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers with each piece."""
        self._ready.append(text)

    def add(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text that `tokens` complete."""
        put: Any = self.put
        for token in tokens:
            put(torch.tensor([token], device="cpu"))
        return self._taken()

    def finish(self) -> Iterator[str]:
        """What is left at the end."""
        end: Any = self.end
        end()
        return self._taken()

    def _taken(self) -> Iterator[str]:
        ready, self._ready = self._ready, []
        return (piece for piece in ready if piece)
