"""How the target is computed to the bit of plain decoding over several rows: found by trying."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swift_sd.errors import UnsupportedModel
from swift_sd.model.compiled_target import CompiledTarget
from swift_sd.model.exact_linear import Forms, compiled_model, exact_forms, many_rows_are_alike
from swift_sd.model.exact_rows import AttentionKernels, ExactRows, has_other_weights, is_exact
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.sharding import hold_everywhere, holds_everywhere, is_sharded
from swift_sd.model.sublayers import Sublayers
from swift_sd.model.target import Target, Verifier
from swift_sd.model.view import View, spread_tokens
from swift_sd.native.compiler import NoKernelsError, find_kernels

READ = 20  # tokens of a prompt in a trial
MANY = 130  # rows of a linear layer: torch may take sums in another order for so many
# Of all weights that a step reads, how many may be read once for each row.
MOST_ALONE = {"auto": 0.25, "strict": 1.0}


class UpTo:
    """Verifies in compiled code up to a length, from which on torch adds up in another order.

    Args:
        compiled: for rows that see fewer keys than that.
        otherwise: makes what verifies from there on, when it is needed.
        limit: the length, if sliding layers keep a window only.
        window: the same if they keep every row, as in a cache that the user made: the smallest
            window.
    """

    def __init__(
        self, compiled: Verifier, otherwise: Callable[[], Verifier], limit: float, window: int
    ) -> None:
        self._compiled, self._limit, self._window = compiled, limit, window
        self._make_otherwise = otherwise

    @cached_property
    def _otherwise(self) -> Verifier:
        return self._make_otherwise()

    def forward(self, tokens: Tensor, cache: KVCache, *, ancestry: Tensor | None = None) -> Tensor:
        """See `View.forward`."""
        slides = any(buffer.window is not None for buffer in cache.buffers)
        is_known = cache.cursor + tokens.shape[1] < (self._limit if slides else self._window)
        verifier = self._compiled if is_known else self._otherwise
        return verifier.forward(tokens, cache, ancestry=ancestry)


@dataclass(frozen=True)
class Found:
    """What gives plain decoding's bits, under some conditions.

    Attributes:
        forms: of linear layers.
        kernels: for attention.
        reads: whether prompts can be read in compiled code.
        is_compiled: whether whole forwards can be.
    """

    forms: Forms
    kernels: AttentionKernels
    reads: bool = False
    is_compiled: bool = False


class ExactTarget:
    """Makes the target of each response.

    Args:
        model: the target; it is not changed.
        sublayers: what `find_sublayers(model)` found.
        exact: "auto", "strict" or "off"; see `SwiftConfig`.
        several_rows: whether more than one row is ever verified.
        compiled: whether code may be compiled for it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sublayers: Sublayers,
        exact: str,
        *,
        several_rows: bool,
        compiled: bool = True,
    ) -> None:
        self._model, self._sublayers, self._exact = model, sublayers, exact
        self._several_rows, self._may_compile = several_rows, compiled
        self._found = self._look()

    @property
    def is_exact(self) -> bool:
        """Whether verification gives plain decoding's bits however many rows there are."""
        return self._found is not None

    @property
    def is_compiled(self) -> bool:
        """Whether it does so in compiled code, as far as a window allows."""
        return self._found is not None and self._found.is_compiled

    def target(self, reader: View | None = None) -> Target:
        """The model as it is now; prompts are read by `reader` if there is one."""
        found = self._found
        if reader is None and (fast := self._reading(found)) is not self._model:
            reader = View(fast)
        return Target(self._model, self._verifier(found) if found else None, reader)

    def reading_model(self) -> nn.Module:
        """What computes many rows as the model does, to the bit, and quicker if there is such."""
        return self._reading(self._found)

    def _reading(self, found: Found | None) -> nn.Module:
        if found is None or not found.reads:
            return self._model
        return compiled_model(self._model, found.forms) or self._model

    def _look(self) -> Found | None:
        """What is found by trying, in seconds."""
        config = self._model.config.get_text_config(decoder=True)
        has_sdpa = config._attn_implementation == "sdpa"
        on_cpu = self._model.device.type == "cpu"
        # A single row is exact as it is: there is only speed to be gained, by compiled code.
        may_gain = self._several_rows or (on_cpu and self._model.dtype == torch.bfloat16)
        # Elsewhere transformers takes other kernels for experts while it decodes, and we do not.
        has_its_kernels = on_cpu or not has_other_weights(self._model)
        if is_sharded(self._model) and has_other_weights(self._model):
            return None  # nobody knows in what order their parts are summed
        if not (may_gain and has_sdpa and has_its_kernels) or self._exact == "off":
            return None
        kernels = AttentionKernels(find_kernels() if on_cpu and self._may_compile else None)
        forms = exact_forms(self._model, MOST_ALONE[self._exact], kernels.library)
        if forms is None:
            return None
        found = Found(forms, kernels)
        try:
            rows_are_exact = is_exact(self._view(found), self._model)
        except UnsupportedModel:  # a module that cannot be copied
            rows_are_exact = False
        if not holds_everywhere(self._model, rows_are_exact):
            return None
        reading, compiled = compiled_model(self._model, forms), self._compiled(found)
        # The trials run forwards, which all processes do together or not at all.
        there = hold_everywhere(self._model, [reading is not None, compiled is not None])
        reads = there[0] and reading is not None and self._reads_alike(reading, forms)
        is_compiled = there[1] and compiled is not None and is_exact(compiled, self._model)
        reads, is_compiled = hold_everywhere(self._model, [reads, is_compiled])
        return replace(found, reads=reads, is_compiled=is_compiled)

    @torch.inference_mode()
    def _reads_alike(self, module: nn.Module, forms: Forms) -> bool:
        """Whether it reads a prompt as the model does, to the bit: logits, keys and values."""
        tokens = spread_tokens(self._model, READ)
        results = []
        for one in (module, self._model):
            cache = KVCache(attention_windows(self._model.config))
            logits = View(one).forward(tokens, cache)
            cache.commit(READ)
            results.append(
                [logits, *(part for buffer in cache.buffers for part in buffer.tail(READ))]
            )
        same = all(torch.equal(one, other) for one, other in zip(*results, strict=True))
        return same and many_rows_are_alike(self._model, forms, MANY)

    def _verifier(self, found: Found) -> Verifier | None:
        compiled = self._compiled(found) if found.is_compiled else None
        return compiled or (self._view(found) if self._several_rows else None)

    def _view(self, found: Found) -> ExactRows:
        return ExactRows(self._model, self._sublayers, found.forms, found.kernels)

    def _compiled(self, found: Found) -> Verifier | None:
        """None where the model is of another layout, or its attention of another form."""
        kernels = found.kernels
        if kernels.library is None:
            return None
        try:
            compiled = CompiledTarget(kernels.library, self._model, self._sublayers)
        except NoKernelsError:
            return None
        if not kernels.understands(compiled.form, None):
            return None
        windows = {window for window in compiled.windows if window is not None}
        if not windows:
            return compiled
        unknown = (window for window in windows if not kernels.understands(compiled.form, window))
        otherwise = partial(self._view, found) if self._several_rows else lambda: View(self._model)
        return UpTo(compiled, otherwise, min(unknown, default=math.inf), min(windows))
