"""What this machine or an installed version lacks for full speed, for a person to read."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from swift_sd.model.compiled_target import CompiledTarget
from swift_sd.model.exact_target import ExactTarget
from swift_sd.model.sublayers import Sublayers
from swift_sd.native import processor
from swift_sd.native.compiler import NoKernelsError, load_kernels
from swift_sd.versions import EXACT_TORCH, has_known_order

SLOWER = "the model decodes in torch's own modules, which is slower: "


def speed_notes(model: PreTrainedModel, sublayers: Sublayers, exact: ExactTarget) -> list[str]:
    """Why no compiled code serves this model, and what would change that; one sentence each.

    Only what a version, the compiler or the processor is to blame for; empty where nothing is. What
    a trial has shown counts more than what is known of versions.

    Args:
        sublayers: what `find_sublayers(model)` found.
        exact: what was found for the model.
    """
    if model.device.type != "cpu":
        return []
    try:
        library = load_kernels()
    except NoKernelsError as error:
        return [f"{SLOWER}{error}; install gcc or clang"]
    if model.dtype != torch.bfloat16 or exact.is_compiled:
        return []
    try:
        CompiledTarget(library, model, sublayers)
    except NoKernelsError:  # it has no compiled forward anywhere: verification is what may be lost
        if exact.is_exact:
            return []
    notes = []
    if not has_known_order(torch.__version__):
        first, last = EXACT_TORCH
        notes.append(
            f"{SLOWER}torch {torch.__version__} adds up in another order than compiled code; torch "
            f"{first} to {last} are known to add up as it does"
        )
    if not processor.has_known_order():
        notes.append(
            f"{SLOWER}torch's order of sums is not known on this processor but on {processor.KNOWN}"
        )
    return notes
