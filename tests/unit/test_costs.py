"""Costs are measured for every sublayer, by a copy; how long anything takes is not tested."""

import math

import pytest

from swift_sd.adapting.costs import Costs, measure_costs
from swift_sd.model.sublayers import find_sublayers


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi", "gemma3_text", "bloom", "gpt_oss"])
def test_every_part_of_a_step_is_measured(family, model_of):
    model = model_of(family)
    costs = measure_costs(model, find_sublayers(model), context=12, repeats=2)
    assert (len(costs.attention), len(costs.mlp), costs.context) == (5, 5, 12)
    for seconds in (costs.step, costs.head, *costs.attention, *costs.mlp):
        assert math.isfinite(seconds)
        assert seconds > 0
    assert costs.rest >= 0


def test_the_rest_is_what_no_part_explains():
    costs = Costs(step=10.0, attention=(1.0, 2.0), mlp=(3.0, 1.0), head=2.0, context=8)
    assert costs.rest == 1.0


def test_clocks_that_disagree_never_give_a_negative_rest():
    assert Costs(step=1.0, attention=(1.0,), mlp=(1.0,), head=1.0, context=8).rest == 0


def test_one_measurement_serves_all_later_questions(model_of, swift_of):
    swift = swift_of(model_of())
    assert swift.costs(context=4) is swift.costs(context=4)
    assert swift.costs(context=8).context == 8


def test_a_report_follows_a_response(model_of, swift_of, prompt):
    swift = swift_of(model_of(), "none")
    swift.generate(prompt(), max_new_tokens=9, do_sample=False, eos_token_id=None)
    report = swift.report()
    assert report.startswith("9 tokens in ")
    assert "draft tokens accepted (100%)" in report
    assert "plain decoding" in report
