"""Keeps a profile up to date without being asked, and never gets in the way of a response."""

from __future__ import annotations

import warnings
from pathlib import Path

from transformers import PreTrainedModel

from swift_sd.adapting.adaptation import Adaptation
from swift_sd.adapting.profile import Profile, automatic_path
from swift_sd.errors import LayerSetError, ProfileError

AUTO = "auto"


class Keeper:
    """Starts an `Adaptation` from a profile; with "auto" also writes down what it learns.

    Args:
        model: the target.
        adaptation: what learns.
        profile: one, the path of one, "auto" for the one in the user's cache directory, or None.

    Raises:
        ProfileError: the profile that was named is damaged, or for another model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        adaptation: Adaptation,
        profile: Profile | str | Path | None,
    ) -> None:
        self._model, self._adaptation = model, adaptation
        self._path = automatic_path(model) if profile == AUTO else None
        self._told = 0
        if self._path is None:
            self._start(Profile.load(profile) if isinstance(profile, str | Path) else profile)
        elif self._path.exists():
            try:
                self._start(Profile.load(self._path))
            except ProfileError as error:  # nobody has named this file: it may just be replaced
                _tell(f"{error}. Learning starts anew")

    @property
    def profile(self) -> Profile:
        """What is known now."""
        return Profile.of(self._model, self._adaptation.to_dict())

    def update(self) -> None:
        """Write what has been learned since the last time, if it is to be kept."""
        if self._path is None or self._adaptation.told == self._told:
            return
        try:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ProfileError(
                    f"cannot write in {self._path.parent}: {error.strerror or error}"
                ) from None
            self.profile.save(self._path)
            self._told = self._adaptation.told
        except ProfileError as error:
            self._path = None
            _tell(f"{error}. What is learned about drafting will not be kept")

    def _start(self, profile: Profile | None) -> None:
        if profile is None:
            return
        profile.check_model(self._model)
        here = Profile.of(self._model, {})
        try:
            self._adaptation.restore(profile.learned, same_machine=profile.machine == here.machine)
        except LayerSetError as error:
            raise ProfileError(f"the profile is damaged: {error}; make it anew") from None


def _tell(message: str) -> None:
    warnings.warn(message, stacklevel=3)
