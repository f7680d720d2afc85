"""How the target is computed to the bit of plain decoding over several rows: found out once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swift_sd.model.compiled_target import CompiledTarget
from swift_sd.model.exact_linear import Forms, compiled_model, exact_forms, many_rows_are_alike
from swift_sd.model.exact_rows import AttentionKernels, ExactRows, is_exact
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.sublayers import Sublayers
from swift_sd.model.target import Target, Verifier
from swift_sd.model.view import View, spread_tokens
from swift_sd.native.compiler import NoKernelsError, find_kernels

READ = 20  # tokens of a prompt in a trial
MANY = 130  # rows of a linear layer: torch may take sums in another order for so many
# Of all weights that a step reads, how many may be read once for each row.
MOST_ALONE = {"auto": 0.25, "strict": 1.0}


@dataclass(frozen=True)
class UpTo:
    """Verifies in compiled code in front of a position, and otherwise behind it.

    Attributes:
        limit: the position; torch may add up in another order once a sliding window is full.
    """

    compiled: CompiledTarget
    otherwise: View
    limit: int

    def forward(self, tokens: Tensor, cache: KVCache, *, ancestry: Tensor | None = None) -> Tensor:
        """See `View.forward`."""
        is_in_front = cache.cursor + tokens.shape[1] < self.limit
        verifier = self.compiled if is_in_front else self.otherwise
        return verifier.forward(tokens, cache, ancestry=ancestry)


class ExactTarget:
    """Makes the target of each response, as the model is then.

    Args:
        model: the target; it is not changed.
        sublayers: what `find_sublayers(model)` found.
        exact: "auto", "strict" or "off"; see `SwiftConfig`.
        several_rows: whether more than one row is ever verified.
        compiled: whether code may be compiled for it.

    Attributes:
        is_compiled: whether it does so in compiled code.
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
        self._several_rows = several_rows
        compiled = compiled and model.device.type == "cpu"
        self._kernels = AttentionKernels(find_kernels() if compiled else None)
        self._find()

    @property
    def is_exact(self) -> bool:
        """Whether verification gives plain decoding's bits however many rows there are."""
        return self._usable is not None

    @property
    def _conditions(self) -> tuple[Any, ...]:
        """What the user may change, and the order of sums may depend on."""
        config: Any = self._model.config.get_text_config(decoder=True)
        attention = config._attn_implementation
        return attention, self._model.dtype, self._model.device, torch.get_num_threads()

    @property
    def _usable(self) -> Forms | None:
        """What was found; anew where it was under other conditions."""
        if self._conditions != self._found_under:
            self._find()
        return self._forms

    def target(self, reader: View | None = None) -> Target:
        """The model as it is now; prompts are read by `reader` if there is one."""
        if reader is None and (fast := self.reading_model()) is not self._model:
            reader = View(fast)
        return Target(self._model, self._verifier(), reader)

    def reading_model(self) -> nn.Module:
        """What computes many rows as the model does, to the bit, and quicker if there is such."""
        forms = self._usable
        if forms is None or not self._reads_exactly:
            return self._model
        return compiled_model(self._model, forms) or self._model

    def _find(self) -> None:
        self._forms = self._found()
        self.is_compiled = self._reads_exactly = False
        if self._forms is not None:
            reading = compiled_model(self._model, self._forms)
            self._reads_exactly = reading is not None and self._reads_alike(reading, self._forms)
            compiled = self._compiled(self._forms)
            self.is_compiled = compiled is not None and is_exact(compiled, self._model)
        self._found_under = self._conditions

    def _found(self) -> Forms | None:
        attention, dtype, device, _ = self._conditions
        # A single row is exact as it is: there is only speed to be gained, by compiled code.
        may_gain = self._several_rows or (device.type == "cpu" and dtype == torch.bfloat16)
        if not may_gain or self._exact == "off" or attention != "sdpa":
            return None
        forms = exact_forms(self._model, MOST_ALONE[self._exact], self._kernels.library)
        return forms if forms is not None and is_exact(self._view(forms), self._model) else None

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

    def _verifier(self) -> Verifier | None:
        forms = self._usable
        if forms is None:
            return None
        compiled = self._compiled(forms) if self.is_compiled else None
        return compiled or (self._view(forms) if self._several_rows else None)

    def _view(self, forms: Forms) -> ExactRows:
        return ExactRows(self._model, self._sublayers, forms, self._kernels)

    def _compiled(self, forms: Forms) -> Verifier | None:
        """None where the model is of another layout, or its attention of another form."""
        if self._kernels.library is None:
            return None
        try:
            compiled = CompiledTarget(self._kernels.library, self._model, self._sublayers)
        except NoKernelsError:
            return None
        if not self._kernels.understands(compiled.form, None):
            return None
        windows = {window for window in compiled.windows if window is not None}
        unknown = [each for each in windows if not self._kernels.understands(compiled.form, each)]
        if not unknown:
            return compiled
        otherwise = self._view(forms) if self._several_rows else View(self._model)
        return UpTo(compiled, otherwise, min(unknown))
