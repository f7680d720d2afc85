"""What is learned while it runs: on a tiny model with layers known to be superfluous."""

import itertools
import threading

import pytest
import torch

from swift_sd import ConfigError, LayerSet, Swift, SwiftConfig
from swift_sd.adapting import adaptation as adapting
from swift_sd.adapting.costs import Costs
from swift_sd.adapting.matchness import Window
from swift_sd.adapting.paper_search import PaperSearch
from swift_sd.adapting.prompt_view import PromptView
from swift_sd.adapting.rate_search import RateSearch
from swift_sd.model.sublayers import find_sublayers
from swift_sd.testing.families import tiny_model
from swift_sd.testing.planted import planted_model

EAGER = SwiftConfig(eager_search=True)
NEW = 48


@pytest.fixture(scope="module")
def planted():
    return planted_model(tiny_model("llama"), extra_layers=10)


def answer(swift, ids, new=NEW, **options):
    return swift.generate(
        ids, **{"do_sample": False, "max_new_tokens": new, "eos_token_id": None} | options
    )


def same_as_alone(swift, ids, **options):
    """One response through `swift`; whether it is what the model gives by itself."""
    torch.manual_seed(3)
    expected = answer(swift.model, ids, **options)
    torch.manual_seed(3)
    return torch.equal(answer(swift, ids, **options), expected)


def learner(swift):
    return swift._experience._adaptation


@pytest.fixture
def fixed_costs(monkeypatch):
    """What a search finds must not depend on how busy the machine is."""

    def costs(view, state, pace):
        depth = view.layer_set.depth
        return Costs(1.0, (1 / (3 * depth),) * depth, (2 / (3 * depth),) * depth, 0.0, 8)

    monkeypatch.setattr(adapting, "measured_costs", costs)
    monkeypatch.setattr(adapting.Pace, "verify", lambda self, rows: 1.0)


@pytest.mark.usefixtures("fixed_costs")
def test_the_planted_sublayers_are_found_within_a_bounded_number_of_forwards(planted, prompt):
    model, layers = planted
    swift = Swift(model, config=EAGER)
    for seed in range(6):
        assert same_as_alone(swift, prompt(16, seed))
    found = swift.layer_set
    assert len(found.attention & layers) + len(found.mlp & layers) >= 0.9 * 2 * len(layers)
    assert len(found.attention - layers) + len(found.mlp - layers) <= 1
    search = learner(swift).kinds.latest.search
    assert search.is_finished
    assert search.told <= 60
    assert "the search has ended" in swift.search_state


@pytest.mark.usefixtures("fixed_costs")
def test_at_its_usual_pace_it_spends_a_small_share_of_the_time(planted, prompt, monkeypatch):
    monkeypatch.setattr(adapting, "FIRST", 0.0)
    ticks = itertools.count()
    monkeypatch.setattr(adapting, "perf_counter", lambda: 1e3 * next(ticks))
    swift = Swift(planted[0])
    for seed in range(3):
        assert same_as_alone(swift, prompt(16, seed), new=80)
    learned = learner(swift)
    assert learned.kinds.latest.search is not None
    # What the first look takes is not known before; it took so long that no second one followed.
    assert learned._spent == 1e3 > adapting.MOST * learned._elapsed
    assert learned.told == 0


def test_short_answers_pay_for_no_search(planted, prompt, monkeypatch):
    monkeypatch.setattr(adapting.Pace, "step", property(lambda self: 1e6))
    swift = Swift(planted[0])
    assert same_as_alone(swift, prompt(16), new=80)
    assert learner(swift).told == 0
    assert learner(swift)._spent == 0


@pytest.mark.parametrize(
    "config", [EAGER, SwiftConfig(), SwiftConfig.paper(), SwiftConfig(skip_ratio=0.3)]
)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_the_output_is_the_models_own_while_it_learns(model_of, prompt, family, config):
    swift = Swift(model_of(family), config=config)
    for seed in range(2):
        assert same_as_alone(swift, prompt(20, seed))
    assert same_as_alone(swift, prompt(20, 5), do_sample=True, temperature=1.5)


def test_long_prompts_in_chunks_and_short_ones_are_learned_from_alike(planted, prompt):
    swift = Swift(planted[0], config=EAGER)
    assert same_as_alone(swift, prompt(2), new=20)
    assert same_as_alone(swift, prompt(70), new=20, prefill_chunk_size=16)
    assert learner(swift).told > 0


class CrashError(Exception):
    pass


@pytest.mark.parametrize("config", [EAGER, SwiftConfig.paper()])
def test_a_crash_between_ask_and_tell_loses_one_score_and_nothing_else(
    planted, prompt, monkeypatch, config
):
    swift = Swift(planted[0], config=config)
    assert same_as_alone(swift, prompt(16))
    before, scored = swift.layer_set, []

    def crash(self, view):
        scored.append(view.layer_set)
        raise CrashError

    search = learner(swift).search if config.skip_ratio else learner(swift).kinds.latest.search
    monkeypatch.setattr(Window, "matchness", crash)
    monkeypatch.setattr(type(search), "is_finished", False)
    for seed in range(3):
        with pytest.raises(CrashError):
            answer(swift, prompt(16, seed))
        assert swift.layer_set == before
    assert len(scored) == 3
    monkeypatch.undo()
    assert same_as_alone(swift, prompt(16, 7))


@pytest.mark.parametrize("value", [float("nan"), -1.0, 2.0])
def test_scores_that_are_no_numbers_are_never_believed(planted, prompt, monkeypatch, value):
    monkeypatch.setattr(Window, "matchness", lambda self, view: value)
    for config in (EAGER, SwiftConfig.paper()):
        swift = Swift(planted[0], config=config)
        before = None
        assert same_as_alone(swift, prompt(16))
        search = learner(swift).search if config.skip_ratio else learner(swift).kinds.latest.search
        assert (search.told, search.ignored > 0) == (0, True)
        before = swift.layer_set
        assert same_as_alone(swift, prompt(16, 1))
        assert swift.layer_set == before


@pytest.mark.parametrize("config", [EAGER, SwiftConfig(), SwiftConfig.paper()])
def test_responses_on_several_threads_do_not_meet(planted, prompt, config):
    swift = Swift(planted[0], config=config)
    expected = [answer(swift.model, prompt(16, seed)) for seed in range(6)]
    outputs, failures = {}, []

    def respond(seed):
        try:
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


class TestKindsOfInput:
    """The acceptance that a response sees is made up; the hidden states are made up too."""

    @pytest.fixture(autouse=True)
    def by_first_token(self, monkeypatch):
        def mean(self):
            return torch.nn.functional.one_hot(torch.tensor(self.kind), 8).double().numpy()

        def reading(self, tokens, cache, **options):
            self.kind = int(tokens[0, 0]) % 4
            return super(PromptView, self).forward(tokens, cache, **options)

        monkeypatch.setattr(PromptView, "mean", property(mean))
        monkeypatch.setattr(PromptView, "forward", reading)

    def test_a_change_founds_a_kind_and_going_back_costs_nothing(
        self, planted, prompt, monkeypatch
    ):
        swift = Swift(planted[0], config=EAGER)
        prompts = [torch.cat([torch.tensor([[kind + 4]]), prompt(15, kind)], 1) for kind in (0, 1)]
        for _ in range(3):
            assert same_as_alone(swift, prompts[0])
        first = learner(swift).kinds.latest
        # From now on drafts for the other kind are not accepted as before.
        saw = adapting.Adaptation.has_changed
        monkeypatch.setattr(adapting.Adaptation, "has_changed", lambda *_: True)
        answer(swift, prompts[1], new=2)
        monkeypatch.setattr(adapting.Adaptation, "has_changed", saw)
        second = learner(swift).kinds.latest
        assert second is not first
        assert not second.search.is_finished  # searched on from what is known
        lost = second.search.best
        for _ in range(40):
            second.search.tell(lost, 0.0, 32)
        assert second.best != first.best
        told = first.search.told
        for expected, kind in [(first, 0), (second, 1), (first, 0)]:
            assert same_as_alone(swift, prompts[kind], new=4)
            assert learner(swift).kinds.latest is expected
        assert swift.layer_set == first.best
        assert first.search.told <= told + 8  # it had been found already, or nearly
        assert "2 kinds of input" in swift.search_state

    @pytest.mark.parametrize("score", [0.0, 1.0])
    def test_a_set_that_is_of_no_use_for_an_unusual_prompt_is_found_out_before_it_drafts(
        self, planted, prompt, monkeypatch, score
    ):
        swift = Swift(planted[0], config=EAGER)
        prompts = [torch.cat([torch.tensor([[kind + 4]]), prompt(31, kind)], 1) for kind in (0, 1)]
        for _ in range(3):
            assert same_as_alone(swift, prompts[0])
        first = learner(swift).kinds.latest
        assert first.best.skip_ratio
        told, scored, scoring = first.search.told, [], Window.matchness

        def matchness(self, view):
            scored.append(view.layer_set)
            return score

        monkeypatch.setattr(Window, "matchness", matchness)
        assert same_as_alone(swift, prompts[1], new=2)
        assert scored[0] == first.best
        latest = learner(swift).kinds.latest
        if score:
            assert latest is first
            assert first.search.told > told
        else:
            assert latest is not first
            assert first.search.told == told  # it learned nothing wrong
            assert latest.promise == first.search.gain
            assert not swift.layer_set.skip_ratio
        monkeypatch.setattr(Window, "matchness", scoring)
        assert same_as_alone(swift, prompts[0], new=4)
        assert learner(swift).kinds.latest is first


class TestPaper:
    def test_it_switches_at_once_and_ends_by_its_rules(self, planted, prompt):
        model, _ = planted
        swift = Swift(model, config=SwiftConfig.paper())
        assert swift.layer_set == LayerSet.unified(15)
        scores = []
        for seed in range(8):
            assert same_as_alone(swift, prompt(16, seed), new=100)
            scores.append(learner(swift).search.best_score)
        search = learner(swift).search
        assert scores == sorted(scores)
        assert search.told > 0
        assert "paper's search" in swift.search_state
        size = 2 * 13
        assert len(search.best.attention) + len(search.best.mlp) in (int(size * 0.45), 14)
        if search.is_finished:
            told = search.told
            assert same_as_alone(swift, prompt(16, 9))
            assert search.told == told

    def test_nothing_is_scored_before_there_are_enough_generated_tokens(self, planted, prompt):
        swift = Swift(planted[0], config=SwiftConfig.paper())
        assert same_as_alone(swift, prompt(60), new=30)
        assert learner(swift).search.told == 0

    def test_when_sampling_the_generated_tokens_are_the_truth(self, planted, prompt, monkeypatch):
        targets = []
        made = Window.__init__

        def watched(self, target, state, tokens):
            targets.append(target)
            made(self, target, state, tokens)

        monkeypatch.setattr(Window, "__init__", watched)
        swift = Swift(planted[0], config=SwiftConfig.paper())
        assert same_as_alone(swift, prompt(16), do_sample=True)
        assert targets
        assert set(targets) == {None}

    def test_nothing_of_ours_runs_beside_it(self, planted):
        swift = Swift(planted[0], config=SwiftConfig.paper())
        drafter, adapter = swift._experience.drafting(do_sample=False)
        assert drafter.name == "layer_skip"
        assert adapter.reader(swift.model) is None
        assert isinstance(learner(swift).search, PaperSearch)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"skip_ratio": 0.0}, "skip_ratio is 0"),
        ({"skip_ratio": 1.5}, "skip_ratio is 1.5"),
        ({"skip_ratio": True}, "skip_ratio is True"),
        ({"skip_ratio": 0.5, "layer_set": LayerSet.none(5)}, "layer_set leaves nothing"),
        ({"eager_search": 1}, "eager_search is 1"),
        ({"eager_search": True, "skip_ratio": 0.5}, "no meaning with skip_ratio"),
        ({"eager_search": True, "max_draft_tokens": 0}, "no meaning with max_draft_tokens=0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        SwiftConfig(**settings)


def test_a_model_without_anything_to_skip_is_decoded_all_the_same(prompt):
    model = tiny_model("llama", num_hidden_layers=2)
    assert find_sublayers(model).depth == 2
    for config in (EAGER, SwiftConfig(), SwiftConfig.paper()):
        assert same_as_alone(Swift(model, config=config), prompt(16))


def test_a_search_is_cheap_to_ask_before_anything_is_known():
    search = RateSearch(Costs(1.0, (0.1,) * 5, (0.1,) * 5, 0.0, 8), lambda rows: 1.0)
    assert search.ask().depth == 5
