"""Tokens into pieces of text that end where a stop string begins."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from swift_sd.serve.jobs import Piece

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer shows for part of a character
LONGEST = 8  # tokens that one character may take; behind more of them the text is broken anyway


class Wording:
    """Token by token, the text of an answer.

    A token whose text is not a whole character yet lends it to the token that completes it. Text
    that may turn out to be the beginning of a stop string is held back until that is known.

    Args:
        tokenizer: decodes; special tokens have no text.
        stop: texts before which the answer ends.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._begin = self._end = 0  # of the last tokens whose text is known
        self._held: deque[Piece] = deque()
        self.stopped = False

    def add(self, token: int, origin: str) -> Iterator[Piece]:
        """Pieces that are certain now that `token` is known; sets `stopped` at a stop string."""
        self._ids.append(token)
        text = self._text_behind(self._end)
        is_whole = not text.endswith(INCOMPLETE) or len(self._ids) - self._end >= LONGEST
        if text and is_whole:
            self._begin, self._end = self._end, len(self._ids)
            self._held.append(Piece(text, origin))
        return self._released()

    def finish(self) -> Iterator[Piece]:
        """What is left when no more tokens come."""
        text = self._text_behind(self._end)
        if text and not self.stopped:
            self._end = len(self._ids)
            self._held.append(Piece(text, "plain"))
        released = [*self._released(), *([] if self.stopped else self._held)]
        self._held.clear()
        return iter(released)

    def _text_behind(self, known: int) -> str:
        """The text of the tokens behind the first `known`, in the context of a few before them."""
        before = self._decode(self._ids[self._begin : known])
        return self._decode(self._ids[self._begin :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)  # one sequence, not a batch
        return text

    def _released(self) -> Iterator[Piece]:
        if not self._stop:
            certain = list(self._held)
            self._held.clear()
            return iter(certain)
        text = "".join(piece.text for piece in self._held)
        found = [place for place in map(text.find, self._stop) if place >= 0]
        if found:
            self.stopped = True
            return iter(self._cut(min(found)))
        return iter(self._cut(len(text) - self._doubtful(text)))

    def _doubtful(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of a stop string."""
        return max(
            (
                length
                for stop in self._stop
                for length in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:length])
            ),
            default=0,
        )

    def _cut(self, count: int) -> list[Piece]:
        """Take the first `count` characters out of what is held."""
        taken: list[Piece] = []
        while count > 0:
            piece = self._held.popleft()
            taken.append(Piece(piece.text[:count], piece.origin))
            if len(piece.text) > count:
                self._held.appendleft(Piece(piece.text[count:], piece.origin))
            count -= len(piece.text)
        return taken
