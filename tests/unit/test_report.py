"""What a person reads after a response."""

import pytest

from swift_sd import LayerSet
from swift_sd.decoding.trace import Step, Trace
from swift_sd.report import BAR, NOT_EXACT, describe

LAYER_SET = LayerSet(6, [3, 1], [2])


def text(steps: list[Step], seconds: float, plain_step: float) -> str:
    return describe(Trace(LAYER_SET, steps, seconds).summary(), plain_step)


DRAFTED = [
    Step((7,), prefill=1.0),
    *[
        Step(
            (8, 9, 10),
            drafter="layer_skip",
            drafted=4,
            accepted=2,
            accepted_on_chain=2,
            draft=0.5,
            verify=0.5,
        )
    ]
    * 3,
    Step((11,), drafter="layer_skip", drafted=4, draft=0.5, verify=0.5),
]


def test_no_tokens_are_said_to_be_none():
    assert text([], 0.0, 0.1) == "no tokens were generated"


def test_one_token_is_too_short_for_a_verdict():
    assert "too short to say whether it was faster" in text([Step((7,), prefill=1.0)], 1.0, 0.1)


def test_drafting_that_paid_is_praised_with_both_figures():
    report = text(DRAFTED, 6.0, plain_step=1.0)  # 5 s for 10 tokens behind the first
    assert "11 tokens in 6.00 s, 1.8 tokens/s" in report
    assert "faster, 2.00x plain decoding: 500 ms a token" in report
    assert "measured afterwards: 1000 ms" in report
    assert "NOT" not in report


def test_drafting_that_did_not_pay_says_so_and_what_to_do():
    report = text(DRAFTED, 6.0, plain_step=0.25)
    assert "NOT faster, 0.50x plain decoding" in report
    assert "another layer set" in report


def test_verification_that_is_not_exact_is_said_to_be():
    summary = Trace(LAYER_SET, DRAFTED, 6.0, exact=False).summary()
    assert NOT_EXACT in describe(summary, 1.0)
    assert NOT_EXACT not in text(DRAFTED, 6.0, plain_step=1.0)


def test_acceptance_and_its_histogram_are_shown():
    lines = text(DRAFTED, 6.0, plain_step=1.0).splitlines()
    assert lines[1] == "drafts: 4 by the model with 2 attention and 1 MLP sublayers skipped"
    assert "6 of 16 draft tokens accepted (38%), 2.50 tokens per forward" in lines[2]
    assert lines[4:6] == [f"    0 {'█' * (BAR // 3)} 1", f"    2 {'█' * BAR} 3"]


def test_every_drafter_is_named_and_forwards_without_a_draft_are_counted():
    steps = [*DRAFTED, Step((5, 6), "copying", 1, 1, 1, 1, verify=0.1), Step((5,), verify=0.1)]
    lines = text(steps, 6.0, plain_step=1.0).splitlines()
    assert lines[1].endswith("skipped, 1 copied from the text; 1 forwards without")


def test_a_rare_length_still_gets_a_bar():
    many = Step((8, 9), drafter="layer_skip", drafted=1, accepted=1, accepted_on_chain=1)
    report = text([Step((7,)), *[many] * 999, Step((1,), "layer_skip", 1, 0)], 6.0, 1.0)
    assert "    0 █ 1" in report


def test_plain_decoding_is_reported_without_drafting():
    report = text([Step((7,), prefill=1.0), Step((8,), verify=1.0)], 2.0, 1.0)
    assert "decoded without drafting, 1.00x plain decoding: 1000 ms a token" in report
    assert "sublayers skipped" not in report


def test_the_time_line_leaves_out_what_took_none():
    report = text([Step((7,), prefill=1.0), Step((8,), verify=1.0)], 4.0, 1.0)
    assert "time: prefill 25%, verify 25%, other 50%" in report


@pytest.mark.parametrize("plain_step", [1e-9, 1e9])
def test_extreme_measurements_are_still_a_report(plain_step):
    assert "plain decoding" in text(DRAFTED, 6.0, plain_step)
