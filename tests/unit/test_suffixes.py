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
        length, behind = automaton.match()
        expected, ends = longest_repeated_ending(text[:count])
        assert length == expected
        if length:
            assert behind in ends
            assert text[behind - length : behind] == text[count - length : count]


def test_of_several_occurrences_a_later_one_is_continued():
    automaton = SuffixAutomaton()
    for token in [1, 2, 3, 9, 1, 2, 4, 9, 1, 2]:
        automaton.add(token)
    assert automaton.match() == (3, 6)  # 9 1 2 came once before
    for token in [8, 1, 2]:
        automaton.add(token)
    length, behind = automaton.match()
    assert (length, automaton.tokens[behind]) == (2, 8)


def test_nothing_repeats():
    automaton = SuffixAutomaton()
    assert automaton.match() == (0, 0)
    for token in range(5):
        automaton.add(token)
        assert automaton.match()[0] == 0


@pytest.mark.parametrize("length", [1000, 20_000])
def test_its_size_is_linear_in_the_text(length):
    automaton = SuffixAutomaton()
    for place in range(length):
        automaton.add(place * place % 7)
    assert len(automaton._link) <= 2 * length
