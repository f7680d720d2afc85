"""What one response's steps proposed, accepted and cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from swift_sd.model.layer_set import LayerSet


@dataclass(slots=True)
class Step:
    """One round of the loop: draft, verify, accept, commit.

    Attributes:
        tokens: what came out, in order: accepted draft tokens, then one chosen by the target (which
            is missing if the response ended inside the draft).
        drafter: who proposed; None if nothing was.
        drafted: number of tokens proposed on the main chain: each token's first successor.
        verified: number of all tokens proposed, alternatives included.
        accepted: number of proposed tokens that came out.
        accepted_on_chain: number of those that came out from the main chain.
        sources: for each proposed token that came out, in order, what proposed it; the first
            `accepted_on_chain` of them are of the main chain, the others alternatives.
        decided_again: number of places decided by a forward of their own.
        prefill, draft, verify, again, accept, adapt: seconds; `again` went into those forwards,
            `adapt` into finding better ways to draft.
    """

    tokens: tuple[int, ...]
    drafter: str | None = None
    drafted: int = 0
    verified: int = 0
    accepted: int = 0
    accepted_on_chain: int = 0
    sources: tuple[str, ...] = ()
    decided_again: int = 0
    prefill: float = 0.0
    draft: float = 0.0
    verify: float = 0.0
    again: float = 0.0
    accept: float = 0.0
    adapt: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it but what went into adapting."""
        return self.prefill + self.draft + self.verify + self.again + self.accept


PHASES = ("prefill", "draft", "verify", "accept", "adapt")


@dataclass
class Trace:
    """The record of one response, complete once the response is.

    Attributes:
        layer_set: what the draft skipped.
        steps: in order; the first is the prefill with its one token.
        seconds: wall time inside the loop; time in which the consumer of a stream held it up is not
            counted.
        prompt_tokens: length of the prompt.
        draft_view: facts about the weights that drafts of the model read: see `DraftWeights.facts`;
            and `step_seconds`, what one forward of them takes as far as was known at the beginning.
        exact: whether several rows are verified to the bit of single ones. If not, another token
            may win where two are nearly tied.
    """

    layer_set: LayerSet
    steps: list[Step] = field(default_factory=list)
    seconds: float = 0.0
    prompt_tokens: int = 0
    draft_view: dict[str, Any] | None = None
    exact: bool = True

    @property
    def token_ids(self) -> list[int]:
        """All new tokens."""
        return [token for step in self.steps for token in step.tokens]

    def summary(self) -> dict[str, Any]:
        """The figures that reports, `--json` and benchmarks use; times in seconds.

        `target_forwards` counts the prefill as one. `tokens_per_forward` counts accepted and bonus
        tokens by verifying forward, the prefill with its token left out; a place decided again is a
        forward too. `acceptance_rate` is accepted ÷ drafted on the main chain;
        `accepted_histogram[n]` is how many drafts had n tokens accepted, alternatives included.
        Rates without a denominator are None.
        """
        rounds = self.steps[1:]
        new_tokens = len(self.token_ids)
        drafted = sum(step.drafted for step in rounds)
        on_chain = sum(step.accepted_on_chain for step in rounds)
        again = sum(step.decided_again for step in rounds)
        forwards = len(rounds) + again
        lengths = Counter(step.accepted for step in rounds if step.drafter)
        split = {phase: sum(getattr(step, phase) for step in self.steps) for phase in PHASES}
        split["verify"] += sum(step.again for step in rounds)
        split["other"] = max(self.seconds - sum(split.values()), 0.0)
        return {
            "new_tokens": new_tokens,
            "seconds": self.seconds,
            "tokens_per_second": _ratio(new_tokens, self.seconds),
            "target_forwards": len(self.steps) + again,
            "tokens_per_forward": _ratio(sum(len(step.tokens) for step in rounds), forwards),
            "drafted_tokens": drafted,
            "verified_tokens": sum(step.verified for step in rounds),
            "accepted_tokens": sum(step.accepted for step in rounds),
            "acceptance_rate": _ratio(on_chain, drafted),
            "exact": self.exact,
            "decided_again": again,
            "accepted_histogram": {n: lengths[n] for n in sorted(lengths)},
            "time_split": split,
            "layer_set": {
                "attention": sorted(self.layer_set.attention),
                "mlp": sorted(self.layer_set.mlp),
            },
            "draft_view": self.draft_view,
            "drafters": dict(Counter(step.drafter for step in rounds if step.drafter)),
        }


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None
