"""The figures of a response, from steps made by hand."""

import json

import pytest

from swift_sd import LayerSet
from swift_sd.decoding.trace import Step, Trace

LAYER_SET = LayerSet(6, [3, 1], [2])


@pytest.fixture
def trace() -> Trace:
    steps = [
        Step((7,), prefill=1.0, accept=0.5),
        Step(
            (8, 9, 10),
            drafter="layer_skip",
            drafted=4,
            verified=9,
            accepted=2,
            accepted_on_chain=1,
            draft=2.0,
            verify=1.0,
        ),
        Step((11,), verify=0.5),
        Step((12,), drafter="layer_skip", drafted=3, accepted=0, draft=1.0, verify=1.0),
        Step(
            (13, 14),
            drafter="layer_skip",
            drafted=2,
            verified=2,
            accepted=2,
            accepted_on_chain=2,
            draft=1.0,
            verify=1.0,
        ),
    ]
    return Trace(LAYER_SET, steps, seconds=10.0)


def test_the_summary_has_exactly_the_contracted_keys(trace):
    assert set(trace.summary()) == {
        *("new_tokens", "seconds", "tokens_per_second", "target_forwards", "tokens_per_forward"),
        *("drafted_tokens", "accepted_tokens", "acceptance_rate", "accepted_histogram"),
        *("time_split", "layer_set", "drafters", "verified_tokens", "decided_again", "draft_view"),
        "exact",
    }


def test_tokens_and_forwards_are_counted(trace):
    summary = trace.summary()
    assert trace.token_ids == [7, 8, 9, 10, 11, 12, 13, 14]
    assert summary["new_tokens"] == 8
    assert summary["tokens_per_second"] == 0.8
    assert summary["target_forwards"] == 5
    assert summary["tokens_per_forward"] == 7 / 4  # the prefill and its token left out


def test_acceptance_counts_drafted_and_accepted(trace):
    summary = trace.summary()
    assert (summary["drafted_tokens"], summary["accepted_tokens"]) == (9, 4)
    assert summary["acceptance_rate"] == 3 / 9  # what came from beside the chain is left out
    assert summary["accepted_histogram"] == {0: 1, 2: 2}  # the step without a draft is not in it
    assert summary["drafters"] == {"layer_skip": 3}


def test_the_time_split_adds_up_to_all_seconds(trace):
    split = trace.summary()["time_split"]
    assert set(split) == {"prefill", "draft", "verify", "accept", "adapt", "other"}
    assert (split["prefill"], split["draft"], split["verify"], split["accept"]) == (1, 4, 3.5, 0.5)
    assert sum(split.values()) == trace.seconds


def test_the_layer_set_is_given_in_order(trace):
    assert trace.summary()["layer_set"] == {"attention": [1, 3], "mlp": [2]}


def test_the_summary_is_json(trace):
    assert json.loads(json.dumps(trace.summary()))["new_tokens"] == 8


def test_rates_without_a_denominator_are_none():
    for steps in ([], [Step((7,))]):
        summary = Trace(LAYER_SET, steps).summary()
        assert summary["acceptance_rate"] is None
        assert summary["tokens_per_forward"] is None
        assert summary["tokens_per_second"] is None
        assert summary["accepted_histogram"] == {}
        assert summary["drafters"] == {}


def test_clocks_that_disagree_never_give_negative_time():
    trace = Trace(LAYER_SET, [Step((7,), prefill=2.0)], seconds=1.5)
    assert trace.summary()["time_split"]["other"] == 0
