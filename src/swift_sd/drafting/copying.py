"""What came the last time behind the longest ending that the text has had before."""

from __future__ import annotations

from collections.abc import Iterable

from swift_sd.drafting.suffixes import Ending, SuffixAutomaton

ALTERNATIVES = 3  # continuations of the same ending


class Copies:
    """Continuations of the text so far that it has had before, the latest ones first."""

    def __init__(self) -> None:
        self._text = SuffixAutomaton()

    def __len__(self) -> int:
        return len(self._text.tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """The text goes on with `tokens`."""
        for token in tokens:
            self._text.add(token)

    @property
    def ending(self) -> Ending:
        """Of the text so far; see `SuffixAutomaton`."""
        return self._text.ending()

    def behind(self, ending: Ending, token: int) -> Ending:
        """The ending once `token` has come."""
        return self._text.behind(ending, token)

    def continuations(self, ending: Ending) -> list[tuple[int, float]]:
        """Tokens that came behind `ending` with how far each is trusted."""
        first = confidence(ending[1], self._text.ways(ending))
        return [
            (token, (1 - first) * first / (place + 1) if place else first)
            for place, token in enumerate(self._text.followers(ending, ALTERNATIVES))
        ]


def confidence(length: int, ways: int) -> float:
    """How far the latest continuation is trusted until it is known better.

    Measured over 18 answers of a 135M model: right in 0.36, 0.58, 0.78, 0.75, 0.88 of the places
    behind endings of 1, 2, 3, 4 … 9 and more tokens with one continuation, in 0.18 and 0.40 with
    two. Whether such continuations were right of late says little beyond that.

    Args:
        length: tokens of the ending that it came behind.
        ways: how many different tokens came behind that.
    """
    return length / (length + 1 + ways)
