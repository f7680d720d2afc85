"""A verifying forward that computes every row to the bit as plain decoding computes it.

Attention over several rows may add up in another order than over one; it is called for each row as
in plain decoding. For matrix products see `exact_linear`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.pytorch_utils import Conv1D

from swift_sd.model.compiled_attention import (
    RowPaths,
    compiled_attention,
    fits,
    is_compilable,
    mask_of_one,
)
from swift_sd.model.exact_linear import Forms, put_around
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.stubs import replaced, shared_copy
from swift_sd.model.sublayers import Sublayers
from swift_sd.model.target import Verifier
from swift_sd.model.view import View, spread_tokens

ATTENTION = "swift_sd_row_by_row"
PREFIX, ROWS = 6, 3  # of a trial: tokens read before, and rows at once
REPEATS = 5  # of the rows, where several have to be equal


def attention_row_by_row(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The sdpa attention of transformers, called for each row as plain decoding calls it.

    A row's keys must lie together. Those of a row beside the main chain are put behind the prefix
    while it is computed, in the cache itself, where everything is back in its place at the end.

    Args:
        query: `[batch, heads, rows, head_dim]`.
        key, value: `[batch, kv_heads, keys, head_dim]`, views of the cache; those of the rows last.
        attention_mask: not looked at: `module.config` holds the rows' paths through a tree.
    """
    config = module.config
    rows = query.shape[2]
    paths: RowPaths = config.swift_sd_paths
    start = key.shape[2] - rows
    window = config.swift_sd_windows[module.layer_idx]
    keeps_all = window is None or config.swift_sd_kept[module.layer_idx] is None
    full = window if window is not None and key.shape[2] >= window else None
    kernels: AttentionKernels = config.swift_sd_kernels
    scale = options.get("scaling") or query.shape[3] ** -0.5
    shape = (query.shape[1], key.shape[1], query.shape[3], scale)
    if fits(query, key, value) and not (full and keeps_all) and kernels.understands(shape, full):
        most = window or key.shape[2]
        return compiled_attention(kernels.library, query, key, value, paths, most, scale), None
    own = [] if paths.is_chain else [part[:, :, start:].clone() for part in (key, value)]
    outputs = []
    for row, path in enumerate(paths.paths):
        end = start + len(path)
        for part, kept in zip((key, value), own, strict=False):
            part[:, :, start:end] = kept[:, :, path]
        seen = slice(0 if keeps_all else max(0, end - window), end)
        mask = mask_of_one(end, window, query.device, keeps_all=keeps_all)
        output, _ = sdpa_attention_forward(
            module, query[:, :, row : row + 1], key[:, :, seen], value[:, :, seen], mask, **options
        )
        outputs.append(output)
    for part, kept in zip((key, value), own, strict=False):
        part[:, :, start:] = kept
    return torch.cat(outputs, dim=1), None


class AttentionKernels:
    """Knows for which forms of attention the compiled kernel gives torch's bits.

    Args:
        library: from `load_kernels()`, or None to do without.
    """

    def __init__(self, library: Any) -> None:
        self.library = library
        self._known: dict[Any, bool] = {}

    def understands(self, shape: tuple[int, int, int, float], window: int | None) -> bool:
        """Whether heads, key heads, head dimension and scale are such; tried once.

        Args:
            window: of the layer, if it is full for some of the rows.
        """
        return self._has_tried(shape, None) and (window is None or self._has_tried(shape, window))

    def _has_tried(self, shape: tuple[int, int, int, float], window: int | None) -> bool:
        if self.library is None:
            return False
        if (shape, window) not in self._known:
            self._known[shape, window] = is_compilable(self.library, *shape, window)
        return self._known[shape, window]


class ExactRows(View):
    """The target for several rows, each computed as if it was alone; shares all tensors.

    Args:
        model: the target; it is not changed.
        sublayers: what `find_sublayers(model)` found.
        forms: see `exact_forms`.
        kernels: for attention; they are asked for whatever forms it takes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sublayers: Sublayers,
        forms: Forms,
        kernels: AttentionKernels | None = None,
    ) -> None:
        AttentionInterface.register(ATTENTION, attention_row_by_row)
        new: dict[str, Any] = {
            name: put_around(model.get_submodule(name), form) for name, form in forms.items()
        }
        self._config = copied_config(model.config.get_text_config(decoder=True))
        self._config._attn_implementation = ATTENTION
        self._config.swift_sd_paths = self._config.swift_sd_kept = None
        self._config.swift_sd_kernels = kernels or AttentionKernels(None)
        self._config.swift_sd_windows = attention_windows(model.config)
        layers = ".".join(sublayers.path)
        for index, parts in enumerate(sublayers.parts):
            attention = f"{layers}.{index}.{parts.attention}"
            for name, module in model.get_submodule(attention).named_modules(prefix=attention):
                if hasattr(module, "config"):
                    new[name] = shared_copy(module, {})
                    new[name].config = self._config
        super().__init__(replaced(model, new))

    def forward(
        self, tokens: Tensor, cache: KVCache, *, keep: int = 0, ancestry: Tensor | None = None
    ) -> Tensor:
        """See `View.forward`."""
        self._config.swift_sd_paths = RowPaths(ancestry, tokens.shape[1])
        self._config.swift_sd_kept = [buffer.window for buffer in cache.buffers]
        try:
            return super().forward(tokens, cache, keep=keep, ancestry=ancestry)
        finally:
            self._config.swift_sd_paths = self._config.swift_sd_kept = None


def copied_config(config: Any) -> Any:
    """A configuration whose attention can be set, which sets that of its parts too."""
    twin = copy.copy(config)
    for name in config.sub_configs:
        if (part := getattr(config, name, None)) is not None:
            setattr(twin, name, copied_config(part))
    return twin


def has_other_weights(model: PreTrainedModel) -> bool:
    """Whether there are matrices that nobody has tried, as those of fused experts.

    Those see several rows only where several tokens choose the same expert: equal tokens do.
    """
    return any(
        parameter.dim() > 1
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
        if not isinstance(module, nn.Linear | nn.Embedding | Conv1D)
    )


@torch.inference_mode()
def is_exact(view: Verifier, model: PreTrainedModel) -> bool:
    """Whether logits and cache of `view` equal those of `model` to the bit, row by row or not."""
    tokens = spread_tokens(model, PREFIX + 1 + ROWS)
    repeats = REPEATS if has_other_weights(model) else 1
    tokens = torch.cat([tokens[:, : PREFIX + 1], *[tokens[:, PREFIX + 1 :]] * repeats], dim=1)
    count = ROWS * repeats
    results = []
    plain = View(model)
    runners: list[tuple[Verifier, tuple[int, ...]]] = [
        (plain, (1,) * (1 + count)),
        (view, (1, count)),
    ]
    for runner, sizes in runners:
        cache = KVCache(attention_windows(model.config))
        plain.forward(tokens[:, :PREFIX], cache, keep=1)
        logits = [
            runner.forward(rows, cache)
            for rows in torch.split(tokens[:, PREFIX:], list(sizes), dim=1)
        ]
        cache.commit(PREFIX + sum(sizes))
        written = [part for buffer in cache.buffers for part in buffer.tail(cache.committed)]
        results.append([torch.cat(logits, dim=1), *written])
    expected, found = results
    return all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
