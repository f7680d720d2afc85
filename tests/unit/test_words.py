"""What the search is doing is told in words, whatever its state."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from swift_sd import LayerSet
from swift_sd.adapting.kinds import Kind, Kinds
from swift_sd.adapting.words import described

SET = LayerSet(6, [2], [3])


def learned(*kinds: Kind) -> Any:
    known = Kinds()
    for kind in kinds:
        known.add(kind)
    return SimpleNamespace(kinds=known)


def searched(**changes: Any) -> Kind:
    facts = {"best": SET, "gain": 1.5, "hope": 1.5, "told": 7, "is_finished": False, **changes}
    search: Any = SimpleNamespace(**facts)
    return Kind(np.zeros(1), search=search)


@pytest.mark.parametrize("kinds", [(), (Kind(np.zeros(1)),)])
def test_before_anything_is_known(kinds):
    assert "nothing is known yet" in described(learned(*kinds))


def test_what_a_profile_says():
    kind = Kind(np.zeros(1), saved={"best": SET.to_dict()})
    assert described(learned(kind)) == f"known from a profile: {SET}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "goes on after 7 candidates: so far"),
        ({"told": 1}, "goes on after 1 candidate:"),
        ({"is_finished": True}, "has ended after 7 candidates: "),
        ({"best": LayerSet.none(6), "gain": 1.0, "hope": 1.3}, "no set has proved worth skipping"),
        ({"best": LayerSet.none(6), "gain": 1.0, "hope": 1.0}, "little is to be hoped for"),
        (
            {"best": LayerSet.none(6), "gain": 1.0, "is_finished": True},
            "no set of sublayers is worth skipping here",
        ),
    ],
)
def test_what_a_search_has_come_to(changes, words):
    said = described(learned(searched(**changes)))
    assert words in said
    assert ("1.50x plain decoding" in said) == (not changes.get("best"))


def test_several_kinds():
    assert "2 kinds of input are told apart" in described(learned(searched(), searched()))
