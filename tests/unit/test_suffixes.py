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
@settings(max_examples=300, deadline=None)
def test_it_finds_the_longest_ending_that_occurred_before(text):
    automaton = SuffixAutomaton()
    for count, token in enumerate(text, 1):
        automaton.add(token)
        ending = automaton.ending()
        expected, ends = longest_repeated_ending(text[:count])
        assert ending[1] == expected
        assert set(automaton.followers(ending)) == {text[end] for end in ends}


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.lists(st.integers(0, 3)))
@settings(max_examples=200, deadline=None)
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


@pytest.mark.parametrize("length", [1000, 20_000])
def test_its_size_is_linear_in_the_text(length):
    automaton = SuffixAutomaton()
    for place in range(length):
        automaton.add(place * place % 7)
    assert len(automaton._link) <= 2 * length
