"""What was learned about drafting with a model, as a file."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from swift_sd.adapting.fingerprint import model_fingerprint
from swift_sd.cache_folder import cache_root
from swift_sd.errors import ProfileError

VERSION = 4
PRECISIONS = (4, 8, 16)  # bits


@dataclass(frozen=True)
class Profile:
    """Layer sets, their scores and measured costs, for one model.

    `swift.profile` has what a `Swift` object knows; `Swift(model, profile=…)` starts from it.

    Attributes:
        model: fingerprint of the model; for another one the profile is refused.
        machine: where costs were measured; on another machine they are measured anew, while layer
            sets and scores are kept.
        learned: what `Adaptation.to_dict` gives.
        bits: of the weights that drafts should read there; None if that was not looked into.
        study: how far `swift-sd search` has come.
    """

    model: dict[str, Any]
    machine: dict[str, Any]
    learned: dict[str, Any]
    bits: int | None = None
    study: dict[str, Any] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        """Tokens per second to expect of drafts with the model ÷ those of plain decoding.

        On average over the prompts, each with the best layer set of its kind; at least 1.
        """
        kinds = self.learned["kinds"]
        prompts = sum(kind["prompts"] for kind in kinds)
        total = sum(
            kind["prompts"] * (kind["search"]["gain"] if kind["search"] is not None else 1.0)
            for kind in kinds
        )
        return float(total / prompts) if prompts else 1.0

    def check_model(self, model: PreTrainedModel) -> None:
        """Raise `ProfileError` if the profile is for another model, saying what differs."""
        here = model_fingerprint(model)
        for name, value in here.items():
            if self.model.get(name) != value:
                raise ProfileError(
                    f"the profile is for another model: its {name} is {self.model.get(name)!r}, "
                    f"here it is {value!r}; use the one that was made for this model, or none"
                )

    def save(self, path: str | Path) -> None:
        """Write it to `path` as JSON: complete or not at all.

        Raises:
            ProfileError: it cannot be written: no such folder, no right, no space, or numbers that
                are none.
        """
        path = Path(path)
        try:
            text = json.dumps({"version": VERSION, **asdict(self)}, allow_nan=False) + "\n"
        except ValueError as error:
            raise ProfileError(f"cannot write the profile {path}: {error}") from None
        try:
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
                draft = Path(folder) / path.name
                with draft.open("w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
        except OSError as error:
            raise ProfileError(
                f"cannot write the profile {path}: {error.strerror or error}; choose another place"
            ) from None

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read what `save` wrote.

        Raises:
            ProfileError: the file cannot be read, is damaged, or of a later version.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise ProfileError(
                f"cannot read the profile {path}: {error.strerror or error}; check the path"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ProfileError(f"the profile {path} is damaged: {error}; delete it") from None
        parts = ("model", "machine", "learned")
        if not isinstance(data, dict) or not all(isinstance(data.get(key), dict) for key in parts):
            raise ProfileError(f"{path} is no profile: parts of it are missing; delete it")
        if data.get("version") != VERSION:
            raise ProfileError(
                f"the profile {path} has version {data.get('version')!r}, this swift-sd reads "
                f"{VERSION}: make it anew"
            )
        bits = data.get("bits")
        if bits not in (None, *PRECISIONS):
            raise ProfileError(f"the profile {path} is damaged: {bits!r} bits; delete it")
        known = {key: data[key] for key in parts}
        return cls(**known, bits=bits, study=_study(data.get("study")))


def _study(data: Any) -> dict[str, Any]:
    """Where a search stopped; nothing if that cannot be made out, as it then just starts anew."""
    is_known = isinstance(data, dict) and isinstance(data.get("done"), int) and data["done"] >= 0
    return dict(data) if is_known else {}


def automatic_path(model: PreTrainedModel) -> Path:
    """Where the profile of `model` is kept unasked: a file of its own in the cache folder."""
    identity = model_fingerprint(model)
    return cache_root() / "profiles" / f"{identity['family']}-{identity['digest']}.json"
