"""What a `Swift` object has found out so far, and the drafters that make use of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swift_sd.adapting.adaptation import Adaptation
from swift_sd.adapting.costs import Costs, measure_costs
from swift_sd.adapting.drafters import MODEL, Drafters
from swift_sd.adapting.fingerprint import model_fingerprint
from swift_sd.adapting.keeper import AUTO, Keeper
from swift_sd.adapting.paper_adaptation import PaperAdaptation
from swift_sd.adapting.paper_search import PaperSearch
from swift_sd.adapting.prior import measured_prior
from swift_sd.adapting.profile import Profile
from swift_sd.adapting.words import described
from swift_sd.cache_folder import cache_root
from swift_sd.config import SwiftConfig
from swift_sd.decoding.drafter import Adapter, Drafter
from swift_sd.decoding.trace import Trace
from swift_sd.drafting.growth import PaperGrowth
from swift_sd.drafting.layer_skip import LayerSkipDrafter
from swift_sd.drafting.memory import Memories, Memory
from swift_sd.drafting.pace import Prior
from swift_sd.drafting.recycling import Successors
from swift_sd.errors import ConfigError
from swift_sd.model.draft_weights import DraftWeights
from swift_sd.model.exact_target import ExactTarget
from swift_sd.model.layer_set import LayerSet
from swift_sd.model.rounded_weights import KeptCopies
from swift_sd.model.sharding import is_sharded
from swift_sd.model.speed_notes import speed_notes
from swift_sd.model.sublayers import Sublayers
from swift_sd.model.target import Target
from swift_sd.model.tree_check import why_no_trees
from swift_sd.model.tree_mask import TreeMask
from swift_sd.native.waiting import SpinControl, short_spins

SMALL = 300_000_000  # parameters
REMEDY = (
    "leave it out, or set none of layer_set, skip_ratio, early_stop, max_draft_tokens=0 and "
    'drafters without "model"'
)
# How near a near-tie is, in units of the rounding of the best logit.
TOLERANCE = {"auto": 2.0, "strict": 8.0}


class Experience:
    """Lasts as long as the `Swift` object; each response starts with it and adds to it.

    Args:
        model: the target; it is not changed.
        sublayers: what `find_sublayers(model)` found.
        config: how to draft.
        profile: what to start from; see `Keeper`.
        tokenizer: tells drafts which tokens are frequent, if there is one.
        clock: tells the seconds by which everything is measured.

    Raises:
        ProfileError: the profile is damaged, or for another model.
        ConfigError: there is a profile, and nothing is learned that it could serve.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sublayers: Sublayers,
        config: SwiftConfig,
        profile: Profile | str | Path | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._model, self.sublayers = model, sublayers
        self._config, self._tokenizer = config, tokenizer
        self.clock, self.spins = clock, SpinControl(clock)
        depth = model.config.get_text_config(decoder=True).num_hidden_layers
        if config.layer_set is not None:
            config.layer_set.check_depth(depth)
        start = LayerSet.unified if config.early_stop is not None else LayerSet.none
        self._start = config.layer_set or start(depth)
        with short_spins():
            # Forwards over a few tokens, once: so that no response has to wait for them.
            self._reads_trees = self._can_read_trees()
            drafts = config.max_draft_tokens > 0
            self._keeper = self._made_keeper(profile)
            self._exact = ExactTarget(
                model, sublayers, config.exact, several_rows=drafts, compiled=config.compiled
            )
            bits = self._draft_bits()
            self.draft_weights = self._made_draft_weights(bits, self._kept_copies(bits))
        self._costs: dict[int, Costs] = {}
        self.memories = Memories(self._empty_memory)
        self._drafters = Drafters(config, model.device, self._measured_prior(), clock)
        self._adaptation = self._made_adaptation()

    def target(self, adapter: Adapter | None = None) -> Target:
        """The model as it is now, to read prompts (looked at by the adapter) and verify drafts."""
        reader = adapter.reader(self._exact.reading_model()) if adapter is not None else None
        return self._exact.target(reader)

    @property
    def is_exact(self) -> bool:
        """Whether verification gives plain decoding's bits."""
        return self._exact.is_exact

    def reread(self) -> None:
        """The model has got other weights: drafts are made of those, and kept nowhere."""
        self.draft_weights = self._made_draft_weights(self.draft_weights.bits, None)
        self._drafters.forget()

    def costs(self, context: int) -> Costs:
        """Seconds of a step and of each sublayer behind `context` positions; measured once."""
        if context not in self._costs:
            self._costs[context] = measure_costs(
                self._model, self.sublayers, context=context, clock=self.clock
            )
        return self._costs[context]

    @property
    def profile(self) -> Profile:
        """What was learned; raises `ConfigError` where nothing is."""
        return self._learning().profile

    def take_over(self, profile: Profile) -> None:
        """See `Keeper`; raises `ConfigError` where nothing is learned."""
        self._learning().take_over(profile)

    def _learning(self) -> Keeper:
        if self._keeper is None:
            raise ConfigError(
                f"with these settings nothing is learned that could be kept: {REMEDY}"
            )
        return self._keeper

    @property
    def words(self) -> str | None:
        """What the search for a layer set is doing; None where there is none."""
        return described(self._adaptation) if self._adaptation is not None else None

    @property
    def speed_notes(self) -> list[str]:
        """See `speed_notes`; empty where the settings do without compiled code."""
        if not self._config.compiled or self._config.exact == "off":
            return []
        return speed_notes(self._model, self.sublayers, self._exact)

    def finish(self) -> None:
        """A response has come to its end."""
        if self._keeper is not None:
            self._keeper.update()

    @property
    def tolerance(self) -> float:
        """See `Verification`."""
        is_exact = self._config.exact == "off" or self._exact.is_exact
        return 0.0 if is_exact else TOLERANCE[self._config.exact]

    @property
    def layer_set(self) -> LayerSet:
        """What drafts skip: what the user gave, or the best set found so far."""
        best = self._adaptation.best if self._adaptation is not None else None
        return best or self._start

    def new_trace(self, prompt_tokens: int) -> Trace:
        """The record of a response that begins now."""
        drafts = MODEL in self._config.drafters and self._config.max_draft_tokens
        facts = self.draft_weights.facts | {"step_seconds": self._drafters.pace.draft_step}
        return Trace(
            self.layer_set,
            prompt_tokens=prompt_tokens,
            draft_view=facts if drafts else None,
            exact=self._exact.is_exact or not self._config.max_draft_tokens,
        )

    def drafting(
        self, *, do_sample: bool, memory: str | None = None
    ) -> tuple[Drafter | None, Adapter | None]:
        """A drafter for one response and what improves it; None to decode plainly.

        It has a view of its own: responses share nothing that changes but what is learned, and each
        sees the model as it is now.

        Args:
            do_sample: whether tokens are drawn.
            memory: whose earlier texts drafts may draw on.
        """
        if not self._config.max_draft_tokens:
            return None, None
        reads_trees = self._reads_trees and TreeMask(self._model).is_supported  # as it is now
        known = self.memories.of(memory)
        view = self.draft_weights.view(self.layer_set, known.shortlist)
        adapter = self._adaptation.begin(view) if self._adaptation is not None else None
        if self._config.early_stop is not None:
            alternatives = PaperGrowth.SAMPLING if do_sample else PaperGrowth.GREEDY
            widths = alternatives if reads_trees else PaperGrowth.CHAIN
            by_rule = PaperGrowth(self._config.early_stop, widths)
            drafter = LayerSkipDrafter(view, by_rule, shortlist=view.shortlist, clock=self.clock)
            return drafter, adapter
        governor = self._drafters.governor(view, known, reads_trees=reads_trees)
        return governor, adapter

    def _empty_memory(self) -> Memory:
        return Memory(Successors(), self.draft_weights.new_shortlist())

    def _draft_bits(self) -> int:
        config = self._config
        if not config.max_draft_tokens or MODEL not in config.drafters:
            return 16
        if config.draft_bits != "auto":
            return int(config.draft_bits)
        if self._keeper is not None and self._keeper.bits is not None:
            return self._keeper.bits
        # A small model suffers more from rounding, and saves less: its drafts are not all reading.
        # On a GPU torch's kernel for 8 bits is said to be slower than the products in 16.
        is_small = self._model.num_parameters() < SMALL
        return 8 if is_small and self._model.device.type == "cpu" else 4

    def _made_draft_weights(self, bits: int, kept: KeptCopies | None) -> DraftWeights:
        return DraftWeights(
            self._model,
            self.sublayers,
            bits,
            group=self._config.draft_group,
            compiled=self._config.compiled,
            has_short_head=self._config.short_head,
            tokenizer=self._tokenizer,
            kept=kept,
        )

    def _kept_copies(self, bits: int) -> KeptCopies | None:
        if not self._config.keep_copies or is_sharded(self._model):  # no process has the copies
            return None
        identity, group = model_fingerprint(self._model), self._config.draft_group
        name = f"{identity['family']}-{identity['digest']}-{bits}-bits-by-{group}.pt"
        return KeptCopies(cache_root() / "copies" / name, bits, group)

    def _measured_prior(self) -> Prior:
        if not self._config.max_draft_tokens or self._config.early_stop is not None:
            return Prior()
        view = None
        if MODEL in self._config.drafters:
            view = self.draft_weights.view(self._start)
        with self.spins.watching() as look:
            return measured_prior(self._model, self.target(), view, self.clock, look)

    def _made_adaptation(self) -> Adaptation | PaperAdaptation | None:
        config = self._config
        if config.skip_ratio is not None and config.max_draft_tokens:
            return PaperAdaptation(PaperSearch(self.sublayers.depth, config.skip_ratio))
        if self._keeper is None:
            return None
        adaptation = Adaptation(
            self.sublayers,
            self._drafters.pace,
            config.max_draft_tokens,
            self._drafters.forget,
            self._exact.reading_model,
            eager=config.eager_search,
            bits=self.draft_weights.bits,
            clock=self.clock,
        )
        self._keeper.teach(adaptation)
        return adaptation

    def _made_keeper(self, profile: Profile | str | Path | None) -> Keeper | None:
        if self._config.searches:
            return Keeper(self._model, profile)
        if profile is not None and profile != AUTO:
            raise ConfigError(
                f"with these settings nothing is learned, so a profile has no place: {REMEDY}"
            )
        return None

    def _can_read_trees(self) -> bool:
        if not (self._config.tree and self._config.max_draft_tokens):
            return False
        reason = why_no_trees(self._model, self.sublayers)
        if reason is not None:
            warnings.warn(
                f"{type(self._model).__name__} verifies chains of draft tokens without "
                f"alternatives: {reason}",
                stacklevel=2,
            )
        return reason is None
