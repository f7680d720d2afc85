"""Prompts answered with drafts of one precision after another, to see what pays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swift_sd.adapting.fingerprint import machine_fingerprint
from swift_sd.adapting.profile import Profile
from swift_sd.bench.questions import digest_of
from swift_sd.cli.session import fitting_tokens
from swift_sd.cli.settings import sampling_arguments
from swift_sd.config import SwiftConfig
from swift_sd.errors import ProfileError
from swift_sd.model.layer_set import LayerSet
from swift_sd.swift import Swift

ASKED: tuple[Literal[4, 8, 16], ...] = (4, 8, 16)  # bits of weights that drafts read, in turn


class Study:
    """Searches on all prompts with each precision, and writes down after each answer what it knows.

    A precision that the model's weights cannot be had in is passed over.

    Args:
        model: to draft with and to answer; it is not changed.
        tokenizer: the model's.
        prompts: to answer.
        out: where the profile is; if there is one of the same prompts, the study goes on behind the
            last one answered, else all of them are answered.
        max_new_tokens: longest answer.

    Attributes:
        done: answers given.

    Raises:
        ProfileError: there is a file at `out` that is no study of this model on this machine, or
            none can be written there.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list[str],
        out: Path,
        max_new_tokens: int,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._prompts, self._out, self._most = prompts, out, max_new_tokens
        self._digest = digest_of([prompts, max_new_tokens])
        self._known: dict[int, Profile] = {}  # by the bits that drafts read in fact
        self._said: dict[int, str] = {}
        self._asked = list(ASKED)  # without what turned out not to be had
        self.done = 0
        if out.exists():
            self._go_on_from(Profile.load(out))
        self._begin(min(self.done // len(prompts), len(self._asked) - 1))
        self._save()  # before any work: a place that cannot be written is told at once

    def __len__(self) -> int:
        return len(self._prompts) * len(self._asked)

    @property
    def words(self) -> str:
        """What the search is doing."""
        return f"{self._bits} bits: {self._swift.search_state}"

    @property
    def progress(self) -> str:
        """What a line tells that has room for little more."""
        return f"drafts in {self._bits} bits"

    @property
    def verdict(self) -> str:
        """What each precision promises, and what became of the search with the best of them."""
        promises = ", ".join(
            f"in {bits} bits {profile.gain:.2f}x" for bits, profile in self._known.items()
        )
        found = self._said.get(self._best, "known from before")
        return f"drafts with the model promise, of plain decoding's speed, {promises}\n{found}"

    @property
    def layer_set(self) -> LayerSet:
        """The best set of the precision that promises most, for the latest kind of input."""
        kinds = self._known[self._best].learned["kinds"]
        searches = [kind["search"] for kind in kinds if kind["search"] is not None]
        if not searches:
            return LayerSet.none(self._swift.sublayers.depth)
        return LayerSet.from_dict(searches[-1]["best"])

    def run(self) -> Iterator[None]:
        """Give the answers that are missing, one at a time."""
        while self.done < len(self):
            turn, place = divmod(self.done, len(self._prompts))
            if turn != self._turn:
                self._begin(turn)
            try:
                self._answer(self._prompts[place])
                self.done += 1
            finally:
                self._save()
            yield

    @property
    def _best(self) -> int:
        # Of equal promises the one with the truest drafts, which take no memory in 16 bits.
        return max(self._known, key=lambda bits: (self._known[bits].gain, bits))

    def _begin(self, turn: int) -> None:
        """Draft with the next precision that can be had; the last, 16 bits, always can."""
        self._turn = turn
        while True:
            bits = self._asked[turn]
            known = self._known.get(bits)
            config = SwiftConfig(eager_search=True, draft_bits=bits)
            self._swift = Swift(self._model, self._tokenizer, config, known)
            self._bits = int(self._swift.profile.learned["bits"])
            if self._bits == bits:
                return
            self._asked.remove(bits)

    def _answer(self, text: str) -> None:
        swift = self._swift
        template = getattr(self._tokenizer, "chat_template", None)
        prompt: Any = text if template is None else [{"role": "user", "content": text}]
        inputs = swift.encode(prompt)
        room = fitting_tokens(swift, inputs["input_ids"].shape[1], self._most)
        for _ in swift.steps(**inputs, **sampling_arguments(0.0, None, None), max_new_tokens=room):
            pass

    def _save(self) -> None:
        self._known[self._bits] = self._swift.profile
        self._said[self._bits] = self.words
        learned = {str(bits): profile.learned for bits, profile in self._known.items()}
        study = {
            "prompts": self._digest,
            "done": self.done,
            "asked": self._asked,
            "learned": learned,
        }
        compared = self._best if self.done == len(self) else None
        replace(self._known[self._best], bits=compared, study=study).save(self._out)

    def _go_on_from(self, profile: Profile) -> None:
        profile.check_model(self._model)
        if profile.machine != machine_fingerprint(self._model):
            raise ProfileError(
                f"{self._out} is of another machine (or of other versions or threads), whose times "
                "cannot be compared with those of here; give another --out, or delete it"
            )
        if not profile.study:
            raise ProfileError(
                f"{self._out} was learned from other text than a study's; give another --out, or "
                "delete it"
            )
        try:
            for bits, learned in profile.study.get("learned", {}).items():
                known = replace(profile, learned=learned, bits=None, study={})
                if known.gain < 1:
                    raise ValueError("a loss")
                self._known[int(bits)] = known
            kept = profile.study.get("asked", ASKED)
            asked = [bits for bits in ASKED if bits in kept or bits == max(ASKED)]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ProfileError(f"the study in {self._out} is damaged; delete it") from None
        if profile.study.get("prompts") == self._digest:
            self._asked = asked
            self.done = min(int(profile.study["done"]), len(self))
