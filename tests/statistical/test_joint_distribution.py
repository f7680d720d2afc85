"""End to end: what a tiny model samples through drafts follows its exact joint distribution."""

import itertools

import pytest
import torch
from scipy.stats import chisquare
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from swift_sd import LayerSet
from swift_sd.decoding.loop import decode
from swift_sd.decoding.request import Request
from swift_sd.drafting.calibration import Calibrations
from swift_sd.drafting.growth import CostGrowth, PaperGrowth
from swift_sd.drafting.layer_skip import LayerSkipDrafter
from swift_sd.drafting.pace import Pace, Prior
from swift_sd.drafting.recall import RecallDrafter
from swift_sd.drafting.recycling import Successors
from swift_sd.model.draft_view import DraftView
from swift_sd.model.sublayers import find_sublayers
from swift_sd.model.target import Target
from swift_sd.testing.families import tiny_model

VOCABULARY, NEW, SAMPLES, LAYERS = 7, 3, 800, 3


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", layers=LAYERS, vocab_size=VOCABULARY)


def exact(model, ids, processors):
    """Probability of each continuation of `NEW` tokens, `[vocabulary] * NEW`, float64."""
    joint = torch.ones((), dtype=torch.float64)
    for length in range(NEW):
        prefixes = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=length)))
        rows = torch.cat([ids.expand(len(prefixes), -1), prefixes.long()], dim=1)
        with torch.no_grad():
            logits = model(rows).logits[:, -1]
        conditional = processors(rows, logits).double().softmax(dim=-1)
        joint = joint.unsqueeze(-1) * conditional.view([VOCABULARY] * (length + 1))
    return joint.flatten()


def prepared(model, ids, **arguments):
    """What `generate` makes of the arguments, once for all samples."""

    def capture(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        return Request.checked(
            model, input_ids, logits_processor, stopping_criteria, generation_config, kwargs
        )

    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        custom_generate=capture,
        do_sample=True,
        max_new_tokens=NEW,
        eos_token_id=None,
        **arguments,
    )


WARPERS = {
    "unwarped": ({"top_k": 0}, []),
    "cold": ({"temperature": 0.3, "top_k": 0}, [TemperatureLogitsWarper(0.3)]),
    "hot": ({"temperature": 1.7, "top_k": 0}, [TemperatureLogitsWarper(1.7)]),
    "hot top-k": (
        {"temperature": 1.6, "top_k": 4},
        [TemperatureLogitsWarper(1.6), TopKLogitsWarper(4)],
    ),
    "top-p": ({"top_p": 0.8, "top_k": 0}, [TopPLogitsWarper(0.8)]),
    "min-p": ({"min_p": 0.2, "top_k": 0}, [MinPLogitsWarper(0.2)]),
    "penalty": (
        {"repetition_penalty": 1.8, "top_k": 0},
        [RepetitionPenaltyLogitsProcessor(1.8)],
    ),
}


SOURCES = {  # by who proposes
    "model": {"layer_skip"},
    "cascade": {"layer_skip", "cascade"},
    "recall": {"copying", "recycling"},
    "copying": {"copying"},
    "recycling": {"recycling"},
}


# Every way to warp with one drafter, which sees the noise to come as all do; every drafter with a
# warper of each sort: none, one that scales, one that cuts off, one that looks at the text.
CASES = [
    *(("model", name) for name in WARPERS),
    *(("cascade", "hot top-k"), ("cascade", "penalty")),
    *(("recall", "unwarped"), ("recall", "min-p")),
    *(("copying", "penalty"), ("recycling", "top-p")),
]


class Always:
    """The drafter that costs nothing, alone or before the sub-network, in every round."""

    def __init__(self, view, successors, *, copies=True):
        # Rows cost next to nothing, so that much is proposed.
        pace = Pace(torch.device("cpu"), Prior({1: 1.0, 65: 1.05}, {1: 0.1, 65: 0.1}))
        growth = CostGrowth(Calibrations(), pace, True)
        self.recall = RecallDrafter(growth, successors, copies=copies)
        self.drafter = self.recall
        if view is not None:
            clock = itertools.count(step=0.01).__next__
            self.drafter = LayerSkipDrafter(view, growth, self.recall, clock=clock)

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


def drafters(model, kind):
    """A drafter for each response."""
    # Both sublayers of the only inner layer are skipped: drafts are often refused.
    view = DraftView(model, find_sublayers(model), LayerSet.every(LAYERS))
    successors = Successors()
    while True:
        if kind == "model":
            yield LayerSkipDrafter(view, PaperGrowth(0.0, PaperGrowth.SAMPLING))
        else:
            yield Always(
                view if kind == "cascade" else None,
                None if kind == "copying" else successors,
                copies=kind != "recycling",
            )


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_samples_fit_the_joint_distribution(model, kind, name):
    arguments, processors = WARPERS[name]
    ids = torch.tensor([[3, 5, 4, 6, 3, 5]])
    expected = exact(model, ids, LogitsProcessorList(processors))
    each = drafters(model, kind)
    request = prepared(model, ids, **arguments)
    torch.manual_seed(0)
    counts = torch.zeros(VOCABULARY**NEW)
    drafted, accepted, sources = 0, 0, set()
    for _ in range(SAMPLES):
        state = request.start()
        steps = list(decode(Target(model), next(each), state, ids, max_draft_tokens=2))
        a, b, c = (token for step in steps for token in step.tokens)
        counts[(a * VOCABULARY + b) * VOCABULARY + c] += 1
        drafted += sum(step.drafted for step in steps)
        accepted += sum(step.accepted_on_chain for step in steps)
        sources.update(*(step.sources for step in steps))
    assert 0.1 < accepted / drafted < 0.99, "the test must see both acceptance and refusal"
    assert sources == SOURCES[kind]

    impossible = expected == 0
    assert counts[impossible].sum() == 0
    # Outcomes too rare for the chi-square approximation are counted as one.
    common = expected * SAMPLES >= 5
    observed = torch.cat([counts[common], counts[~common].sum().view(1)]).double()
    predicted = torch.cat([expected[common], expected[~common].sum().view(1)]) * SAMPLES
    keep = predicted > 0
    result = chisquare(observed[keep].numpy(), predicted[keep].numpy())
    assert result.pvalue > 1e-3
