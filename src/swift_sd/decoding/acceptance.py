"""Which drafted tokens come out: the path through the tree that the target's own choices take.

Nothing else is needed, for sampling either. A sampled token is the likeliest one after random noise
was added to the scores (`decoding.noise`); the noise belongs to the place in the response, not to
whoever looks at it. So the target's choice is fixed before anyone drafts, and a draft is right or
wrong about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from swift_sd.decoding.draft_tree import DraftTree


def accept(tree: DraftTree, choose: Callable[[int], int]) -> Iterator[tuple[int, int]]:
    """Walk down the tree for as long as it foresaw what the target chooses.

    Lazy: the choice at a row is asked for after the caller took every token before it. So whatever
    turns logits into that choice (logits processors, with state or without) sees exactly the
    prefixes, in the order, that it would see in plain decoding.

    Args:
        choose: the target's token behind a row, given that the path to the row was right.

    Yields:
        A row on the path and the token that follows it. The last of them was not in the tree: the
        bonus token.
    """
    row: int | None = 0
    while row is not None:
        token = choose(row)
        yield row, token
        row = tree.child(row, token)
