"""Settings of a `Swift` object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from swift_sd.errors import ConfigError
from swift_sd.model.layer_set import LayerSet

MAX_DRAFT_TOKENS = 256  # beyond this no acceptance rate pays for the verifying forward
EXACT = ("auto", "strict", "off")
DRAFT_BITS = ("auto", 4, 8, 16)
DRAFT_GROUPS = (64, 128, 256)
DRAFTERS = ("copying", "recycling", "model")


@dataclass(frozen=True)
class SwiftConfig:
    """How to draft. Only the speed depends on it; `exact` says when the output does, too.

    Attributes:
        layer_set: sublayers that the draft skips; None to search for them.
        max_draft_tokens: most tokens drafted before the target verifies them; 0 decodes plainly.
        tree: whether alternatives to drafted tokens are verified along with them.
        early_stop: None lets measured costs and acceptance decide how deep and wide to draft, and
            whether to draft at all. A number is the paper's ε (SWIFT, section 4.2): drafting stops
            behind a token whose probability is below it, and the number of alternatives follows
            the paper's table; sublayers are then searched for only with a `skip_ratio`.
        skip_ratio: None to search for the set that gives most tokens per second, whatever its size.
            A number is the paper's r: its search (SWIFT, section 4.1) for the best set of that
            share of the sublayers, at first every second one.
        eager_search: whether to search as fast as possible, at the expense of the responses
            meanwhile, rather than in a small share of the time.
        draft_bits: 4 or 8 let the draft read copies of the weights, rounded to so many bits and
            made when the object is (0.2 to 0.3 and 0.4 to 0.55 times a model's memory in 16 bits);
            where there is no kernel for it, and with 16, it reads the model's own. "auto" takes
            what `swift-sd search` has found, if the profile says; else 4 bits, or on a CPU 8 for
            a model of less than 300 million parameters, which suffers more from rounding.
        draft_group: weights in a row that share a scale there: fewer err less and take more memory.
            torch's packed kernels for 8 bits, where nothing is compiled, have one scale for a row.
        keep_copies: whether what compiled code reads of these is kept in the user's cache directory
            (or `$SWIFT_SD_CACHE`), so that it need not be made again, and processes share it.
        drafters: who may propose: "copying" continues what the text repeats, "recycling" takes what
            the target nearly said before, "model" drafts with the model itself. Without "model"
            nothing is copied, rounded or searched for.
        cascade: whether drafts of the model read several tokens at once that the others foresee,
            keep those that they agree to, and go on behind them.
        compiled: whether code may be compiled, with this machine's own compiler, that drafts and
            verifies faster; torch's kernels do it otherwise.
        short_head: whether drafts choose among the frequent tokens and those of the text only,
            where compiled code reads copies of the weights; the target chooses among all.
        exact: what is done about rounding. Over several rows a model may round differently than
            over one, so that in 16 bits another token wins than in plain decoding where two are
            nearly tied. "auto" verifies with operations that give, to the bit, what they give for
            one row, if there are such on this machine; if not, it decides near-ties again with a
            forward of their own. "strict" goes row by row rather than do that. "off" takes what
            comes.

    Raises:
        ConfigError: a value is out of range, or contradicts another.
    """

    layer_set: LayerSet | None = None
    max_draft_tokens: int = 25
    tree: bool = True
    early_stop: float | None = None
    skip_ratio: float | None = None
    eager_search: bool = False
    draft_bits: Literal["auto", 4, 8, 16] = "auto"
    draft_group: Literal[64, 128, 256] = 128
    keep_copies: bool = False
    drafters: tuple[Literal["copying", "recycling", "model"], ...] = (
        "copying",
        "recycling",
        "model",
    )
    cascade: bool = True
    short_head: bool = True
    compiled: bool = True
    exact: Literal["auto", "strict", "off"] = "auto"

    def __post_init__(self) -> None:
        count, threshold = self.max_draft_tokens, self.early_stop
        if isinstance(count, bool) or not isinstance(count, int):
            raise ConfigError(f"max_draft_tokens is {count!r}; give a whole number")
        if not 0 <= count <= MAX_DRAFT_TOKENS:
            raise ConfigError(
                f"max_draft_tokens is {count}; give 0 (plain decoding) to {MAX_DRAFT_TOKENS}"
            )
        if threshold is not None and not (_is_number(threshold) and 0 <= threshold <= 1):
            raise ConfigError(
                f"early_stop is {threshold!r}; give a probability from 0 to 1, or None"
            )
        ratio = self.skip_ratio
        if ratio is not None and not (_is_number(ratio) and 0 < ratio <= 1):
            raise ConfigError(
                f"skip_ratio is {ratio!r}; give a share above 0 and at most 1, or None"
            )
        for name in ("tree", "eager_search", "keep_copies", "cascade", "short_head", "compiled"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; give True or False")
        if self.draft_bits not in DRAFT_BITS:
            raise ConfigError(f"draft_bits is {self.draft_bits!r}; choose from auto, 4, 8, 16")
        if self.draft_group not in DRAFT_GROUPS:
            raise ConfigError(f"draft_group is {self.draft_group!r}; choose from 64, 128, 256")
        names = self.drafters
        if not isinstance(names, tuple) or not names or not set(names) <= set(DRAFTERS):
            raise ConfigError(
                f"drafters is {names!r}; give a tuple of some of {', '.join(DRAFTERS)}, "
                "or max_draft_tokens=0 to draft nothing"
            )
        if self.exact not in EXACT:
            raise ConfigError(f"exact is {self.exact!r}; choose from {', '.join(EXACT)}")
        if self.layer_set is not None and not isinstance(self.layer_set, LayerSet):
            raise ConfigError(
                f"layer_set is a {type(self.layer_set).__name__}; give a LayerSet "
                "(LayerSet.load reads one from a file)"
            )

        self._check_search()

    def _check_search(self) -> None:
        """Raise if what is said about the search contradicts itself."""
        if "model" not in self.drafters:
            idle = [*self._settled, *(["eager_search"] if self.eager_search else [])]
            if idle:
                raise ConfigError(
                    f"{', '.join(idle)} is for drafts of the model: add it to drafters, or drop it"
                )
        if self.layer_set is not None and self.skip_ratio is not None:
            raise ConfigError("layer_set leaves nothing to search for: drop it, or skip_ratio")
        if not self.eager_search:
            return
        others = [*self._settled, *([] if self.max_draft_tokens else ["max_draft_tokens=0"])]
        if others:
            raise ConfigError(f"eager_search has no meaning with {', '.join(others)}: drop one")

    @property
    def _settled(self) -> list[str]:
        """Settings that say what our search would find out."""
        names = ("layer_set", "skip_ratio", "early_stop")
        return [name for name in names if getattr(self, name) is not None]

    @property
    def searches(self) -> bool:
        """Whether sublayers are searched for in our way, so that there is something to keep."""
        return "model" in self.drafters and self.max_draft_tokens > 0 and not self._settled

    @property
    def needs_no_clock(self) -> bool:
        """Whether no measured time decides what is drafted, so that processes can do it alike."""
        return not self.max_draft_tokens or self.early_stop is not None

    @classmethod
    def paper(cls) -> SwiftConfig:
        """The setting of the paper: ε = 0.8, r = 0.45, at most 25 draft tokens (SWIFT, 5.1).

        Nothing is added: it drafts in every round, whether that pays or not. When sampling, tokens
        are drafted with the random numbers of plain decoding, as everywhere here: so the output is
        that of the same seed, where the paper corrects by rejection (Leviathan et al. 2023). The
        paper's r is 0.4 for 7B models, 0.45 for 13B and 0.5 for 70B; `dataclasses.replace` sets
        another one.
        """
        return cls(max_draft_tokens=25, tree=True, early_stop=0.8, skip_ratio=0.45, draft_bits=16)

    @classmethod
    def plain(cls) -> SwiftConfig:
        """No drafting: one token a forward, through the same loop."""
        return cls(max_draft_tokens=0)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
