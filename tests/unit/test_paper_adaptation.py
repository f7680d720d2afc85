"""The paper's search while responses are decoded, and nothing of ours beside it."""

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.adapting.matchness import Window
from swift_sd.adapting.paper_search import PaperSearch
from swift_sd.drafting.growth import PaperGrowth
from swift_sd.drafting.layer_skip import LayerSkipDrafter


class TestPaper:
    def test_it_switches_at_once_and_ends_by_its_rules(
        self, planted, prompt, monkeypatch, same_as_alone, learner
    ):
        monkeypatch.setattr("swift_sd.adapting.paper_search.PATIENCE", 5)
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
        assert search.is_finished
        told = search.told
        assert same_as_alone(swift, prompt(16, 9))
        assert search.told == told

    def test_nothing_is_scored_before_there_are_enough_generated_tokens(
        self, planted, prompt, same_as_alone, learner
    ):
        swift = Swift(planted[0], config=SwiftConfig.paper())
        assert same_as_alone(swift, prompt(60), new=30)
        assert learner(swift).search.told == 0

    def test_when_sampling_the_generated_tokens_are_the_truth(
        self, planted, prompt, monkeypatch, same_as_alone
    ):
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

    def test_nothing_of_ours_runs_beside_it(self, planted, learner):
        config = SwiftConfig.paper()
        assert (config.max_draft_tokens, config.tree) == (25, True)
        assert (config.early_stop, config.skip_ratio) == (0.8, 0.45)
        swift = Swift(planted[0], config=config)
        drafter, adapter = swift._experience.drafting(do_sample=False)
        assert isinstance(drafter, LayerSkipDrafter)
        assert isinstance(drafter.growth, PaperGrowth)
        assert [drafter.growth.width(chance) for chance in (0.96, 0.9, 0.6, 0.4)] == [3, 5, 8, 10]
        goes_on = [drafter.growth.goes_on([chance], ["layer_skip"]) for chance in (0.8, 0.79)]
        assert goes_on == [True, False]
        assert (drafter._recall, drafter._shortlist) == (None, None)
        assert swift._experience.draft_weights.bits == 16
        assert adapter.reader(swift.model) is None
        assert isinstance(learner(swift).search, PaperSearch)
