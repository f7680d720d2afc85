"""How much each sublayer adds to the residual stream, from one forward: a first guess, no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from swift_sd.model.stubs import shared_copy_along
from swift_sd.model.sublayers import Sublayers
from swift_sd.model.view import View


@dataclass(frozen=True)
class Influence:
    """For each layer the length of what a sublayer adds ÷ that of the stream it is added to."""

    attention: tuple[float, ...]
    mlp: tuple[float, ...]


class InfluenceView(View):
    """The target with meters at its sublayers; shares all tensors and computes the same.

    Args:
        model: it is not changed.
        sublayers: what `find_sublayers(model)` found.
    """

    def __init__(self, model: nn.Module, sublayers: Sublayers) -> None:
        self._streams: dict[int, Tensor] = {}
        self._added: dict[tuple[int, str], Tensor] = {}
        self._depth = sublayers.depth

        def metered(index: int, kind: str, module: nn.Module) -> nn.Module:
            # Of a sublayer and its norms the last one to run says what is added.
            return _Meter(module, lambda _: None, _noter(self._added, (index, kind)))

        layers: dict[str, nn.Module] = {
            name: _Meter(layer, _noter(self._streams, int(name)), lambda _: None)
            for name, layer in sublayers.wrapped(model, metered).items()
        }
        super().__init__(shared_copy_along(model, sublayers.path, layers))

    @property
    def influence(self) -> Influence:
        """By the forward before; means over its tokens."""

        def share(index: int, kind: str) -> float:
            added, stream = self._added[index, kind], self._streams[index]
            ratio = added.float().norm(dim=-1) / stream.float().norm(dim=-1)
            return float(ratio.mean())

        return Influence(
            tuple(share(index, "attention") for index in range(self._depth)),
            tuple(share(index, "mlp") for index in range(self._depth)),
        )


class _Meter(nn.Module):
    """Runs a module and notes what went in and what came out."""

    def __init__(
        self, module: nn.Module, saw: Callable[[Tensor], None], gave: Callable[[Tensor], None]
    ) -> None:
        super().__init__()
        self.module = module
        self._saw, self._gave = saw, gave

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._saw(args[0] if args else kwargs["hidden_states"])
        output = self.module(*args, **kwargs)
        self._gave(output[0] if isinstance(output, tuple) else output)
        return output


def _noter(notes: dict[Any, Tensor], key: Any) -> Callable[[Tensor], None]:
    def note(tensor: Tensor) -> None:
        notes[key] = tensor

    return note
