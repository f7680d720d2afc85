"""Whoever may propose, the output is the model's own; who may not never does."""

from itertools import combinations, count

import pytest
import torch

from swift_sd import Swift, SwiftConfig
from swift_sd.adapting.governor import Governor
from swift_sd.adapting.ledger import Purse
from swift_sd.config import DRAFTERS
from swift_sd.drafting.growth import CostGrowth
from swift_sd.testing.families import tiny_model

SOME = [names for count in (1, 2, 3) for names in combinations(DRAFTERS, count)]
NOT_OF = {  # names of steps, by drafter that may not propose
    "copying": ("copying", "copying+recycling"),
    "recycling": ("recycling", "copying+recycling"),
    "model": ("layer_skip", "cascade"),
}
ARGUMENTS = {
    "greedy": {"do_sample": False},
    **{
        name: {"do_sample": True, "top_k": 0, **warper}
        for name, warper in {
            "sampled": {},
            "hot": {"temperature": 1.7},
            "top-p": {"top_p": 0.8},
            "min-p": {"min_p": 0.2},
            "penalty": {"repetition_penalty": 1.8},
        }.items()
    },
}
# Everybody with every way to choose; each choice of drafters without a warper and with one that
# looks at the text.
CASES = [
    *((names, kind) for names in SOME for kind in ("greedy", "penalty")),
    *((DRAFTERS, kind) for kind in ("sampled", "hot", "top-p", "min-p")),
]
SOURCES = {"copying": {"copying"}, "recycling": {"recycling"}, "model": {"layer_skip", "cascade"}}


@pytest.mark.parametrize(("names", "kind"), CASES)
def test_nothing_changes_but_who_proposes(names, kind, monkeypatch, clock):
    arguments = ARGUMENTS[kind]
    # All take turns in every round, whether it pays or not: a penalty leaves little to copy.
    turns = count()
    monkeypatch.setattr(Governor, "_is_plain_due", False)
    monkeypatch.setattr(Purse, "may_ask", True)
    monkeypatch.setattr(CostGrowth, "pruned", lambda self, tree, **_: tree)
    monkeypatch.setattr(Governor, "_choice", lambda self, promises: next(turns) % len(promises))
    model = tiny_model("llama")
    prompt = torch.tensor([[5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6]])
    swift = Swift(model, config=SwiftConfig(drafters=names), clock=clock)
    drafted, proposed = 0, set()
    for seed in range(2):
        torch.manual_seed(seed)
        expected = model.generate(prompt, max_new_tokens=48, pad_token_id=0, **arguments)
        torch.manual_seed(seed)
        found = swift.generate(prompt, max_new_tokens=48, pad_token_id=0, **arguments)
        assert torch.equal(found, expected)
        forbidden = [step for name in set(DRAFTERS) - set(names) for step in NOT_OF[name]]
        assert not set(forbidden) & swift.trace.summary()["drafters"].keys()
        accepted = {source for step in swift.trace.steps for source in step.sources}
        assert accepted <= set().union(*(SOURCES[name] for name in names))
        drafted += swift.trace.summary()["drafted_tokens"]
        proposed |= {part for name in swift.trace.summary()["drafters"] for part in name.split("+")}
    assert drafted
    assert all(SOURCES[name] & proposed for name in names)


@pytest.mark.parametrize("cascade", [True, False])
def test_without_the_cascade_the_model_drafts_from_nothing_foreseen(cascade, monkeypatch, clock):
    # Only the model drafts, and would read all that is foreseen.
    monkeypatch.setattr(CostGrowth, "pruned", lambda self, tree, **_: tree)
    monkeypatch.setattr(CostGrowth, "head_start", lambda self, chain: len(chain))
    monkeypatch.setattr(Governor, "_choice", lambda self, promises: len(promises) - 1)
    model = tiny_model("llama")
    prompt = torch.tensor([[5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6]])
    swift = Swift(model, config=SwiftConfig(cascade=cascade), clock=clock)
    arguments = {"do_sample": False, "max_new_tokens": 48}
    expected = model.generate(prompt, **arguments)
    for _ in range(2):  # the second time the runner-ups of the first are known
        assert torch.equal(swift.generate(prompt, **arguments), expected)
    named = {"layer_skip", "cascade"} if cascade else {"layer_skip"}
    accepted = {source for step in swift.trace.steps for source in step.sources}
    assert set(swift.trace.summary()["drafters"]) <= named
    assert ("cascade" in swift.trace.summary()["drafters"]) == cascade
    assert ("cascade" in accepted) == cascade


def test_without_the_model_no_weights_are_rounded():
    swift = Swift(tiny_model("llama"), config=SwiftConfig(drafters=("copying",)))
    assert swift._experience.draft_weights.bits == 16
