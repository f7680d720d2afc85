import random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from swift_sd.drafting.suffixes import SuffixAutomaton


def longest_repeated_ending(text):
    """Its length and all places at which it ended before, in the plainest way."""
    for length in range(len(text) - 1, 0, -1):
        ending = text[-length:]
        ends = [e for e in range(length, len(text)) if text[e - length : e] == ending]
        if ends:
            return length, ends
    return 0, []


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40))
@settings(max_examples=300)
def test_it_finds_the_longest_ending_that_occurred_before(text):
    automaton = SuffixAutomaton()
    for count, token in enumerate(text, 1):
        automaton.add(token)
        ending = automaton.ending()
        expected, ends = longest_repeated_ending(text[:count])
        assert ending[1] == expected
        assert set(automaton.followers(ending)) == {text[end] for end in ends}


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.lists(st.integers(0, 3)))
@settings(max_examples=200)
def test_looking_ahead_finds_the_longest_ending_that_something_came_behind(text, ahead):
    automaton = SuffixAutomaton()
    for token in text:
        automaton.add(token)
    ending = automaton.ending()
    coming = text[len(text) - ending[1] :]
    for token in ahead:
        ending, coming = automaton.behind(ending, token), [*coming, token]
        while coming and not contains(text[:-1], coming):
            coming = coming[1:]
        assert ending[1] == len(coming)
    assert set(automaton.followers(ending)) == {
        text[end]
        for end in range(len(coming), len(text))
        if coming and text[end - len(coming) : end] == coming
    }


def contains(text, part):
    return any(text[at : at + len(part)] == part for at in range(len(text) - len(part) + 1))


def test_of_several_continuations_the_latest_comes_first():
    automaton = SuffixAutomaton()
    for token in [1, 2, 3, 9, 1, 2, 4, 9, 1, 2]:
        automaton.add(token)
    assert automaton.ending()[1] == 3  # 9 1 2 came once before
    assert automaton.followers(automaton.ending()) == [4]
    for token in [8, 1, 2]:
        automaton.add(token)
    assert automaton.ending()[1] == 2
    assert automaton.followers(automaton.ending()) == [8, 4, 3]


def test_nothing_repeats():
    automaton = SuffixAutomaton()
    assert automaton.ending() == (0, 0)
    for token in range(5):
        automaton.add(token)
        assert automaton.ending() == (0, 0)
        assert automaton.followers((0, 0)) == []


class Counted(list):
    """A list that counts how often its items are read, together with all others of its kind."""

    reads = 0

    def __getitem__(self, place):
        Counted.reads += 1
        return super().__getitem__(place)


LENGTH, ELSEWHERE = 20_000, 9  # tokens; one that comes at the beginning only
TEXTS = {
    "random": random.Random(0).choices(range(7), k=LENGTH),
    "periodic": [place % 7 for place in range(LENGTH)],
    "constant": [0] * LENGTH,
}


@pytest.mark.parametrize("name", TEXTS)
def test_adding_and_asking_take_constant_time_on_average(name, monkeypatch):
    monkeypatch.setattr(Counted, "reads", 0)
    automaton = SuffixAutomaton()
    for which in ("_next", "_link", "_length", "_end"):
        setattr(automaton, which, Counted(getattr(automaton, which)))
    for place, token in enumerate([ELSEWHERE, *TEXTS[name]], 1):
        automaton.add(token)
        automaton.followers(automaton.ending())
        automaton.followers(automaton.behind(automaton.ending(), ELSEWHERE))
        assert Counted.reads <= 300 * place
    assert Counted.reads > LENGTH, "the lists must be those that are in use"
    assert len(automaton._link) <= 2 * place


@pytest.mark.parametrize("period", [1, 3])
def test_a_token_from_elsewhere_is_an_ending_of_its_own(period):
    """However many endings come before it, none of which it ever followed."""
    automaton = SuffixAutomaton()
    for token in [ELSEWHERE, *(place % period for place in range(500))]:
        automaton.add(token)
    ending = automaton.behind(automaton.ending(), ELSEWHERE)
    assert ending[1] == 1
    assert automaton.followers(ending) == [0]
    assert automaton.behind(automaton.ending(), 8) == (0, 0)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 6))
def test_a_few_followers_are_the_first_of_all(text, most):
    automaton = SuffixAutomaton()
    for token in text:
        automaton.add(token)
    for state, length in enumerate(automaton._length):
        every = automaton.followers((state, length))
        assert every == by_place(automaton, state) if length else not every
        assert automaton.ways((state, length)) == len(every)
        assert automaton.followers((state, length), most) == every[:most]


def by_place(automaton, state):
    """Followers of a state, sorted as a whole."""
    following = automaton._next[state]
    return sorted(following, key=lambda token: -automaton._end[following[token]])
