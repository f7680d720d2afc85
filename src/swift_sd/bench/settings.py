"""What a run was asked to do; two runs with the same settings do the same work."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is timed and how.

    Attributes:
        model: as the user named it.
        questions: where they come from, for a reader; `digest` says which they are.
        methods: names, in the order in which they are timed.
        temperature: 0 decodes greedily.
        repeats: timings per pair, of which the median counts.
        stream: one Swift object over all questions in order, not a fresh one for each.
        layer_set: for `swift-fixed`, as `LayerSet.to_dict` gives it.
        note: what a reader of the results must know besides.
    """

    model: str
    questions: str
    digest: str
    methods: tuple[str, ...]
    max_new_tokens: int = 128
    limit: int | None = None
    temperature: float = 0.0
    repeats: int = 1
    stream: bool = False
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    draft_model: str | None = None
    layer_set: dict[str, Any] | None = None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {**asdict(self), "methods": list(self.methods)}

    def to_publish(self) -> dict[str, Any]:
        """The same without folders of this machine, which are nobody's business."""
        drafts = self.draft_model
        return self.to_dict() | {
            "model": short_name(self.model),
            "draft_model": short_name(drafts) if drafts is not None else None,
        }

    @property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits that differ when any setting does; a note is none."""
        text = json.dumps({**self.to_dict(), "note": None}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def generate_arguments(self) -> dict[str, Any]:
        """How a token is chosen: the same arguments of `generate` for every method.

        What the checkpoint's generation config proposes for sampling does not count; the rest of
        it (a repetition penalty, say) holds for every method alike.
        """
        if self.temperature > 0:
            chosen = {"temperature": self.temperature, "top_p": 1.0, "top_k": 0, "typical_p": 1.0}
            return {"do_sample": True, "min_p": None, **chosen}
        # None and not 1.0: transformers then has no sampling flag to warn about.
        flags = ("temperature", "top_p", "top_k", "min_p", "typical_p")
        return {"do_sample": False, **dict.fromkeys(flags)}


def short_name(model: str) -> str:
    """What to call a model in public: of a folder on this machine the last part."""
    is_folder = model.startswith(("/", ".", "~")) or "\\" in model
    return re.split(r"[/\\]", model.rstrip("/\\"))[-1] if is_folder else model


def difference(wanted: dict[str, Any], found: dict[str, Any], keys: Sequence[str]) -> str | None:
    """In words, the first of `keys` whose values differ; None if none does."""
    for key in keys:
        if wanted.get(key) != found.get(key):
            return f"{key} is {wanted.get(key)!r} here and {found.get(key)!r} there"
    return None
