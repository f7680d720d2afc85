"""Weights in 4 or 8 bits for compiled drafts, and the file in which they may be kept."""

from __future__ import annotations

import hashlib
import pickle
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swift_sd.model.common_layout import CHUNK, Pointer, Whole
from swift_sd.model.plain_tensors import address
from swift_sd.model.quantised_linear import AT_ONCE
from swift_sd.native import compiler

SAMPLES = 16  # numbers of a matrix by which it is known again
# There is no file, or it is damaged, or of something else.
UNREADABLE = (
    *(OSError, EOFError, RuntimeError, pickle.UnpicklingError),
    *(ValueError, LookupError, TypeError, AttributeError),
)


@dataclass(frozen=True)
class Rounded:
    """Weights `[rows, columns]`, by groups along the rows.

    4 bits: code · scale + offset; 8 bits: code · scale.

    Attributes:
        codes: `[rows, columns · bits / 8]`, uint8.
        scales: of each group scale and offset, `[rows, groups, 2]`; int16 that hold bfloat16.
        bits: 4 or 8.
    """

    codes: Tensor
    scales: Tensor
    bits: int

    @classmethod
    def of(cls, library: Any, weight: Tensor, bits: int, group: int) -> Rounded:
        """Round `weight`, `[rows, columns]`, by `library` from `load_kernels()`.

        Args:
            group: most weights that share a scale; fewer where that does not divide a row.
        """
        rows, columns = weight.shape
        group = next(size for size in range(group, 0, -CHUNK) if columns % size == 0)
        codes = torch.empty(rows, columns * bits // 8, dtype=torch.uint8, device="cpu")
        scales = torch.empty(rows, columns // group, 2, dtype=torch.int16, device="cpu")
        at_once = max(1, AT_ONCE // columns)
        # So large that it is given back as a whole: a heap of parts stays as large as the model.
        floats = torch.empty(at_once, columns, dtype=torch.float32, device="cpu")
        library.swift_sd_quantise.restype = None
        for first in range(0, rows, at_once):
            part = floats[: min(at_once, rows - first)]
            part.copy_(weight[first : first + at_once].detach())
            library.swift_sd_quantise(
                Pointer(address(part, torch.float32)),
                *map(Whole, (len(part), columns, group, bits)),
                Pointer(address(codes[first:], torch.uint8)),
                Pointer(address(scales[first:], torch.int16)),
            )
        return cls(codes, scales, bits)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Rows, columns, weights that share a scale, and bits."""
        columns = self.codes.shape[1] * 8 // self.bits
        return len(self.codes), columns, columns // self.scales.shape[1], self.bits

    @property
    def bytes(self) -> int:
        """Memory taken."""
        return self.codes.nbytes + self.scales.nbytes


class KeptCopies:
    """Rounded copies of a model's matrices in a file, which all processes that read it share.

    Args:
        path: of the file; written when there is none, or one of other weights.
        bits, group: how they are rounded.
    """

    def __init__(self, path: Path, bits: int, group: int) -> None:
        self.path, self._bits = path, bits
        rounding = (Path(compiler.__file__).parent / "quantise.c").read_bytes()
        self._form = f"{bits} bits, groups of {group}, {hashlib.sha256(rounding).hexdigest()}"

    def read(self, weights: Sequence[Tensor]) -> list[Rounded] | None:
        """The copies of `weights`; None if the file has no such, whatever the reason.

        All of it is read once; processes that read it at the same time share its memory.
        """
        try:
            held = torch.load(self.path, mmap=True, weights_only=True)
            copies = [Rounded(codes, scales, self._bits) for codes, scales in held["copies"]]
            is_same = held["form"] == self._form and torch.equal(held["samples"], _samples(weights))
            shapes = [copy.sizes[:2] for copy in copies]
            is_same &= shapes == [tuple(weight.shape) for weight in weights]
            return copies if is_same and held["digest"] == _digest(copies) else None
        except UNREADABLE:
            return None

    def write(self, weights: Sequence[Tensor], copies: Sequence[Rounded]) -> None:
        """Keep `copies` of `weights`: completely or not at all; warns where that cannot be."""
        data = {
            "form": self._form,
            "samples": _samples(weights),
            "digest": _digest(copies),
            "copies": [(copy.codes, copy.scales) for copy in copies],
        }
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=f".{self.path.name}-") as scratch:
                draft = Path(scratch) / self.path.name
                torch.save(data, draft)
                draft.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch's, where the disk is full
            warnings.warn(
                f"rounded copies are not kept in {folder}: {error}; make room there, set "
                "SWIFT_SD_CACHE to another folder, or leave keep_copies out",
                stacklevel=2,
            )


def _digest(copies: Sequence[Rounded]) -> str:
    """Of all that drafts read, in order."""
    digest = hashlib.sha256()
    for copy in copies:
        for part in (copy.codes, copy.scales):
            digest.update(part.numpy().data)
    return digest.hexdigest()


def _samples(weights: Sequence[Tensor]) -> Tensor:
    """A few numbers of each matrix, `[matrices, samples]`, float32."""
    rows = []
    for weight in weights:
        flat = weight.detach().reshape(-1)
        places = torch.linspace(0, len(flat) - 1, SAMPLES, dtype=torch.float64, device="cpu").long()
        rows.append(flat[places].float())
    return torch.stack(rows)
