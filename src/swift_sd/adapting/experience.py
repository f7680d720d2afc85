"""What a `Swift` object has found out so far, and the drafters that make use of it."""

from __future__ import annotations

import warnings
from typing import Any

from transformers import PreTrainedModel

from swift_sd.adapting.adaptation import Adaptation, Adapting
from swift_sd.adapting.governor import FORESIGHT, TRUST, Governed, Governor, Ledger, Purse, supposed
from swift_sd.adapting.prior import measured_prior
from swift_sd.config import SwiftConfig
from swift_sd.decoding.drafter import Adapter, Drafter
from swift_sd.drafting.calibration import Calibrations
from swift_sd.drafting.growth import CostGrowth, PaperGrowth
from swift_sd.drafting.layer_skip import AGREED, OWN, LayerSkipDrafter
from swift_sd.drafting.pace import Pace, Prior
from swift_sd.drafting.recall import RecallDrafter
from swift_sd.drafting.recycling import Successors
from swift_sd.model.draft_weights import DraftWeights
from swift_sd.model.exact_rows import (
    AttentionKernels,
    ExactRows,
    Forms,
    compiled_reader,
    exact_forms,
    is_exact,
)
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.layer_set import LayerSet
from swift_sd.model.sublayers import Sublayers
from swift_sd.model.target import Target
from swift_sd.model.tree_check import why_no_trees
from swift_sd.native.compiler import find_kernels

# How near a near-tie is, in units of the rounding of the best logit.
TOLERANCE = {"auto": 2.0, "strict": 8.0}
# Of all weights that a step reads, how many may be read once for each row.
MOST_ALONE = {"auto": 0.25, "strict": 1.0}


class Experience:
    """Lasts as long as the `Swift` object; each response starts with it and adds to it.

    Args:
        model: the target; it is not changed.
        sublayers: what `find_sublayers(model)` found.
        config: how to draft.
    """

    def __init__(self, model: PreTrainedModel, sublayers: Sublayers, config: SwiftConfig) -> None:
        self._model = model
        self._sublayers = sublayers
        self._config = config
        # Forwards over a few tokens, once: so that no response has to wait for them.
        self._reads_trees = self._can_read_trees()
        self._attention_kernels = AttentionKernels(find_kernels())
        self._exact_forms = self._find_exact_forms()
        bits = config.draft_bits if config.max_draft_tokens else 16
        self.draft_weights = DraftWeights(model, sublayers, bits)
        is_paper = config.early_stop is not None
        start = LayerSet.unified if is_paper else LayerSet.none
        self._start = start(sublayers.depth)
        if config.layer_set is not None:
            config.layer_set.check_depth(sublayers.depth)
        self.calibrations = Calibrations()
        self.successors = Successors()
        self.pace, self.purse = Pace(model.device, self._measured_prior()), Purse()
        self.ledger = Ledger(self.pace, self.purse, TRUST)
        self.recall_ledger = Ledger(self.pace, self.purse, FORESIGHT)
        self.adaptation = Adaptation(
            model, sublayers, self.pace, config.max_draft_tokens, self._forget
        )

    def target(self) -> Target:
        """The model as it is now, to read prompts and verify drafts."""
        if self._exact_forms is None:
            return Target(self._model)
        return Target(
            self._model,
            self._exact_view(self._exact_forms),
            compiled_reader(self._model, self._exact_forms),
        )

    @property
    def tolerance(self) -> float:
        """See `Verification`."""
        is_exact = self._config.exact == "off" or self._exact_forms is not None
        return 0.0 if is_exact else TOLERANCE[self._config.exact]

    @property
    def layer_set(self) -> LayerSet:
        """What drafts skip: what the user gave, or the best set found so far."""
        return self._config.layer_set or self.adaptation.best or self._start

    def drafting(self, *, do_sample: bool) -> tuple[Drafter | None, Adapter | None]:
        """A drafter for one response and what improves it; None to decode plainly.

        It has a view of its own: responses share nothing that changes but what is learned, and each
        sees the model as it is now.
        """
        if not self._config.max_draft_tokens:
            return None, None
        view = self.draft_weights.view(self.layer_set)
        if self._config.early_stop is not None:
            alternatives = PaperGrowth.SAMPLING if do_sample else PaperGrowth.GREEDY
            widths = alternatives if self._reads_trees else PaperGrowth.CHAIN
            return LayerSkipDrafter(view, PaperGrowth(self._config.early_stop, widths)), None
        growth = CostGrowth(self.calibrations, self.pace, self._reads_trees)
        recall = RecallDrafter(growth, self.successors)
        drafters = [
            Governed(recall, self.recall_ledger, recall.promise, foresees=True),
            Governed(
                LayerSkipDrafter(view, growth, recall),
                self.ledger,
                lambda state, budget: supposed(self.pace),
                foresees=False,
            ),
        ]
        governor = Governor(drafters, self.pace, self.purse)
        adapter = Adapting(self.adaptation, view) if self._config.layer_set is None else None
        return governor, adapter

    def _measured_prior(self) -> Prior:
        if not self._config.max_draft_tokens or self._config.early_stop is not None:
            return Prior()
        embedding: Any = self._model.get_input_embeddings()
        return measured_prior(
            self.target(),
            self.draft_weights.view(self._config.layer_set or self._start),
            KVCache(attention_windows(self._model.config)),
            embedding.weight.shape[0],
        )

    def _forget(self) -> None:
        for source in (OWN, AGREED):
            self.calibrations[source].forget()
        self.ledger.forget()

    def _can_read_trees(self) -> bool:
        if not (self._config.tree and self._config.max_draft_tokens):
            return False
        reason = why_no_trees(self._model, self._sublayers)
        if reason is not None:
            warnings.warn(
                f"{type(self._model).__name__} verifies chains of draft tokens without "
                f"alternatives: {reason}",
                stacklevel=2,
            )
        return reason is None

    def _find_exact_forms(self) -> Forms | None:
        """How to compute rows to the bit as if each was alone; None where that is not done."""
        exact, config = self._config.exact, self._model.config.get_text_config(decoder=True)
        if exact == "off" or not self._config.max_draft_tokens:
            return None
        if config._attn_implementation != "sdpa":
            return None
        forms = exact_forms(self._model, MOST_ALONE[exact], self._attention_kernels.library)
        if forms is None:
            return None
        return forms if is_exact(self._exact_view(forms), self._model) else None

    def _exact_view(self, forms: Forms) -> ExactRows:
        return ExactRows(self._model, self._sublayers, forms, self._attention_kernels)
