"""Linear layers over several rows, each computed to the bit as torch computes it alone.

Over several rows matrix products may add up in another order than over one. Which of them do so on
this machine is found by trying. A matrix product is then given its rows as columns: oneDNN, which
splits the sums of row-major rows into blocks, does not do so with those (nor with a single row,
which is both). On processors whose order of a single row is known, compiled code takes it for all
rows at once. Where nothing helps it is computed row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from swift_sd.model.compiled_rows import Around, CompiledRows, can_be_compiled
from swift_sd.model.sharding import Shard, ShardedLinear, holds_everywhere, is_dtensor
from swift_sd.model.stubs import replaced

ROWS = (2, 3, 4, 5, 8, 16)  # numbers of rows that are tried on a CPU,
# and these of torch's own forms: compiled code does not count its rows.
MORE = (17, 24, 32, 33, 48, 64, 65)
MOST = 65  # rows at once: what follows for larger drafts, as the paper's may be, was not tried
EVERY = tuple(range(2, MOST + 1))  # on a GPU, where each number may have a kernel of its own
OUTPUTS = 200_000  # numbers to compare for each; one in 10,000 differs where the order does

Form = Callable[[nn.Module], nn.Module]
Forms = Mapping[str, Form]
"""By name of a linear layer, what to put around it so that each row is computed as if alone."""


def as_it_is(linear: nn.Module) -> nn.Module:
    """The linear layer needs nothing around it."""
    return linear


class ColumnMajor(Around):
    """A linear layer that is given its rows `[batch, rows, in]` as columns in memory."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[batch, rows, out]`."""
        if hidden_states.shape[-2] == 1:
            alone: Tensor = self.linear(hidden_states)
            return alone
        rows = hidden_states.flatten(0, -2)
        output: Tensor = self.linear(rows.t().contiguous().t())
        return output.view(*hidden_states.shape[:-1], -1)


class InPieces(Around):
    """A linear layer that is given at most so many rows of `[batch, rows, in]` at once."""

    def __init__(self, linear: nn.Module, most: int) -> None:
        super().__init__(linear)
        self.most = most

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[batch, rows, out]`, or `[rows, out]` in models that flatten them before."""
        dim = min(hidden_states.dim() - 2, 1)
        if hidden_states.shape[dim] <= self.most:
            output: Tensor = self.linear(hidden_states)
            return output
        pieces = torch.split(hidden_states, self.most, dim)
        return torch.cat([self.linear(rows) for rows in pieces], dim)


def row_by_row(linear: nn.Module) -> nn.Module:
    """The linear layer computes each row alone."""
    return InPieces(linear, 1)


@dataclass(frozen=True)
class InCompiledCode:
    """The form of layers that compiled code computes, which does not count its rows.

    Attributes:
        library: from `load_kernels()`.
    """

    library: Any

    def __call__(self, linear: nn.Module) -> CompiledRows:
        """See `CompiledRows`."""
        return CompiledRows(self.library, linear)


@dataclass(frozen=True)
class InShard:
    """The form of layers of which each process computes its part.

    Attributes:
        form: of the part.
        gathers: whether the layer gathers the outputs of all.
    """

    form: Form
    gathers: bool

    def __call__(self, linear: nn.Module) -> ShardedLinear:
        """See `ShardedLinear`."""
        shard = Shard(linear, self.gathers)
        return ShardedLinear(shard, put_around(shard.linear, self.form))


def exact_forms(
    model: PreTrainedModel, most_alone: float, kernels: Any = None
) -> dict[str, Form] | None:
    """What makes rows of the linear layers independent of how many rows there are.

    Args:
        most_alone: the share of the weights that may be read once for each row.
        kernels: from `load_kernels()`, or None to do without.

    Returns:
        None if the share is exceeded.
    """
    linears = dict(_linears(model))
    try:  # all processes together, before anything is decided
        shards = {name: Shard(one) for name, one in linears.items() if is_dtensor(one.weight)}
    except ValueError:
        return None
    forms = _forms(
        {name: shards[name].linear if name in shards else one for name, one in linears.items()},
        most_alone,
        kernels,
    )
    if not holds_everywhere(model, forms is not None) or forms is None:
        return None
    whole = {name: form for name, form in forms.items() if name not in shards}
    split = {name: InShard(forms[name], shard.gathers) for name, shard in shards.items()}
    return {**whole, **split}


def _forms(linears: Mapping[str, Any], most_alone: float, kernels: Any) -> dict[str, Form] | None:
    total = sum(linear.weight.numel() for linear in linears.values())
    by_kind: dict[tuple[Any, ...], Form] = {}
    forms: dict[str, Form] = {}
    alone = 0
    for name, linear in linears.items():
        weight: Tensor = linear.weight
        kinds = type(linear), type(weight), can_be_compiled(linear)
        kind = (*kinds, weight.shape, weight.dtype, weight.stride(), linear.bias is None)
        if kind not in by_kind:
            by_kind[kind] = _exact_form(linear, kernels)
        form = by_kind[kind]
        if form is row_by_row:
            alone += weight.numel()
            if alone > most_alone * total:
                return None
        forms[name] = form
    return forms


def put_around(linear: nn.Module, form: Form) -> nn.Module:
    """As found, unless the layer has become another one since."""
    if isinstance(form, InShard):
        return form(linear)
    is_another = isinstance(form, InCompiledCode) and not can_be_compiled(linear)
    if is_another or type(linear) not in (nn.Linear, Conv1D):
        return row_by_row(linear)
    is_whole = form is row_by_row or isinstance(form, InCompiledCode)
    return form(linear) if is_whole else InPieces(form(linear), MOST)


def _linears(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield name, module


@torch.inference_mode()
def _exact_form(linear: Any, kernels: Any) -> Form:
    """The cheapest form in which several rows come out as each alone does."""
    weight: Tensor = linear.weight
    if type(linear) not in (nn.Linear, Conv1D):
        return row_by_row  # whose weights may be packed: nothing is known of it
    out, width = weight.shape if isinstance(linear, nn.Linear) else reversed(weight.shape)
    # Of many rows on a CPU only a few are compared: each is computed alone for it.
    some = [*range(max(ROWS)), *(n - 1 for n in MORE)] if weight.is_cpu else [*range(MOST)]
    generator = torch.Generator("cpu").manual_seed(0)
    samples = []
    for _ in range(max(1, OUTPUTS // (out * len(some)))):
        rows = some_numbers(MOST, width, generator).to(weight.device, weight.dtype)
        samples.append((rows, {row: linear(rows[:, row : row + 1]) for row in some}))
    possible: list[Form] = [as_it_is, ColumnMajor]
    if kernels is not None and can_be_compiled(linear):
        possible.insert(0, InCompiledCode(kernels))

    def is_exact(form: Form) -> bool:
        module = form(linear)
        few = ROWS if isinstance(form, InCompiledCode) else ROWS + MORE
        return all(
            torch.equal(together[:, row : row + 1], expected)
            for rows, alone in samples
            for n in (few if weight.is_cpu else EVERY)
            for together in [module(rows[:, :n])]
            for row, expected in alone.items()
            if row < n
        )

    return next(filter(is_exact, possible), row_by_row)


def compiled_model(model: PreTrainedModel, forms: Forms) -> nn.Module | None:
    """A copy that reads prompts as the model does, to the bit, with the compiled ones of `forms`.

    Whether it does so is for the caller to find out: torch computes many rows like one on some
    processors only. None if there are no compiled ones.
    """
    modules = dict(model.named_modules())
    new = {
        name: form(modules[name])
        for name, form in forms.items()
        if isinstance(form, InCompiledCode) and name in modules and can_be_compiled(modules[name])
    }
    return replaced(model, new) if new else None


def some_numbers(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Some to try a product on, `[1, rows, width]`, float32, on the CPU."""
    return torch.randn(1, rows, width, generator=generator, dtype=torch.float32, device="cpu")


@torch.inference_mode()
def many_rows_are_alike(model: PreTrainedModel, forms: Forms, rows: int) -> bool:
    """Whether the compiled ones of `forms` give torch's bits over so many rows, tried by shape.

    The head is left out: of a prompt it reads one row.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    tried = set()
    for name, form in forms.items():
        linear: Any = model.get_submodule(name)
        kind = (linear.weight.shape, linear.bias is None)
        if not isinstance(form, InCompiledCode) or linear is model.get_output_embeddings():
            continue
        if kind not in tried:
            tried.add(kind)
            some = some_numbers(rows, linear.weight.shape[1], generator)
            some = some.to(linear.weight)
            if not torch.equal(form(linear)(some), linear(some)):
                return False
    return True
