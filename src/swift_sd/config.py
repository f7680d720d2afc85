"""Settings of a `Swift` object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from swift_sd.errors import ConfigError
from swift_sd.model.layer_set import LayerSet

MAX_DRAFT_TOKENS = 256  # beyond this no acceptance rate pays for the verifying forward
EXACT = ("auto", "strict", "off")
DRAFT_BITS = (4, 8, 16)


@dataclass(frozen=True)
class SwiftConfig:
    """How to draft. The output does not depend on it, only the speed does.

    Attributes:
        layer_set: sublayers that the draft skips; None for the paper's start, every second one.
        max_draft_tokens: most tokens drafted before the target verifies them; 0 decodes plainly.
        tree: whether alternatives to drafted tokens are verified along with them.
        early_stop: None lets measured costs and acceptance decide how deep and wide to draft, and
            whether to draft at all. A number is the paper's ε (SWIFT, section 4.2): drafting stops
            behind a token whose probability is below it, and the number of alternatives follows
            the paper's table.
        draft_bits: 4 or 8 let the draft read copies of the weights, rounded to so many bits and
            made when the object is (about 0.27 and 0.52 times the memory of a model in 16 bits);
            where there is no kernel for it, and with 16, it reads the model's own.
        exact: what is done about rounding. Over several rows a model may round differently than
            over one, so that in 16 bits another token wins than in plain decoding where two are
            nearly tied. "auto" verifies with operations that give, to the bit, what they give for
            one row, if there are such on this machine; if not, it decides near-ties again with a
            forward of their own. "strict" goes row by row rather than do that. "off" takes what
            comes.

    Raises:
        ConfigError: a value is out of range.
    """

    layer_set: LayerSet | None = None
    max_draft_tokens: int = 25
    tree: bool = True
    early_stop: float | None = None
    draft_bits: Literal[4, 8, 16] = 4
    exact: Literal["auto", "strict", "off"] = "auto"

    def __post_init__(self) -> None:
        count, threshold = self.max_draft_tokens, self.early_stop
        if isinstance(count, bool) or not isinstance(count, int):
            raise ConfigError(f"max_draft_tokens is {count!r}; give a whole number")
        if not 0 <= count <= MAX_DRAFT_TOKENS:
            raise ConfigError(
                f"max_draft_tokens is {count}; give 0 (plain decoding) to {MAX_DRAFT_TOKENS}"
            )
        is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if threshold is not None and not (is_number and 0 <= threshold <= 1):
            raise ConfigError(
                f"early_stop is {threshold!r}; give a probability from 0 to 1, or None"
            )
        if not isinstance(self.tree, bool):
            raise ConfigError(f"tree is {self.tree!r}; give True or False")
        if self.draft_bits not in DRAFT_BITS:
            raise ConfigError(f"draft_bits is {self.draft_bits!r}; choose from 4, 8, 16")
        if self.exact not in EXACT:
            raise ConfigError(f"exact is {self.exact!r}; choose from {', '.join(EXACT)}")
        if self.layer_set is not None and not isinstance(self.layer_set, LayerSet):
            raise ConfigError(
                f"layer_set is a {type(self.layer_set).__name__}; give a LayerSet "
                "(LayerSet.load reads one from a file)"
            )

    @classmethod
    def paper(cls) -> SwiftConfig:
        """The setting of the paper: ε = 0.8, at most 25 draft tokens (SWIFT, section 5.1)."""
        return cls(max_draft_tokens=25, tree=True, early_stop=0.8, draft_bits=16)

    @classmethod
    def plain(cls) -> SwiftConfig:
        """No drafting: one token a forward, through the same loop."""
        return cls(max_draft_tokens=0)
