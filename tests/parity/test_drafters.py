"""Every drafter and the cascade over many families: who proposes never changes what comes out."""

from itertools import count

import pytest
import torch

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.decoding.loop import decode
from swift_sd.decoding.request import Request
from swift_sd.drafting.calibration import Calibrations
from swift_sd.drafting.growth import CostGrowth
from swift_sd.drafting.layer_skip import LayerSkipDrafter
from swift_sd.drafting.pace import Pace, Prior
from swift_sd.drafting.recall import RecallDrafter
from swift_sd.drafting.recycling import Successors
from swift_sd.model.draft_view import DraftView
from swift_sd.model.sublayers import find_sublayers
from swift_sd.model.target import Target
from swift_sd.model.tree_check import why_no_trees
from swift_sd.testing.families import STRUCTURES, tiny_model

# Trees over all families: test_trees.
GREEDY, SAMPLED = {"do_sample": False}, {"do_sample": True, "top_k": 4}
CASES = [
    *((family, GREEDY) for family in STRUCTURES),
    *((family, SAMPLED) for family in ("llama", "gemma3_text", "bloom")),
]
# Rows cost next to nothing, so that much is proposed.
CHEAP = Prior({1: 1.0, 65: 1.05}, {1: 0.1, 65: 0.1})


def prompts():
    noise = torch.Generator().manual_seed(3)
    phrase = torch.randint(3, 100, (1, 6), generator=noise)
    yield torch.randint(3, 100, (1, 1), generator=noise)
    yield phrase.repeat(1, 6)
    yield torch.cat([torch.randint(3, 100, (1, 30), generator=noise), phrase, phrase[:, :3]], dim=1)
    yield torch.full((1, 20), 7)


class Staged:
    """The recalling drafter alone, or before the sub-network, in each round."""

    def __init__(self, model, skipped, successors):
        sublayers = find_sublayers(model)
        is_tree = why_no_trees(model, sublayers) is None
        growth = CostGrowth(Calibrations(), Pace(model.device, CHEAP), is_tree)
        self.recall = RecallDrafter(growth, successors)
        self.drafter = self.recall
        if skipped is not None:
            view = DraftView(model, sublayers, skipped)
            self.drafter = LayerSkipDrafter(
                view, growth, self.recall, clock=count(step=0.01).__next__
            )

    @property
    def name(self):
        return self.drafter.name

    def propose(self, state, budget):
        self.recall.promise(state, budget)
        return self.drafter.propose(state, budget)

    def learn(self, tree, path, step, logits):
        self.recall.learn(tree, path, step, logits)
        if self.drafter is not self.recall:
            self.drafter.learn(tree, path, step, logits)


def decoding(staged, steps):
    def decode_with_it(
        model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs
    ):
        request = Request.checked(
            model, input_ids, logits_processor, stopping_criteria, generation_config, kwargs
        )
        state = request.start()
        steps.extend(decode(Target(model), staged, state, request.unread, 6))
        return state.tokens.clone()

    return decode_with_it


@pytest.mark.parametrize(("family", "arguments"), CASES)
def test_recalling_and_cascades_change_nothing(family, arguments):
    model = tiny_model(family)
    depth = model.config.get_text_config().num_hidden_layers
    alone = []
    for ids in list(prompts())[1:3]:
        asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 24, **arguments}
        torch.manual_seed(5)
        alone.append((ids, asked, model.generate(ids, **asked), torch.get_rng_state()))
    for skipped in (None, LayerSet.none(depth), LayerSet.unified(depth)):
        successors, steps = Successors(), []
        for ids, asked, expected, after in alone:
            for _ in range(2):  # the second time the runner-ups of the first are known
                run = decoding(Staged(model, skipped, successors), steps)
                torch.manual_seed(5)
                assert torch.equal(model.generate(ids, custom_generate=run, **asked), expected)
                assert torch.equal(torch.get_rng_state(), after)
        sources = {source for step in steps for source in step.sources}
        if skipped is None:
            assert "recycling" in sources
        if skipped == LayerSet.none(depth):
            assert {"layer_skip", "cascade"} <= sources
        assert all(len(step.sources) == step.accepted for step in steps)


@pytest.mark.parametrize(("family", "arguments"), CASES)
def test_the_default_changes_nothing(family, arguments, clock):
    model = tiny_model(family)
    swift = Swift(model, config=SwiftConfig(LayerSet.none(5)), clock=clock)
    used = set()
    for ids in prompts():
        asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 40, **arguments}
        torch.manual_seed(5)
        expected = model.generate(ids, **asked)
        state = torch.get_rng_state()
        torch.manual_seed(5)
        assert torch.equal(swift.generate(ids, **asked), expected)
        assert torch.equal(torch.get_rng_state(), state)
        used |= set(swift.trace.summary()["drafters"])
    assert used


class Wrong(Staged):
    """Foresees the opposite of what it knows: the sub-network agrees to nothing."""

    def propose(self, state, budget):
        self.recall.promise(state, budget)
        self.recall.start = lambda: [3 + (int(state.tokens[0, -1]) * 7 + 11) % 90] * min(4, budget)
        return self.drafter.propose(state, budget)


@pytest.mark.parametrize(("family", "arguments"), CASES)
def test_a_wrong_start_leaves_no_trace(family, arguments):
    """What the sub-network read and did not agree to is written over, in its cache too."""
    model = tiny_model(family)
    for ids in prompts():
        asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 24, **arguments}
        torch.manual_seed(5)
        expected = model.generate(ids, **asked)
        steps = []
        run = decoding(Wrong(model, LayerSet.none(5), Successors()), steps)
        torch.manual_seed(5)
        assert torch.equal(model.generate(ids, custom_generate=run, **asked), expected)
        # It skips nothing: it is right about all, if it saw what it should.
        chains = [step for step in steps[1:] if step.drafted]
        assert chains
        right = [step.accepted_on_chain >= step.sources.count("layer_skip") for step in chains]
        assert all(right)
        assert sum(step.accepted for step in chains) >= 0.9 * sum(
            step.sources.count("layer_skip") for step in chains
        )
        assert any(step.accepted >= 2 for step in chains)


def test_text_that_repeats_is_copied(clock):
    """A target that goes on as before accepts nearly all of it."""
    model = tiny_model("llama")
    swift = Swift(model, config=SwiftConfig(LayerSet.every(5)), clock=clock)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    steady = [
        lambda tokens, scores: scores.index_fill(
            -1, (tokens[0, -6:-5] if tokens.shape[1] > 5 else tokens[0, :1]), 1e3
        )
    ]
    out = swift.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        logits_processor=steady,
        max_new_tokens=96,
        do_sample=False,
        eos_token_id=None,
    )
    assert out[0].tolist() == [5, 6, 7, 8, 9, 10] * 17
    figures = swift.trace.summary()
    assert sum(n for name, n in figures["drafters"].items() if "copying" in name) >= 3
    assert figures["acceptance_rate"] > 0.9
    assert figures["tokens_per_forward"] > 3
