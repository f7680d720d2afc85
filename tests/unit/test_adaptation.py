"""What is learned while it runs: on a tiny model with layers known to be superfluous."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from swift_sd import ConfigError, LayerSet, Swift, SwiftConfig
from swift_sd.adapting import adaptation as adapting
from swift_sd.adapting import allowance
from swift_sd.adapting.adaptation import COSTS_LAST, Adaptation
from swift_sd.adapting.costs import Costs
from swift_sd.adapting.kinds import Kind, Met
from swift_sd.adapting.matchness import Window
from swift_sd.adapting.rate_search import STALE, RateSearch
from swift_sd.decoding.trace import Step
from swift_sd.drafting.layer_skip import OWN
from swift_sd.drafting.pace import Pace, Prior
from swift_sd.model.sublayers import find_sublayers
from swift_sd.testing.families import tiny_model

EAGER = SwiftConfig(eager_search=True)


def test_the_planted_sublayers_are_found_within_a_bounded_number_of_forwards(
    planted, prompt, clock, same_as_alone, learner
):
    model, layers = planted
    swift = Swift(model, config=EAGER, clock=clock)
    for seed in range(20):
        assert same_as_alone(swift, prompt(16, seed))
        if learner(swift).kinds.latest.search.is_finished:
            break
    found = swift.layer_set
    assert len(found.attention & layers) + len(found.mlp & layers) >= 0.9 * 2 * len(layers)
    assert len(found.attention - layers) + len(found.mlp - layers) <= 1
    search = learner(swift).kinds.latest.search
    assert search.is_finished
    assert search.told <= 120
    assert "the search has ended" in swift.search_state


def test_a_first_look_that_took_longer_than_expected_is_paid_off_before_any_score(
    planted, prompt, monkeypatch, clock, same_as_alone, learner
):
    monkeypatch.setattr(adapting, "seconds_to_measure", lambda *_: 0.0)
    swift = Swift(planted[0], clock=clock)
    ticks = itertools.count()
    monkeypatch.setattr(learner(swift), "_clock", lambda: 1e3 * next(ticks))
    for seed in range(3):
        assert same_as_alone(swift, prompt(16, seed), new=80)
    learned = learner(swift)
    assert learned.kinds.latest.search is not None
    assert learned._allowance._spent >= 1e3 > allowance.MOST * learned._allowance._elapsed
    assert learned.told == 0


@pytest.mark.parametrize(("hope", "share"), [(1.002, 0.004), (1.04, 0.04), (1.5, 0.06)])
def test_scoring_takes_its_share_of_a_long_stream_and_no_more(hope, share, planted, monkeypatch):
    """On a simulated clock: a round takes a second, scoring a candidate three."""
    now = [0.0]
    sublayers = find_sublayers(planted[0])
    pace = Pace(torch.device("cpu"), Prior(verify={1: 1.0, 33: 3.0}))
    learned = Adaptation(sublayers, pace, 8, lambda: None, lambda: planted[0], clock=lambda: now[0])
    best = LayerSet.none(sublayers.depth)
    search = SimpleNamespace(is_finished=False, hope=hope, gain=1.0, best=best)
    kind: Any = Kind(np.zeros(1), search=search)
    cache = SimpleNamespace(committed=1000, can_rewind=lambda tokens: True)
    state: Any = SimpleNamespace(
        cache=cache, length=1000, prompt_length=10, warping=SimpleNamespace(is_argmax=True)
    )

    def scores(*_):
        now[0] += 3.0

    monkeypatch.setattr(learned, "_search", scores)
    monkeypatch.setattr(learned, "_timed", math.inf)  # costs are never old
    met = Met(np.zeros(1), kind, 0.0, in_doubt=False)
    for round_ in range(1, 3001):
        learned.has_changed(kind, Step(tokens=(1,), verify=1.0))
        learned.improve(met, state, SimpleNamespace(layer_set=best))
        assert now[0] <= share * round_
    assert now[0] >= 0.89 * share * 3000 - 3
    search.is_finished = True
    spent = now[0]
    for _ in range(1000):
        learned.has_changed(kind, Step(tokens=(1,), verify=1.0))
        learned.improve(met, state, SimpleNamespace(layer_set=best))
    assert now[0] <= spent + 3.0  # one look whether it is still right


def test_a_search_that_has_ended_looks_again_what_sublayers_cost(planted, monkeypatch):
    pace = Pace(torch.device("cpu"), Prior(verify={1: 1.0, 33: 3.0}))
    learned = Adaptation(find_sublayers(planted[0]), pace, 8, lambda: None, lambda: planted[0])
    measured, taken = [], []
    monkeypatch.setattr(adapting, "draft_costs", lambda *_: measured.append(pace.rounds))
    best = LayerSet.none(10)
    search = SimpleNamespace(is_finished=True, hope=1.0, gain=1.0, best=best)
    search.take_costs = taken.append
    kind: Any = Kind(np.zeros(1), search=search)
    learned.kinds.add(kind)
    monkeypatch.setattr(learned, "_search", lambda *_: None)
    state: Any = SimpleNamespace(
        cache=SimpleNamespace(committed=1000, can_rewind=lambda tokens: True),
        length=1000,
        prompt_length=10,
        warping=SimpleNamespace(is_argmax=True),
    )
    met = Met(np.zeros(1), kind, 0.0, in_doubt=False)
    for _ in range(3 * COSTS_LAST):
        pace.elapse()
        learned.has_changed(kind, Step(tokens=(1,), verify=1.0))
        learned.improve(met, state, SimpleNamespace(layer_set=best))
    assert 2 <= len(measured) <= 3
    assert len(taken) == len(measured)


@pytest.mark.parametrize(
    ("tokens", "rounds", "begins"), [(1, 50, False), (3, 50, True), (1, 440, False), (1, 600, True)]
)
def test_the_first_look_is_soon_where_drafts_have_won_the_time_for_it(
    tokens, rounds, begins, planted
):
    sublayers = find_sublayers(planted[0])
    pace = Pace(torch.device("cpu"), Prior(verify={1: 1.0}))
    learned = Adaptation(sublayers, pace, 8, lambda: None, lambda: planted[0])
    kind = Kind(np.zeros(1))
    learned.has_changed(kind, Step(tokens=(1,), prefill=30.0))  # would be read in any case
    for _ in range(rounds):  # seconds, of rounds with one token or three
        learned.has_changed(kind, Step(tokens=(1,) * tokens, verify=1.0))
    assert learned._may_search(kind) == begins


def test_what_was_saved_up_is_not_spent_at_once():
    """On a new kind of text, after long, a gain is in sight."""
    purse = allowance.Allowance(Pace(torch.device("cpu"), Prior(verify={1: 1.0})), eager=False)
    for _ in range(5000):
        purse.elapse(Step(tokens=(1,), verify=1.0))
    spent = 0.0
    for _ in range(100):
        while purse.affords_score(1.5):
            purse.spend(3.0, scored=True, doubted=False)
            spent += 3.0
        purse.elapse(Step(tokens=(1,), verify=1.0))
    assert 0.1 * 100 < spent < 0.3 * 100  # of the 300 seconds that might be spent in all


def test_a_prompt_in_doubt_does_not_stop_the_search(planted, monkeypatch):
    """Looking whether the set is of use costs a score: it may be one that is due anyway."""
    sublayers = find_sublayers(planted[0])
    pace = Pace(torch.device("cpu"), Prior(verify={1: 1.0, 33: 3.0}))
    learned = Adaptation(sublayers, pace, 8, lambda: None, lambda: planted[0])
    best = LayerSet.none(sublayers.depth)
    search = SimpleNamespace(is_finished=False, hope=1.5, gain=1.0, best=best)
    kind: Any = Kind(np.zeros(1), search=search)
    met, looked = Met(np.zeros(1), kind, 0.0, in_doubt=True), []
    assert not learned._allowance.affords_doubt
    monkeypatch.setattr(learned, "_window", lambda state: 32)
    monkeypatch.setattr(learned, "_doubt", lambda *_: looked.append(True))
    for _ in range(110):
        learned.has_changed(kind, Step(tokens=(1,), verify=1.0))
        learned.improve(met, None, SimpleNamespace(layer_set=best))
        assert not learned._allowance.affords_doubt
    assert looked


@pytest.mark.parametrize(
    ("is_cheap", "is_argmax", "generated", "committed", "can_rewind", "tokens"),
    [
        (True, True, 0, 100, True, 32),  # right behind the prompt
        (False, True, 0, 100, True, 0),
        (False, True, 11, 100, True, 0),  # of the response alone: too few
        (False, True, 12, 100, True, 12),
        (False, True, 80, 100, True, 32),
        (False, False, 0, 100, True, 32),  # sampled: the target has to be asked in any case
        (True, True, 0, 12, True, 0),
        (True, True, 0, 13, True, 12),
        (True, True, 0, 100, False, 0),
    ],
)
def test_what_is_scored_on(is_cheap, is_argmax, generated, committed, can_rewind, tokens, planted):
    """The prompt's tokens too, as soon as it is read, where reading them again is cheap."""
    reading = {1: 1.0, 32: 1.5 if is_cheap else 3.0}
    pace = Pace(torch.device("cpu"), Prior(verify=reading))
    learned = Adaptation(find_sublayers(planted[0]), pace, 8, lambda: None, lambda: planted[0])
    state: Any = SimpleNamespace(
        cache=SimpleNamespace(committed=committed, can_rewind=lambda tokens: can_rewind),
        length=committed + 1,
        prompt_length=committed + 1 - generated,
        warping=SimpleNamespace(is_argmax=is_argmax),
    )
    assert learned._window(state) == tokens


def test_short_answers_pay_for_no_search(planted, prompt, monkeypatch, same_as_alone, learner):
    monkeypatch.setattr(adapting, "seconds_to_measure", lambda *_: 1e6)
    swift = Swift(planted[0])
    assert same_as_alone(swift, prompt(16), new=80)
    assert learner(swift).told == 0
    assert learner(swift)._allowance._spent == 0


@pytest.mark.parametrize(
    "config", [EAGER, SwiftConfig(), SwiftConfig.paper(), SwiftConfig(skip_ratio=0.3)]
)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_the_output_is_the_models_own_while_it_learns(
    model_of, prompt, family, config, same_as_alone
):
    swift = Swift(model_of(family), config=config)
    for seed in range(2):
        assert same_as_alone(swift, prompt(20, seed))
    assert same_as_alone(swift, prompt(20, 5), do_sample=True, temperature=1.5)


def test_long_prompts_in_chunks_and_short_ones_are_learned_from_alike(
    planted, prompt, clock, same_as_alone, learner
):
    swift = Swift(planted[0], config=EAGER, clock=clock)
    assert same_as_alone(swift, prompt(2), new=20)
    assert same_as_alone(swift, prompt(70), new=20, prefill_chunk_size=16)
    assert learner(swift).told > 0


@pytest.mark.parametrize("value", [float("nan"), -1.0, 2.0])
def test_scores_that_are_no_numbers_are_never_believed(
    planted, prompt, monkeypatch, clock, value, same_as_alone, learner
):
    monkeypatch.setattr(Window, "matchness", lambda self, view: value)
    for config in (EAGER, SwiftConfig.paper()):
        swift = Swift(planted[0], config=config, clock=clock)
        assert same_as_alone(swift, prompt(16))
        search = learner(swift).search if config.skip_ratio else learner(swift).kinds.latest.search
        assert (search.told, search.ignored > 0) == (0, True)
        before = swift.layer_set
        assert same_as_alone(swift, prompt(16, 1))
        assert swift.layer_set == before


def test_a_change_of_acceptance_is_noticed_and_the_search_goes_on(
    planted, prompt, clock, same_as_alone, learner
):
    swift = Swift(planted[0], config=EAGER, clock=clock)
    for seed in range(3):
        assert same_as_alone(swift, prompt(16, seed))
    adaptation, kind = learner(swift), learner(swift).kinds.latest
    met = Met(np.zeros_like(kind.total), kind, 0.0, in_doubt=False)

    def step(right):
        return Step(tokens=(1,), drafter=OWN, drafted=8, accepted_on_chain=right)

    kind.changes.restart()
    before = [adaptation.has_changed(kind, step(right)) for right in [8, 8, 7, 8, 8] * 20]
    assert not any(before)
    told = kind.search.told
    changed = next(n for n in range(50) if adaptation.has_changed(kind, step(1)))
    assert changed < 20
    kind.search._stale = STALE
    assert kind.search.is_finished
    adaptation.follow(met)
    assert not kind.search.is_finished
    assert kind.search.told == told


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


def test_a_model_without_anything_to_skip_is_decoded_all_the_same(prompt, same_as_alone):
    model = tiny_model("llama", num_hidden_layers=2)
    assert find_sublayers(model).depth == 2
    for config in (EAGER, SwiftConfig(), SwiftConfig.paper()):
        assert same_as_alone(Swift(model, config=config), prompt(16))


def test_a_search_is_cheap_to_ask_before_anything_is_known():
    search = RateSearch(Costs(1.0, (0.1,) * 5, (0.1,) * 5, 0.0, 8), lambda rows: 1.0)
    assert search.ask().depth == 5
