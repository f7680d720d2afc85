"""The default with one element left out, or with one alone: what each of them is worth."""

from __future__ import annotations

from typing import Any

from swift_sd.bench.method import register
from swift_sd.bench.methods import Default
from swift_sd.config import SwiftConfig
from swift_sd.model.layer_set import LayerSet


def _register(name: str, about: str, **settings: Any) -> None:
    """Make a method known that differs from `swift` in these settings."""

    class Ablation(Default):
        __doc__ = about

        def config(self) -> SwiftConfig:
            """See `Plain.config`."""
            return SwiftConfig(**settings)

    Ablation.name, Ablation.about = name, f"swift-sd {about}"
    register(Ablation)


class NoSkipping(Default):
    """Nothing skipped, and nothing searched for."""

    name = "no-skipping"
    about = "swift-sd without sublayers skipped"

    def config(self) -> SwiftConfig:
        """See `Plain.config`."""
        from swift_sd.model.sublayers import find_sublayers  # not before torch is wanted

        depth = find_sublayers(self.subject.model).depth
        return SwiftConfig(layer_set=LayerSet.none(depth))


register(NoSkipping)
_register("only-copying", "drafting with copies of the text alone", drafters=("copying",))
_register("only-recycling", "drafting with runner-ups alone", drafters=("recycling",))
_register("only-model", "drafting with the model alone, no cascade", drafters=("model",))
_register(
    "only-skipping",
    "drafting with sublayers skipped alone, 16 bits",
    drafters=("model",),
    draft_bits=16,
)
_register("no-copying", "without copies of the text", drafters=("recycling", "model"))
_register("no-recycling", "without runner-ups", drafters=("copying", "model"))
_register("no-model", "without drafts of the model", drafters=("copying", "recycling"))
_register("no-rounding", "without rounded weights", draft_bits=16)
_register("no-cascade", "without drafts of the model going on from foreseen text", cascade=False)
_register("no-short-head", "without a shorter draft head", short_head=False)
_register("no-compiled-code", "with torch's kernels in place of compiled code", compiled=False)
_register("no-tree", "without alternatives to drafted tokens", tree=False)
_register("draft-4-bits", "with drafts in 4 bits, whatever the size", draft_bits=4)
_register("draft-8-bits", "with drafts in 8 bits, whatever the size", draft_bits=8)
