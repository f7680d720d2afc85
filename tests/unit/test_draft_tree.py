import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from swift_sd.decoding.draft_tree import DraftTree

#      row 1 - row 2 - row 5
# row 0 <       \ row 4
#      row 3
BUSHY = DraftTree([10, 11, 12, 13, 14], [-1, 0, -1, 0, 1], [0.9, 0.8, 0.1, 0.2, 0.7])


@st.composite
def parents(draw, most=30):
    return [draw(st.integers(-1, node - 1)) for node in range(draw(st.integers(0, most)))]


def test_rows_see_themselves_and_those_before_them():
    assert BUSHY.ancestry.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]
    assert BUSHY.main_chain == [1, 2, 5]


@given(parents())
@settings(max_examples=200)
def test_doubling_finds_what_walking_finds(parents):
    tree = DraftTree([0] * len(parents), parents)
    walked = torch.zeros(len(parents) + 1, len(parents) + 1, dtype=torch.bool)
    for row in range(len(parents) + 1):
        at = row
        while True:
            walked[row, at] = True
            if at == 0:
                break
            at = parents[at - 1] + 1
    assert torch.equal(tree.ancestry, walked)


def test_a_chain_is_a_tree():
    chain = DraftTree.chain([4, 5, 6])
    assert chain.is_chain
    assert chain.main_chain == [1, 2, 3]
    assert torch.equal(chain.ancestry, torch.ones(4, 4).tril().bool())
    assert DraftTree([4, 5, 6], [-1, 0, 1]) == DraftTree([4, 5, 6], [-1, 0, 1])
    assert not BUSHY.is_chain


def test_nothing_is_a_tree():
    empty = DraftTree()
    assert (len(empty), empty.is_chain, empty.main_chain) == (0, True, [])
    assert empty.ancestry.tolist() == [[True]]
    assert empty.child(0, 3) is None


def test_of_two_equal_siblings_the_first_counts():
    tree = DraftTree([7, 7, 8], [-1, -1, 1])
    assert tree.child(0, 7) == 1
    assert tree.child(2, 8) == 3
    assert tree.child(1, 8) is None


def test_accepted_rows():
    assert BUSHY.accepted([0, 1, 2], [10, 11, 99]) == [1, 2]
    assert BUSHY.accepted([0, 3], [12, 0]) == [3]
    assert BUSHY.accepted([0, 1], [10, 13]) == [1, 4]  # ended with a drafted token


def test_a_part_keeps_its_shape():
    part = BUSHY.kept([0, 3, 2])
    assert (list(part.tokens), list(part.parents)) == ([10, 13, 12], [-1, 0, -1])
    assert list(part.chances) == [0.9, 0.2, 0.1]
    assert BUSHY.kept(range(5)) is BUSHY


@pytest.mark.parametrize(
    ("tokens", "parents", "chances"),
    [([1], [], ()), ([1], [0], ()), ([1, 2], [-1, -2], ()), ([1, 2], [-1, 0], [0.5])],
)
def test_what_is_no_tree_is_refused(tokens, parents, chances):
    with pytest.raises(ValueError, match=r"tokens with|before its parent"):
        DraftTree(tokens, parents, chances)
