"""Kinds of input are told apart while responses are decoded."""

import pytest
import torch

from swift_sd import Swift, SwiftConfig
from swift_sd.adapting import adaptation as adapting
from swift_sd.adapting.matchness import Window
from swift_sd.adapting.prompt_view import PromptView
from swift_sd.testing.switched import switched_model

EAGER = SwiftConfig(eager_search=True)


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
        self, planted, prompt, monkeypatch, clock, answer, same_as_alone, learner
    ):
        swift = Swift(planted[0], config=EAGER, clock=clock)
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
        self, planted, prompt, monkeypatch, clock, score, same_as_alone, learner
    ):
        swift = Swift(planted[0], config=EAGER, clock=clock)
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


def test_of_a_real_stream_no_kind_is_drafted_without_what_it_needs(clock, same_as_alone):
    """Three kinds of text, each with layers that only it needs, twice round; nothing is made up."""
    model, tokens, needed = switched_model(kinds=3, layers_per_kind=3)
    swift = Swift(model, config=SwiftConfig(eager_search=True, draft_bits=16), clock=clock)
    for _ in range(2):
        for kind in range(3):
            others = frozenset().union(*needed) - needed[kind]
            for seed in range(2):
                random = torch.Generator().manual_seed(seed)
                span = tokens[kind]
                ids = torch.randint(span.start, span.stop, (1, 24), generator=random)
                assert same_as_alone(swift, ids, new=64, do_sample=True)
            assert not swift.layer_set.mlp & needed[kind]
            assert len(swift.layer_set.mlp & others) >= 0.9 * len(others)
