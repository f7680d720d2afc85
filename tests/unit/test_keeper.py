"""What is learned is written down behind responses, several of which may end at once."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from swift_sd import Profile
from swift_sd.adapting import fingerprint
from swift_sd.adapting import profile as profiles
from swift_sd.adapting.keeper import Keeper


@pytest.fixture
def keeper_of(model_of, monkeypatch, tmp_path):
    """`keeper_of(adaptation)`: writes down what that learns."""

    def make(adaptation):
        monkeypatch.setenv("SWIFT_SD_CACHE", str(tmp_path))
        keeper = Keeper(model_of(), "auto")
        keeper.teach(adaptation)
        return keeper

    return make


def test_a_response_that_may_not_write_leaves_the_others_alone(keeper_of):
    class Adaptation:
        to_dict = staticmethod(dict)

        @property
        def told(self):
            keeper._path = None  # as another thread does that finds the disk full
            return 1

    keeper = keeper_of(Adaptation())
    keeper.update()
    keeper.update()
    assert keeper._path is None


def test_what_is_learned_while_a_profile_is_written_is_written_next(keeper_of, model_of):
    class Adaptation:
        told = 1

        def to_dict(self):
            self.told += 1  # as another thread does, behind what is written now
            return {"kinds": [self.told - 1]}

    keeper = keeper_of(Adaptation())
    for told in (1, 2):
        keeper.update()
        assert Profile.load(profiles.automatic_path(model_of())).learned == {"kinds": [told]}


def test_saving_looks_at_the_processor_once(keeper_of, monkeypatch):
    adaptation, looked = SimpleNamespace(told=0, to_dict=dict), []
    keeper, read = keeper_of(adaptation), Path.read_text

    def read_text(path, *args, **kwargs):
        looked.append(str(path))
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)
    fingerprint.processor.cache_clear()
    for told in (1, 2, 3):
        adaptation.told = told
        keeper.update()
    assert looked == ["/proc/cpuinfo"]


def test_a_folder_that_may_not_be_looked_into_costs_only_the_keeping(
    keeper_of, monkeypatch, tmp_path
):
    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, "not yours")

    monkeypatch.setattr(Path, "exists", forbidden)
    monkeypatch.setattr(Path, "mkdir", forbidden)
    keeper = keeper_of(SimpleNamespace(told=1, to_dict=dict))
    with pytest.warns(UserWarning, match="not yours"):
        keeper.update()
    assert keeper._path is None
