"""What the drafts of all responses read: the model's own weights, or rounded copies of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from time import perf_counter
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swift_sd.model.compiled_draft import CompiledDraft, CompiledWeights
from swift_sd.model.draft_view import DraftView
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.layer_set import LayerSet
from swift_sd.model.quantised_linear import quantised_copy
from swift_sd.model.rounded_weights import KeptCopies
from swift_sd.model.shortlist import LEAST, Shortlist
from swift_sd.model.sublayers import Sublayers
from swift_sd.model.token_ranking import ranked_tokens
from swift_sd.model.view import View, spread_tokens
from swift_sd.native.compiler import NoKernelsError

PREFIX, CHECKED = 4, 6  # tokens
FAITHFUL = 0.5  # relative error of the logits; a layer that was misunderstood gives 1 and more

AnyDraft = DraftView | CompiledDraft


class DraftWeights:
    """Made once for a model; makes the draft views of its responses.

    Compiled code where the model is of the layout that it knows, on the CPU, and shown on a few
    tokens to be understood; else torch's packed kernels in the model's own modules; else the model.

    Args:
        model: the target; it is not changed.
        sublayers: what `find_sublayers(model)` found.
        bits: 4, 8, or 16 for the model's own weights.
        group: rounded weights that share a scale; fewer where that does not divide a row.
        compiled: whether code may be compiled for it.
        has_short_head: whether compiled drafts compute the logits of a `Shortlist` only.
        tokenizer: tells it which tokens are frequent, if there is one.
        kept: where what compiled code reads is kept, if it is.

    Attributes:
        bits: of the weights that drafts read, in fact.
        error: relative error of the logits on a few tokens; 0.0 for the model's own weights.
        why_not_compiled, why_not_rounded: the reason, where that was wished for.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sublayers: Sublayers,
        bits: int,
        *,
        group: int = 128,
        compiled: bool = True,
        has_short_head: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
        kept: KeptCopies | None = None,
    ) -> None:
        self._model, self._sublayers, self._group, self._kept = model, sublayers, group, kept
        self._compiled: CompiledWeights | None = None
        self._copy: nn.Module | None = None
        self.bits, self.error = 16, 0.0
        self.why_not_compiled: str | None = None
        self.why_not_rounded: str | None = None
        self._has_short_head, self._tokenizer = has_short_head, tokenizer
        begin = perf_counter()
        if bits < 16:
            self._round(bits, compiled)
        self._seconds = perf_counter() - begin

    @property
    def bytes(self) -> int:
        """Memory taken beyond the model's own."""
        if self._compiled is not None:
            return self._compiled.bytes
        if self._copy is None:
            return 0
        # What the packed layers hold are plain attributes, not parameters.
        held = (vars(module).values() for module in self._copy.modules())
        return sum(one.nbytes for values in held for one in values if torch.is_tensor(one))

    @property
    def facts(self) -> dict[str, Any]:
        """Ready for JSON: bits, relative error of the logits, bytes, seconds that it took.

        And if they are not rounded, or not read by compiled code, why not.
        """
        reasons = {"rounded": self.why_not_rounded, "compiled": self.why_not_compiled}
        return {
            **{f"why_not_{what}": reason for what, reason in reasons.items() if reason is not None},
            "bits": self.bits,
            "relative_error": self.error,
            "bytes": self.bytes,
            "seconds": self._seconds,
            "compiled": self._compiled is not None,
        }

    def view(self, layer_set: LayerSet, shortlist: Shortlist | None = None) -> AnyDraft:
        """A draft for one response that skips `layer_set`.

        Args:
            layer_set: what it skips at first.
            shortlist: the tokens that compiled code chooses among; None for all.
        """
        if self._compiled is not None:
            return CompiledDraft(self._compiled, layer_set, shortlist)
        model: Any = self._copy if self._copy is not None else self._model
        return DraftView(model, self._sublayers, layer_set)

    def new_shortlist(self) -> Shortlist | None:
        """Tokens for drafts to choose among; None where they read the whole head."""
        if not self._has_short_head or self._compiled is None or self._compiled.vocabulary <= LEAST:
            return None
        return Shortlist(self._compiled.vocabulary, self._ranking)

    @cached_property
    def _ranking(self) -> Sequence[int] | None:
        return ranked_tokens(self._tokenizer)

    def _round(self, bits: int, compiled: bool) -> None:
        try:
            if not compiled:
                raise NoKernelsError("nothing is to be compiled")
            self._compiled = CompiledWeights(
                self._model, self._sublayers, bits, self._group, self._kept
            )
            self._accept(bits)
        except NoKernelsError as reason:
            self.why_not_compiled, self._compiled = str(reason), None
        if self._compiled is not None:
            return
        try:
            self._copy = quantised_copy(self._model, bits, self._group)
            if self._copy is None:
                raise NoKernelsError("there are no packed kernels for most of its weights")
            self._accept(bits)
        # torch may find out late that it has no such kernel for this device, and layers of others
        # may look into those that were replaced.
        except Exception as reason:
            self.why_not_rounded, self._copy = str(reason), None

    def _accept(self, bits: int) -> None:
        """Draft with what was made, unless it is something else than the model, rounded."""
        error = self._relative_error()
        if not error <= FAITHFUL:
            raise NoKernelsError(f"its logits would be off by {error:.0%}")
        self.bits, self.error = bits, error

    def _relative_error(self) -> float:
        """Of the logits of a few tokens, against those of the model."""
        tokens = spread_tokens(self._model, PREFIX + CHECKED)
        cache = KVCache(attention_windows(self._model.config))
        plain = View(self._model)
        plain.forward(tokens[:, :PREFIX], cache, keep=1)
        cache.commit(PREFIX)
        draft = self.view(LayerSet.none(self._sublayers.depth))
        found = draft.forward(tokens[:, PREFIX:], cache).float()
        cache.rollback()
        expected = plain.forward(tokens[:, PREFIX:], cache).float()
        return float((found - expected).norm() / expected.norm())
