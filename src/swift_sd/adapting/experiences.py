"""What was found out about a model, for as long as it is the same model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Lock
from time import perf_counter

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swift_sd.adapting.experience import Experience
from swift_sd.adapting.keeper import AUTO, Keeper
from swift_sd.adapting.profile import Profile
from swift_sd.config import SwiftConfig
from swift_sd.errors import ProfileError
from swift_sd.model.foreign_code import has_global_hooks, may_draft
from swift_sd.model.sharding import hold_everywhere, holds_everywhere, is_sharded
from swift_sd.model.snapshot import Change, Snapshot
from swift_sd.model.sublayers import Sublayers, find_sublayers

REMEMBERED = 2  # states of the model that it may come back to, as an adapter is switched
NO_SUBLAYERS = Sublayers((), ())
MODULES_ONLY = replace(SwiftConfig.plain(), compiled=False, exact="off")


class Experiences:
    """Whatever was found out is of the model as it was then; asks before each response.

    Where only weights have changed, drafts are made of the new ones. Where anything else has,
    everything is found out anew; what a model then lacks for drafting costs the drafts, never the
    response: it is decoded by the model's own modules, token by token.

    Args:
        model: the target; it is not changed.
        config: how to draft.
        profile: what to start from; see `Keeper`.
        tokenizer: tells drafts which tokens are frequent, if there is one.
        clock: tells the seconds by which everything is measured.

    Raises:
        UnsupportedModel: sublayers of this architecture cannot be skipped; says why.
        ProfileError, ConfigError, LayerSetError: see `Experience`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: SwiftConfig,
        profile: Profile | str | Path | None,
        tokenizer: PreTrainedTokenizerBase | None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._model, self._config, self._profile = model, config, profile
        self._tokenizer, self._clock = tokenizer, clock
        self._looking = Lock()
        before = Snapshot(model)
        experience = self._settled(self._tried(find_sublayers(model), profile))
        self._known = [(self._snapshot_since(before), experience)]

    @property
    def latest(self) -> Experience:
        """With the model as it was at the latest response."""
        return self._known[0][1]

    def take_over(self, profile: Profile) -> None:
        """Go on from `profile`, and start from it when the model has changed; see `Keeper`."""
        self.latest.take_over(profile)
        if self._profile != AUTO:  # which keeps what was learned in a file
            self._profile = profile

    def now(self) -> Experience:
        """With the model as it is."""
        with self._looking:
            snapshot, experience = self._known[0]
            change = snapshot.change()
            # Processes that share the model do the same, whatever each of them has seen.
            is_same, has_same_structure = hold_everywhere(
                self._model, [change is Change.NOTHING, change is not Change.STRUCTURE]
            )
            if is_same:
                return experience
            if has_same_structure:
                experience.reread()
                still = (known for known in self._known[1:] if known[0].has_the_same_weights())
                self._known = [(Snapshot(self._model, like=snapshot), experience), *still]
            else:
                self._known = self._remembered() or self._anew()
            return self.latest

    def _remembered(self) -> list[tuple[Snapshot, Experience]]:
        """What is known, the state that the model has come back to first; empty if to none."""
        if is_sharded(self._model):  # processes may remember different states
            return []
        for known in self._known[1:]:
            if known[0].change() is Change.NOTHING:
                return [known, *(other for other in self._known if other is not known)]
        return []

    def _snapshot_since(self, before: Snapshot) -> Snapshot:
        """Of the model as trials have left it, which set up what it makes with its first forward.

        What they have changed will change with every forward.
        """
        snapshot = Snapshot(self._model)
        snapshot.leave_out_what_changed_since(before)
        return snapshot

    def _anew(self) -> list[tuple[Snapshot, Experience]]:
        before = Snapshot(self._model)
        try:
            found = self._tried(find_sublayers(self._model), self._profile_that_fits())
        except Exception as error:  # anybody's code may be in the model now
            found = str(error)
        experience = self._settled(found)
        snapshot = self._snapshot_since(before)
        # States of weights that the model has no more would only keep those in memory.
        kept = [known for known in self._known if known[0].shares_weights(snapshot)]
        return [(snapshot, experience), *kept[: REMEMBERED - 1]]

    def _profile_that_fits(self) -> Profile | str | Path | None:
        """What the object was started from, unless that is of the model before."""
        try:
            Keeper(self._model, self._profile)
        except ProfileError:
            return None
        return self._profile

    def _tried(
        self, sublayers: Sublayers, profile: Profile | str | Path | None
    ) -> Experience | str:
        """An experience, or why nothing can be drafted."""
        if has_global_hooks():
            return "a global hook is called around every module, and may know it from its copies"
        experience = Experience(
            self._model, sublayers, self._config, profile, self._tokenizer, self._clock
        )
        if not self._config.max_draft_tokens:
            return experience
        if may_draft(self._model, is_exact=experience.is_exact):
            return experience
        return (
            "hooks or code of others take part in its forwards, and what they do may depend on how "
            "many tokens are read at once"
        )

    def _settled(self, found: Experience | str) -> Experience:
        is_found = holds_everywhere(self._model, isinstance(found, Experience))
        if is_found and isinstance(found, Experience):
            return found
        if isinstance(found, Experience):
            found = "another process that shares it cannot draft"
        warnings.warn(
            f"{type(self._model).__name__} is decoded token by token, without drafts: {found}",
            stacklevel=2,
        )
        return Experience(self._model, NO_SUBLAYERS, MODULES_ONLY, clock=self._clock)
