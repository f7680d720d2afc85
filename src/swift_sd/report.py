"""A response's figures in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BAR = 24  # characters of the longest bar in the histogram
NOT_EXACT = (
    "verification is not to the bit of plain decoding, with these settings or on this machine: in "
    "16 bits another token may win where two are nearly tied"
)


def describe(
    summary: dict[str, Any],
    plain_step: float | None,
    search: str | None = None,
    notes: Sequence[str] = (),
) -> str:
    """What happened in one response and whether it was faster, in a few lines.

    Args:
        summary: from `Trace.summary()`.
        plain_step: measured seconds of a plain step in the model's own modules; None where it was
            not, as over several processes, of which only one may ask.
        search: what the search for a layer set is doing, in words.
        notes: what costs speed on this machine, a sentence each.
    """
    tokens, seconds = summary["new_tokens"], summary["seconds"]
    if not tokens:
        return "no tokens were generated"
    lines = [f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.1f} tokens/s"]
    if summary["drafted_tokens"]:
        lines += _drafting(summary)
    lines.append(_times(summary["time_split"], seconds))
    lines.append(_verdict(summary, plain_step))
    if search is not None:
        lines.append(f"skipping: {search}")
    lines += notes
    return "\n".join(lines)


def _drafting(summary: dict[str, Any]) -> list[str]:
    histogram: dict[int, int] = summary["accepted_histogram"]
    most = max(histogram.values())
    on_chain = round(summary["acceptance_rate"] * summary["drafted_tokens"])
    beside = summary["accepted_tokens"] - on_chain
    alternatives = f", {beside} more from alternatives" if beside else ""
    again = summary["decided_again"]
    ties = [] if summary["exact"] else [NOT_EXACT]
    if again:
        ties.append(f"{again} near-ties decided again by a forward of their own")
    return [
        _who(summary),
        f"{on_chain} of {summary['drafted_tokens']} draft "
        f"tokens accepted ({summary['acceptance_rate']:.0%}){alternatives}, "
        f"{summary['tokens_per_forward']:.2f} tokens per forward of the full model",
        "accepted per draft:",
        *(
            f"  {accepted:3d} {'█' * max(1, round(BAR * count / most))} {count}"
            for accepted, count in histogram.items()
        ),
        *ties,
    ]


def _who(summary: dict[str, Any]) -> str:
    """Which drafters proposed, and how often."""
    skipped = summary["layer_set"]
    words = {
        "layer_skip": f"by the model with {len(skipped['attention'])} attention and "
        f"{len(skipped['mlp'])} MLP sublayers skipped",
        "copying": "copied from the text",
        "recycling": "by the model's own runner-ups seen before",
        "copying+recycling": "by both",
        "cascade": "foreseen so and agreed to by the model with them skipped",
    }
    parts = [f"{count} {words.get(name, name)}" for name, count in summary["drafters"].items()]
    plain = summary["target_forwards"] - 1 - sum(summary["drafters"].values())
    return f"drafts: {', '.join(parts)}" + (f"; {plain} forwards without" if plain > 0 else "")


def _times(split: dict[str, float], seconds: float) -> str:
    shares = [f"{name} {part / seconds:.0%}" for name, part in split.items() if part]
    return "time: " + ", ".join(shares)


def _verdict(summary: dict[str, Any], plain_step: float | None) -> str:
    decoding = summary["seconds"] - summary["time_split"]["prefill"]
    if summary["new_tokens"] < 2:
        return "too short to say whether it was faster"
    step = decoding / (summary["new_tokens"] - 1)
    if plain_step is None:
        return f"{step * 1e3:.0f} ms a token; plain steps of the model are not known"
    plain = f"plain steps of the model, measured afterwards: {plain_step * 1e3:.0f} ms"
    measured = f"{step * 1e3:.0f} ms a token; {plain}"
    ratio = plain_step / step
    if not summary["drafted_tokens"]:
        return f"decoded without drafting, {ratio:.2f}x plain decoding: {measured}"
    if ratio > 1:
        return f"faster, {ratio:.2f}x plain decoding: {measured}"
    return (
        f"NOT faster, {ratio:.2f}x plain decoding: {measured}. "
        "Drafting is given up while it does not pay; a cheaper draft (another layer set) may"
    )
