"""Searches on scores whose law is known; any order of asking and telling."""

import json
import math

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from swift_sd import LayerSet
from swift_sd.adapting.costs import Costs
from swift_sd.adapting.paper_search import PaperSearch
from swift_sd.adapting.rate_search import RateSearch
from swift_sd.adapting.search import Search
from swift_sd.errors import LayerSetError


def costs_of(depth):
    return Costs(1.0, (1 / (3 * depth),) * depth, (2 / (3 * depth),) * depth, 0.0, 8)


def plain(rows):
    return 1.0


SEARCHES = {
    "paper": lambda: PaperSearch(6, 0.5, suggest=lambda sets, scores, seed: sets[scores.argmax()]),
    "rate": lambda: RateSearch(costs_of(6), plain, max_draft=5),
}
score = st.one_of(st.floats(0, 1), st.floats(allow_nan=True))


@pytest.mark.parametrize("kind", SEARCHES)
@given(calls=st.lists(st.one_of(st.none(), st.tuples(st.booleans(), score, st.integers(-2, 64)))))
@settings(max_examples=30)
def test_any_sequence_of_asks_and_tells_leaves_a_valid_search(kind, calls):
    search: Search = SEARCHES[kind]()
    heard = 0
    for call in calls:
        if call is None:
            search.ask()
            continue
        asks, value, trials = call
        search.tell(search.ask() if asks else LayerSet(6, {2}, {3}), value, trials)
        heard += 0 <= value <= 1 and trials >= 1
    assert search.best.depth == 6
    assert search.told == heard
    assert search.ask().depth == 6


OPERATIONS = st.sampled_from(["ask", "tell", "resume", "fork", "save and load"])


@given(calls=st.lists(st.tuples(OPERATIONS, score, st.integers(-2, 64)), max_size=40))
@settings(max_examples=60)
def test_whatever_happens_to_it_our_search_stays_valid(calls):
    search, candidate = SEARCHES["rate"](), LayerSet(6, {2}, {3})
    for name, value, trials in calls:
        if name == "ask":
            candidate = search.ask()
        elif name == "tell":
            search.tell(candidate, value, trials)
        elif name == "resume":
            search.resume()
            assert not search.is_finished
        elif name == "fork":
            search = search.fork()
        else:
            saved = json.loads(json.dumps(search.to_dict(), allow_nan=False))
            loaded = RateSearch(costs_of(6), plain, max_draft=5)
            loaded.restore(saved)
            assert (loaded.told, loaded.is_finished) == (search.told, search.is_finished)
            search = loaded
        assert search.best.depth == 6
        assert 1 <= search.gain <= search.hope < math.inf


@pytest.mark.parametrize("kind", SEARCHES)
@pytest.mark.parametrize("value", [math.nan, -0.1, 1.1, math.inf, -math.inf])
def test_what_is_no_matchness_is_counted_and_never_chosen(kind, value):
    search, odd = SEARCHES[kind](), LayerSet(6, {4}, {1})
    before = search.best
    search.tell(odd, value, 32)
    search.tell(odd, 1.0, 0)
    assert (search.told, search.ignored) == (0, 2)
    assert search.best == before


@pytest.mark.parametrize("kind", SEARCHES)
def test_a_set_for_another_model_is_refused(kind):
    with pytest.raises(LayerSetError):
        SEARCHES[kind]().tell(LayerSet.none(7), 0.5, 32)


@pytest.mark.parametrize("kind", SEARCHES)
def test_the_same_seed_asks_the_same(kind):
    first, second = SEARCHES[kind](), SEARCHES[kind]()
    for turn in range(40):
        candidate = first.ask()
        assert candidate == second.ask()
        for search in (first, second):
            search.tell(candidate, turn % 7 / 7, 32)
    assert first.best == second.best


@pytest.mark.parametrize("depth", [1, 2])
def test_where_nothing_may_be_skipped_there_is_nothing_to_search(depth):
    for search in (PaperSearch(depth, 0.5), RateSearch(costs_of(depth), plain)):
        assert search.ask() == search.best == LayerSet.none(depth)
        search.tell(search.best, 1.0, 32)
        assert search.is_finished
