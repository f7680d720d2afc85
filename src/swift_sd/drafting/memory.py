"""What drafts remember of the texts of earlier responses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from swift_sd.drafting.recycling import Successors
from swift_sd.model.shortlist import Shortlist

MOST = 8  # of some 40 MB each when full


@dataclass(frozen=True, eq=False)
class Memory:
    """Tokens of earlier texts; all else that is learned, of speeds and layers, holds none.

    How quickly a text is answered tells whether something like it is remembered. So a memory is
    shared only by those who may know of each other's texts.

    Attributes:
        successors: what the target nearly said after each token.
        shortlist: tokens that drafts choose among; None where they read the whole head.
    """

    successors: Successors
    shortlist: Shortlist | None


class Memories:
    """One for each name; of many names, those used last.

    Args:
        make: makes an empty one.
        most: how many are kept.
    """

    def __init__(self, make: Callable[[], Memory], most: int = MOST) -> None:
        self._make, self._most = make, most
        self._named: OrderedDict[str | None, Memory] = OrderedDict()
        self._changing = Lock()  # of responses on several threads

    def of(self, name: str | None) -> Memory:
        """The memory of that name, empty at first; None is a name too."""
        with self._changing:
            memory = self._named.pop(name, None) or self._make()
            self._named[name] = memory
            if len(self._named) > self._most:
                self._named.popitem(last=False)
            return memory
