"""Settings of a `Swift` object."""

from __future__ import annotations

import math
from dataclasses import dataclass

from swift_sd.errors import ConfigError
from swift_sd.model.layer_set import LayerSet

MAX_DRAFT_TOKENS = 256  # beyond this no acceptance rate pays for the verifying forward


@dataclass(frozen=True)
class SwiftConfig:
    """How to draft. The output does not depend on it, only the speed does.

    Attributes:
        layer_set: sublayers that the draft skips; None for the paper's start, every second one.
        max_draft_tokens: most tokens drafted before the target verifies them; 0 decodes plainly.
        early_stop: drafting stops behind a token whose probability under the draft's most likely
            choice is below this (ε in SWIFT, section 4.2); 0 never stops early.

    Raises:
        ConfigError: a value is out of range.
    """

    layer_set: LayerSet | None = None
    max_draft_tokens: int = 25
    early_stop: float = 0.8

    def __post_init__(self) -> None:
        count, threshold = self.max_draft_tokens, self.early_stop
        if isinstance(count, bool) or not isinstance(count, int):
            raise ConfigError(f"max_draft_tokens is {count!r}; give a whole number")
        if not 0 <= count <= MAX_DRAFT_TOKENS:
            raise ConfigError(
                f"max_draft_tokens is {count}; give 0 (plain decoding) to {MAX_DRAFT_TOKENS}"
            )
        is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if not is_number or not math.isfinite(threshold):
            raise ConfigError(f"early_stop is {threshold!r}; give a probability from 0 to 1")
        if not 0 <= threshold <= 1:
            raise ConfigError(f"early_stop is {threshold}; give a probability from 0 to 1")
        if self.layer_set is not None and not isinstance(self.layer_set, LayerSet):
            raise ConfigError(
                f"layer_set is a {type(self.layer_set).__name__}; give a LayerSet "
                "(LayerSet.load reads one from a file)"
            )

    @classmethod
    def paper(cls) -> SwiftConfig:
        """The setting of the paper: ε = 0.8, at most 25 draft tokens (SWIFT, section 5.1)."""
        return cls(layer_set=None, max_draft_tokens=25, early_stop=0.8)

    @classmethod
    def plain(cls) -> SwiftConfig:
        """No drafting: one token a forward, through the same loop."""
        return cls(max_draft_tokens=0)
