"""What a drafter proposes: tokens that may follow the last one, as a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

ROOT = -1


@dataclass(frozen=True)
class DraftTree:
    """Proposed tokens, each behind its parent; a chain is a tree.

    Flat arrays, a parent before its children. When the tree is verified, row 0 is the last token of
    the sequence and row i + 1 is node i.

    Attributes:
        tokens: the proposed ids.
        parents: for each node the index of the node before it; `ROOT` (-1) behind the last token.
        chances: for each node the drafter's probability that the target takes it if it took the
            parent; what is learned about acceptance is learned against it.
        sources: for each node a name of what proposed it; its chance is of that kind.

    Raises:
        ValueError: the lists differ in length, or a node comes before its parent.
    """

    tokens: Sequence[int] = ()
    parents: Sequence[int] = ()
    chances: Sequence[float] = field(default=(), compare=False)
    sources: Sequence[str] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if len(self.parents) != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens with {len(self.parents)} parents")
        for name, given in (("chances", self.chances), ("sources", self.sources)):
            if given and len(given) != len(self.tokens):
                raise ValueError(f"{len(self.tokens)} tokens with {len(given)} {name}")
        if any(not ROOT <= parent < node for node, parent in enumerate(self.parents)):
            raise ValueError(f"a node comes before its parent: {list(self.parents)}")

    @classmethod
    def chain(cls, tokens: Sequence[int], chances: Sequence[float] = ()) -> DraftTree:
        """Each token behind the one before."""
        return cls(tokens, range(ROOT, len(tokens) - 1), chances)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def is_chain(self) -> bool:
        """Whether no token has an alternative."""
        return list(self.parents) == list(range(ROOT, len(self) - 1))

    @cached_property
    def ancestry(self) -> Tensor:
        """What each row sees of the others, `[rows, rows]`, bool: itself and the rows before it.

        Found by doubling: once every row knows its 2ᵏ nearest, its 2ᵏ⁺¹ nearest are those and the
        ones of the farthest among them. No loop over nodes.
        """
        farthest = torch.tensor([0, *(parent + 1 for parent in self.parents)], device="cpu")
        seen = torch.eye(len(self) + 1, dtype=torch.bool, device="cpu")
        while bool(farthest.any()):
            seen = seen | seen[farthest]
            farthest = farthest[farthest]
        seen[:, 0] = True
        return seen

    @cached_property
    def main_chain(self) -> list[int]:
        """The rows from the first node on that follow each other by each one's first child."""
        first: dict[int, int] = {}
        for node, parent in enumerate(self.parents):
            first.setdefault(parent + 1, node + 1)
        rows, row = [], 0
        while (row := first.get(row, 0)) != 0:
            rows.append(row)
        return rows

    def kept(self, nodes: Sequence[int]) -> DraftTree:
        """Only these nodes, in ascending order; the parent of each must be among them."""
        if len(nodes) == len(self):
            return self
        place = {ROOT: ROOT} | {node: index for index, node in enumerate(nodes)}
        return DraftTree(
            [self.tokens[node] for node in nodes],
            [place[self.parents[node]] for node in nodes],
            [self.chances[node] for node in nodes] if self.chances else (),
            [self.sources[node] for node in nodes] if self.sources else (),
        )

    def source(self, row: int) -> str:
        """What proposed the node of a row; empty if it is not said."""
        return self.sources[row - 1] if self.sources else ""

    def accepted(self, path: Sequence[int], tokens: Sequence[int]) -> list[int]:
        """The rows of those `tokens` that were proposed; token i came out behind row `path[i]`."""
        rows = (self.child(row, token) for row, token in zip(path, tokens, strict=False))
        return [row for row in rows if row is not None]

    def behind(self, row: int) -> list[int]:
        """The nodes proposed behind a row, in order."""
        return [node for node, parent in enumerate(self.parents) if parent + 1 == row]

    def child(self, row: int, token: int) -> int | None:
        """The row of `token` behind `row`; None if it was not proposed there."""
        return self._children.get((row, token))

    @cached_property
    def _children(self) -> dict[tuple[int, int], int]:
        places = list(zip(self.parents, self.tokens, strict=True))
        # From behind: where a token was proposed twice the first one counts.
        return {
            (parent + 1, token): node + 1
            for node, (parent, token) in reversed([*enumerate(places)])
        }


NOTHING = DraftTree()
