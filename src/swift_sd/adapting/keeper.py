"""Keeps a profile up to date without being asked, and never gets in the way of a response."""

from __future__ import annotations

import warnings
from pathlib import Path

from transformers import PreTrainedModel

from swift_sd.adapting.adaptation import Adaptation
from swift_sd.adapting.fingerprint import machine_fingerprint, model_fingerprint
from swift_sd.adapting.profile import Profile, automatic_path
from swift_sd.errors import LayerSetError, ProfileError

AUTO = "auto"


class Keeper:
    """Knows what earlier objects have learned, and with "auto" writes down what this one learns.

    Args:
        model: the target.
        profile: one, the path of one, "auto" for the one in the user's cache directory, or None.

    Raises:
        ProfileError: the profile that was named is damaged, or for another model.
    """

    def __init__(self, model: PreTrainedModel, profile: Profile | str | Path | None) -> None:
        self._model = model
        self._adaptation: Adaptation | None = None
        self._known: Profile | None = None
        self._path = automatic_path(model) if profile == AUTO else None
        self._told = 0
        if self._path is None:
            self._known = Profile.load(profile) if isinstance(profile, str | Path) else profile
            if self._known is not None:
                self._known.check_model(model)
        else:
            try:
                if self._path.exists():
                    self._known = Profile.load(self._path)
                    self._known.check_model(model)
            except ProfileError as error:
                self._start_anew(error)
            except OSError:  # in a folder of somebody else's: `update` warns
                pass

    @property
    def bits(self) -> int | None:
        """Of the weights that drafts should read, if that was looked into, here or elsewhere.

        The layer sets of another machine were found with drafts of these bits.
        """
        return self._known.bits if self._known is not None else None

    def teach(self, adaptation: Adaptation) -> None:
        """Let `adaptation` begin with what is known; what it learns is kept from now on.

        Raises:
            ProfileError: the profile that was named is damaged.
        """
        self._adaptation = adaptation
        if self._known is None:
            return
        try:
            self._restore(adaptation)
        except ProfileError as error:
            if self._path is None:
                raise
            self._start_anew(error)

    def take_over(self, profile: Profile) -> None:
        """Go on from `profile` instead of what was learned.

        Raises:
            ProfileError: it is damaged, or for another model; what was learned stays.
        """
        assert self._adaptation is not None
        profile.check_model(self._model)
        known, self._known = self._known, profile
        try:
            self._restore(self._adaptation)
        except ProfileError:
            self._known = known
            raise
        self._told = -1  # to be written down

    @property
    def profile(self) -> Profile:
        """What is known now."""
        assert self._adaptation is not None
        study = self._known.study if self._known is not None else {}
        identity, machine = model_fingerprint(self._model), machine_fingerprint(self._model)
        learned = self._adaptation.to_dict()
        return Profile(identity, machine, learned, bits=self.bits, study=study)

    def update(self) -> None:
        """Write what has been learned since the last time, if it is to be kept."""
        assert self._adaptation is not None
        # Another response may be told of a failure, or go on searching, while this one writes.
        path, told = self._path, self._adaptation.told
        if path is None or told == self._told:
            return
        try:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ProfileError(
                    f"cannot write in {path.parent}: {error.strerror or error}"
                ) from None
            self.profile.save(path)
            self._told = told
        except ProfileError as error:
            self._path = None
            _tell(
                f"{error}. What is learned about drafting will not be kept; set SWIFT_SD_CACHE to "
                "a folder that can be written"
            )

    @property
    def _is_of_here(self) -> bool:
        assert self._known is not None
        return self._known.machine == machine_fingerprint(self._model)

    def _restore(self, adaptation: Adaptation) -> None:
        assert self._known is not None
        try:
            adaptation.restore(self._known.learned, same_machine=self._is_of_here)
        except LayerSetError as error:
            raise ProfileError(f"the profile is damaged: {error}; make it anew") from None

    def _start_anew(self, reason: ProfileError) -> None:
        """Nobody has named this file: it may just be replaced."""
        self._known = None
        _tell(f"{reason}. Learning starts anew")


def _tell(message: str) -> None:
    warnings.warn(message, stacklevel=3)
