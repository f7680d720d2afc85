"""What goes wrong while something is learned, and what happens at once: nothing is lost by it."""

import threading

import pytest
import torch

from swift_sd import Swift, SwiftConfig
from swift_sd.adapting import adaptation
from swift_sd.adapting.matchness import Window
from swift_sd.adapting.paper_search import PaperSearch
from swift_sd.adapting.rate_search import RateSearch

EAGER = SwiftConfig(eager_search=True)
OURS = [
    (adaptation, "measured_influence"),
    (adaptation, "draft_costs"),
    (RateSearch, "__init__"),
    (RateSearch, "ask"),
    (RateSearch, "tell"),
    (Window, "matchness"),
]
PAPERS = [(PaperSearch, "ask"), (PaperSearch, "tell"), (Window, "matchness")]


class CrashError(Exception):
    pass


def crash(*args, **kwargs):
    raise CrashError


@pytest.mark.parametrize(
    ("config", "place"),
    [*((EAGER, place) for place in OURS), *((SwiftConfig.paper(), place) for place in PAPERS)],
    ids=lambda value: f"{value[0].__name__}.{value[1]}" if isinstance(value, tuple) else None,
)
def test_behind_a_crash_anywhere_everything_goes_on(
    planted, prompt, monkeypatch, clock, config, place, answer, same_as_alone, learner
):
    swift = Swift(planted[0], config=config, clock=clock)
    for seed in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(*place, crash)
            with pytest.raises(CrashError):
                answer(swift, prompt(16, seed))
    assert same_as_alone(swift, prompt(16, 7))
    search = learner(swift).search if config.skip_ratio else learner(swift).kinds.latest.search
    assert search.told > 0


@pytest.mark.parametrize("config", [EAGER, SwiftConfig.paper()])
def test_a_crash_between_ask_and_tell_loses_one_score_and_nothing_else(
    planted, prompt, monkeypatch, clock, config, answer, same_as_alone, learner
):
    swift = Swift(planted[0], config=config, clock=clock)
    assert same_as_alone(swift, prompt(16))
    before, scored = swift.layer_set, []

    def scores(self, view):
        scored.append(view.layer_set)
        raise CrashError

    search = learner(swift).search if config.skip_ratio else learner(swift).kinds.latest.search
    monkeypatch.setattr(Window, "matchness", scores)
    monkeypatch.setattr(type(search), "is_finished", False)
    for seed in range(3):
        with pytest.raises(CrashError):
            answer(swift, prompt(16, seed))
        assert swift.layer_set == before
    assert len(scored) == 3
    monkeypatch.undo()
    assert same_as_alone(swift, prompt(16, 7))


@pytest.mark.parametrize("config", [EAGER, SwiftConfig(), SwiftConfig.paper()])
def test_responses_on_several_threads_do_not_meet(planted, prompt, clock, config, answer, learner):
    swift = Swift(planted[0], config=config, clock=clock)
    expected = [answer(swift.model, prompt(16, seed)) for seed in range(6)]
    outputs, failures, begin = {}, [], threading.Barrier(6)

    def respond(seed):
        try:
            begin.wait(60)
            outputs[seed] = answer(swift, prompt(16, seed))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=respond, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(torch.equal(outputs[seed], expected[seed]) for seed in range(6))
    if config.eager_search:
        learned = learner(swift)
        told = [kind.search.told for kind in learned.kinds if kind.search is not None]
        assert 0 < learned.told <= sum(told)  # a kind that was split off knows what both were told
        again = Swift(swift.model, config=config, profile=swift.profile)
        assert again.layer_set == swift.layer_set
