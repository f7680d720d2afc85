"""What a transformers model must be told to read a tree behind a cached prefix."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from swift_sd.model.kv_cache import KVCache, attention_windows

MASKED_ATTENTION = ("sdpa", "eager")  # implementations that take a mask of any form


class TreeMask:
    """Makes attention masks for the trees that a model verifies.

    Args:
        module: the model; only its configuration is read, each time, since a user may change the
            attention implementation.
    """

    def __init__(self, module: nn.Module) -> None:
        config: Any = getattr(module, "config", None)
        self._config = config.get_text_config(decoder=True) if config is not None else None

    @cached_property
    def _windows(self) -> list[int | None]:
        return [None] if self._config is None else attention_windows(self._config)

    @property
    def is_supported(self) -> bool:
        """Whether the model's attention takes masks of any form, as far as its configuration says.

        gpt_neo's local layers mask by row and not by position.
        """
        if self._config is None:
            return True
        has_own_mask = "local" in getattr(self._config, "attention_layers", ())
        return self._config._attn_implementation in MASKED_ATTENTION and not has_own_mask

    def __call__(
        self, ancestry: Tensor, cache: KVCache, dtype: torch.dtype, device: torch.device
    ) -> Tensor | dict[str, Tensor]:
        """The mask for the rows of a tree, written at the cache's cursor.

        Args:
            ancestry: which rows each one follows, itself included, `[rows, rows]`, bool.

        Returns:
            `[1, 1, rows, keys]`: bool, True where a row sees a key, or for eager attention `dtype`,
            to be added to the scores. A dictionary by kind where layers differ in it.
        """
        names = getattr(self._config, "layer_types", None) or ()
        kinds = {name: layer for layer, name in reversed([*enumerate(names)])}
        masks = {
            name: self._finished(
                _visible(ancestry, cache, layer, self._windows[layer]), dtype, device
            )
            for name, layer in (kinds or {"": 0}).items()
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _finished(self, visible: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
        visible = visible[None, None].to(device)
        if getattr(self._config, "_attn_implementation", None) != "eager":
            return visible
        lowest = torch.finfo(dtype).min
        return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, lowest)


def _visible(ancestry: Tensor, cache: KVCache, layer: int, window: int | None) -> Tensor:
    """Which keys of a layer each row sees, `[rows, keys]`, bool."""
    rows = len(ancestry)
    keys, first = cache.get_mask_sizes(rows, layer)
    prefix = keys - rows  # keys before row 0
    if window is None:
        return torch.cat([ancestry.new_ones(rows, prefix), ancestry], dim=1)
    # Distances count by depth: siblings are as far from the prefix as each other.
    depths = ancestry.sum(dim=1) - 1
    places = torch.cat([torch.arange(first - cache.cursor, 0, device=depths.device), depths])
    near = depths[:, None] - places[None, :] < window
    near[:, prefix:] &= ancestry
    return near
