"""The longest ending of a text that it has contained before, and where that was."""

from __future__ import annotations

from heapq import nlargest

Ending = tuple[int, int]  # a state and the length of one of its substrings: see `ending`
REMEMBERED = 8  # endings of a token whose latest place is noted; of others an earlier one is known
# Endings that are tried for a follower. Of text few occur at different places, but of text with a
# period as many as it has periods, and looking through all of them would cost more and more.
TRIED = 64


class SuffixAutomaton:
    """Knows every substring of a growing text; adding a token takes constant time on average.

    Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text". A state stands
    for substrings that end at the same places; its link is the longest of their endings that ends
    at other places too. So the link of the whole text's state is the longest ending seen before.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        self._end = [-1]  # a place at which the state's substrings ended: the latest one known
        self._whole = 0

    def add(self, token: int) -> None:
        """Append a token."""
        self._remember()
        place = len(self.tokens)
        self.tokens.append(token)
        new = self._state({}, length=self._length[self._whole] + 1, end=place)
        state = self._whole
        while state >= 0 and token not in self._next[state]:
            self._next[state][token] = new
            state = self._link[state]
        if state < 0:
            self._link[new] = 0
        else:
            self._link[new] = self._shared(state, token)
        self._whole = new

    def ending(self) -> Ending:
        """The longest ending that occurred before: its state and its length, 0 if there is none."""
        state = max(self._link[self._whole], 0)
        return state, self._length[state]

    def behind(self, ending: Ending, token: int) -> Ending:
        """The longest ending with a follower, had `token` come behind a text with this `ending`.

        Where none of the `TRIED` longest endings goes on with `token`, that is `token` alone.
        """
        state, length = ending
        for _ in range(TRIED):
            if not state or token in self._next[state]:
                break
            state = self._link[state]
            length = self._length[state]
        else:
            state, length = 0, 0
        if token not in self._next[state]:
            return 0, 0
        state, length = self._next[state][token], length + 1
        while not self._next[state]:  # only the end of the text is like that
            state = self._link[state]
            length = self._length[state]
        return state, length

    def ways(self, ending: Ending) -> int:
        """How many different tokens ever followed `ending`; 0 if its length is 0."""
        state, length = ending
        return len(self._next[state]) if length else 0

    def followers(self, ending: Ending, most: int | None = None) -> list[int]:
        """Tokens that ever followed `ending`, the latest first, all of them or the first `most`.

        There are none if its length is 0.
        """
        following, ways = self._next[ending[0]], self.ways(ending)
        count = ways if most is None else min(most, ways)
        return nlargest(count, following, key=lambda token: self._end[following[token]])

    def _remember(self) -> None:
        """The longest endings occur here, too: the next time this is their latest place."""
        state = self._link[self._whole]
        for _ in range(REMEMBERED):
            if state <= 0:
                break
            self._end[state] = len(self.tokens) - 1
            state = self._link[state]

    def _shared(self, state: int, token: int) -> int:
        """The state of the ending that is `state`'s, continued by `token`; split off if need be."""
        target = self._next[state][token]
        if self._length[target] == self._length[state] + 1:
            return target
        clone = self._state(
            dict(self._next[target]), length=self._length[state] + 1, end=self._end[target]
        )
        self._link[clone] = self._link[target]
        self._link[target] = clone
        while state >= 0 and self._next[state].get(token) == target:
            self._next[state][token] = clone
            state = self._link[state]
        return clone

    def _state(self, following: dict[int, int], length: int, end: int) -> int:
        self._next.append(following)
        self._link.append(-1)
        self._length.append(length)
        self._end.append(end)
        return len(self._link) - 1
