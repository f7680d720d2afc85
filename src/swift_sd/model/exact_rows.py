"""A verifying forward that computes every row to the bit as plain decoding computes it.

Over several rows attention and matrix products may add up in another order than over one. Which of
them do so on this machine is found by trying. Attention is then called for each row as in plain
decoding. A matrix product is given its rows as columns: oneDNN, which splits the sums of row-major
rows into blocks, does not do so with those (nor with a single row, which is both). On processors
whose order of a single row is known, compiled code takes it for all rows at once. Where nothing
helps it is computed row by row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
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
)
from swift_sd.model.compiled_rows import CompiledRows, can_be_compiled
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.stubs import replaced, shared_copy
from swift_sd.model.sublayers import Sublayers
from swift_sd.model.target import Verifier
from swift_sd.model.view import View

ATTENTION = "swift_sd_row_by_row"
ROWS = (2, 3, 4, 5, 8, 16)  # numbers of rows that are tried
OUTPUTS = 200_000  # numbers to compare for each; one in 10,000 differs where the order does
PREFIX = 6


Form = Callable[[nn.Module], nn.Module]
Forms = Mapping[str, Form]
"""By name of a linear layer, what to put around it so that each row is computed as if alone."""


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
    window = config.swift_sd_windows[module.layer_idx] or key.shape[2]
    kernels: AttentionKernels = config.swift_sd_kernels
    scale = options.get("scaling") or query.shape[3] ** -0.5
    shape = (query.shape[1], key.shape[1], query.shape[3], scale)
    if kernels.understands(shape) and fits(query, key, value):
        return compiled_attention(kernels.library, query, key, value, paths, window, scale), None
    own = [] if paths.is_chain else [part[:, :, start:].clone() for part in (key, value)]
    outputs = []
    for row, path in enumerate(paths.paths):
        end = start + len(path)
        for part, kept in zip((key, value), own, strict=False):
            part[:, :, start:end] = kept[:, :, list(path)]
        seen = slice(max(0, end - window), end)
        output, _ = sdpa_attention_forward(
            module, query[:, :, row : row + 1], key[:, :, seen], value[:, :, seen], None, **options
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

    def understands(self, shape: tuple[int, int, int, float]) -> bool:
        """Whether heads, key heads, head dimension and scale are such; tried at the first call."""
        if self.library is None:
            return False
        if shape not in self._known:
            self._known[shape] = is_compilable(self.library, *shape)
        return self._known[shape]


def as_it_is(linear: nn.Module) -> nn.Module:
    """The linear layer needs nothing around it."""
    return linear


class ColumnMajor(nn.Module):
    """A linear layer that is given its rows `[batch, rows, in]` as columns in memory."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[batch, rows, out]`."""
        if hidden_states.shape[-2] == 1:
            alone: Tensor = self.linear(hidden_states)
            return alone
        rows = hidden_states.flatten(0, -2)
        output: Tensor = self.linear(rows.t().contiguous().t())
        return output.view(*hidden_states.shape[:-1], -1)


class RowByRow(nn.Module):
    """A linear layer that computes each row of `[batch, rows, in]` alone."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[batch, rows, out]`."""
        return torch.cat([self.linear(row) for row in _pieces(hidden_states, 1)], dim=1)


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
            name: _put_around(model.get_submodule(name), form) for name, form in forms.items()
        }
        self._config: Any = copy.copy(model.config.get_text_config(decoder=True))
        self._config._attn_implementation = ATTENTION
        self._config.swift_sd_paths = None
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
        paths = None if ancestry is None else [row.nonzero()[:, 0].tolist() for row in ancestry]
        self._config.swift_sd_paths = RowPaths(paths, tokens.shape[1])
        try:
            return super().forward(tokens, cache, keep=keep, ancestry=ancestry)
        finally:
            self._config.swift_sd_paths = None


def exact_forms(
    model: PreTrainedModel, most_alone: float, kernels: Any = None
) -> dict[str, Form] | None:
    """What to put around the linear layers whose rows depend on how many rows there are.

    Args:
        most_alone: the share of the weights that may be read once for each row.
        kernels: from `load_kernels()`, or None to do without.

    Returns:
        None if the share is exceeded.
    """
    linears = dict(_linears(model))
    total = sum(linear.weight.numel() for linear in linears.values())
    by_kind: dict[tuple[Any, ...], Form] = {}
    forms: dict[str, Form] = {}
    alone = 0
    for name, linear in linears.items():
        weight: Tensor = linear.weight
        kind = (type(linear), weight.shape, weight.dtype, weight.stride(), linear.bias is None)
        if kind not in by_kind:
            by_kind[kind] = _exact_form(linear, kernels)
        form = by_kind[kind]
        if form is RowByRow:
            alone += weight.numel()
            if alone > most_alone * total:
                return None
        if form is not as_it_is:
            forms[name] = form
    return forms


@torch.inference_mode()
def is_exact(view: Verifier, model: PreTrainedModel) -> bool:
    """Whether logits and cache of `view` equal those of `model` to the bit, row by row or not."""
    embedding: Any = model.get_input_embeddings()
    spread = torch.linspace(0, embedding.weight.shape[0] - 1, PREFIX + 6).long()[1:-1]
    tokens = spread.unsqueeze(0).to(model.device)
    results = []
    plain = View(model)
    runners: list[tuple[Verifier, tuple[int, ...]]] = [(plain, (1, 1, 1, 1)), (view, (1, 3))]
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


def _put_around(linear: nn.Module, form: Form) -> nn.Module:
    """As found, unless the layer has become another one since."""
    is_another = isinstance(form, partial) and not can_be_compiled(linear)
    return RowByRow(linear) if is_another else form(linear)


def _pieces(rows: Tensor, size: int) -> list[Tensor]:
    return [rows[:, begin : begin + size] for begin in range(0, rows.shape[1], size)]


def _linears(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield name, module


@torch.inference_mode()
def _exact_form(linear: Any, kernels: Any) -> Form:
    """The cheapest form in which several rows come out as each alone does."""
    weight: Tensor = linear.weight
    out, width = weight.shape if isinstance(linear, nn.Linear) else reversed(weight.shape)
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(max(1, OUTPUTS // (out * max(ROWS)))):
        rows = torch.randn(1, max(ROWS), width, generator=generator).to(weight)
        samples.append((rows, torch.cat([linear(row) for row in _pieces(rows, 1)], dim=1)))
    possible: list[Form] = [as_it_is, ColumnMajor]
    if kernels is not None and can_be_compiled(linear):
        possible.insert(0, partial(CompiledRows, kernels))

    def is_exact(form: Form) -> bool:
        module = form(linear)
        return all(
            torch.equal(module(rows[:, :n]), alone[:, :n]) for rows, alone in samples for n in ROWS
        )

    return next(filter(is_exact, possible), RowByRow)


def compiled_model(model: PreTrainedModel, forms: Forms) -> nn.Module | None:
    """A copy that reads prompts as the model does, to the bit, with the compiled ones of `forms`.

    Whether it does so is for the caller to find out: torch computes many rows like one on some
    processors only. None if there are no compiled ones.
    """
    new = {
        name: form(model.get_submodule(name))
        for name, form in forms.items()
        if isinstance(form, partial) and can_be_compiled(model.get_submodule(name))
    }
    return replaced(model, new) if new else None
