"""What a prompt is about, as far as reading it tells anyway."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swift_sd.adapting.objective import Array
from swift_sd.model.stubs import shared_copy, shared_copy_along
from swift_sd.model.sublayers import Sublayers
from swift_sd.model.view import View


class PromptView(View):
    """The target, looked at while it reads: computes the same with the same tensors.

    Args:
        model: it is not changed.
        sublayers: what `find_sublayers(model)` found.
    """

    def __init__(self, model: nn.Module, sublayers: Sublayers) -> None:
        self._sum: Tensor | None = None
        self._tokens = 0
        last = str(sublayers.depth - 1)
        layers = model.get_submodule(".".join(sublayers.path))
        layer = shared_copy(layers.get_submodule(last), {})
        # A copy shares the dictionary, and the user's hooks in it go on being called.
        layer._forward_hooks = OrderedDict(layer._forward_hooks)
        layer.register_forward_hook(self._saw)
        super().__init__(shared_copy_along(model, sublayers.path, {last: layer}))

    @property
    def mean(self) -> Array:
        """Of what the last layer handed on, over all tokens read, `[hidden]`.

        Each token counts as a direction: the first one of a text is often a hundred times as long.
        """
        assert self._sum is not None
        return np.asarray((self._sum / self._tokens).cpu().numpy(), dtype=np.float64)

    def _saw(self, _: nn.Module, args: Any, output: Any) -> None:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output  # [1, new, hidden]
        directions = torch.nn.functional.normalize(hidden[0].detach().float(), dim=-1)
        summed = directions.nan_to_num().sum(dim=0)
        self._sum = summed if self._sum is None else self._sum + summed
        self._tokens += hidden.shape[1]
