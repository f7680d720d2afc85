"""Without a folder for what is kept everything works, and one warning says so."""

import os
import pwd
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swift_sd import cache_folder, loading
from swift_sd.adapting.keeper import Keeper
from swift_sd.cache_folder import cache_root, private_root
from swift_sd.errors import ConfigError
from swift_sd.native.compiler import load_kernels

NAMES = ("HOME", "XDG_CACHE_HOME", "SWIFT_SD_CACHE")


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """As in a new process; what is made in its temporary folder can be looked at."""
    monkeypatch.setattr(cache_folder, "_private", {})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def homeless(monkeypatch):
    """A user id that no passwd entry belongs to."""

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_without_a_home_a_private_folder_serves_and_is_told_of_once(homeless, tmp_path):
    with pytest.warns(UserWarning, match=r"no home directory.*SWIFT_SD_CACHE") as heard:
        first, root = cache_root(), cache_root()
    assert len(heard) == 1
    assert first == root
    assert root.parent == tmp_path
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


@pytest.mark.parametrize("setting", ["~/kept", "~nobody-at-all/kept"])
def test_a_setting_below_a_home_that_is_not_there(homeless, monkeypatch, tmp_path, setting):
    monkeypatch.setenv("SWIFT_SD_CACHE", setting)
    with pytest.warns(UserWarning, match="no home directory"):
        assert cache_root().parent == tmp_path


def test_what_is_set_needs_no_home(homeless, monkeypatch, tmp_path):
    monkeypatch.setenv("SWIFT_SD_CACHE", str(tmp_path / "not" / "yet"))
    assert cache_root() == tmp_path / "not" / "yet"
    assert not cache_root().exists()


@pytest.mark.parametrize("home", ["/nonexistent", "/dev/null", "/proc", "a file"])
def test_a_home_in_which_nothing_can_be_made(monkeypatch, tmp_path, home):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / home))
    if home == "/nonexistent":  # root could make it
        monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "/")
    if home == "/proc":
        monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith("/proc"))
    with pytest.warns(UserWarning, match="is no folder that can be used"):
        assert cache_root().parent == tmp_path


def test_a_file_in_the_place_of_the_folder(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SWIFT_SD_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="file is no folder that can be used"):
        assert cache_root() != tmp_path / "file"


def test_what_others_have_put_there_is_read_where_nothing_can_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("SWIFT_SD_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    assert cache_root() == tmp_path


def test_compiled_code_is_kept_for_the_process(homeless):
    with pytest.warns(UserWarning, match="no home directory"):
        load_kernels()
    (kept,) = cache_root().glob("kernels-*.so")
    before = kept.stat().st_mtime_ns
    load_kernels()
    assert kept.stat().st_mtime_ns == before


def test_where_not_even_a_temporary_file_can_be_made_nothing_is_kept(
    homeless, monkeypatch, model_of
):
    def none(*_, **__):
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.mkdtemp", none)
    with pytest.warns(UserWarning, match="SWIFT_SD_CACHE"):
        keeper = Keeper(model_of(), "auto")
    assert keeper.bits is None
    assert not cache_root().exists()


KILLED = """
import os, time
from swift_sd.cache_folder import private_root
print(private_root("a test"), flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("age", [0, 3600])
@pytest.mark.filterwarnings("ignore:a test")
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, age):
    """But what is in use is not, nor what was made just now and may not be locked yet."""
    source = str(Path(cache_folder.__file__).parents[1])
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": source}
    done = subprocess.run(
        [sys.executable, "-c", KILLED], env=environment, capture_output=True, text=True, check=False
    )
    left = Path(done.stdout.strip())
    assert left.is_dir()
    ours = private_root("a test")
    for folder in (left, ours):
        os.utime(folder, (time.time() - age,) * 2)
    cache_folder._private.clear()
    private_root("a test")
    assert left.exists() == (age == 0)
    assert ours.exists()


@pytest.fixture
def conversions(monkeypatch, tmp_path):
    """Where the default model was converted to; a folder named in it is full."""
    places, full = [], set()

    def convert(gguf, folder):
        places.append(folder)
        if any(str(folder).startswith(str(one)) for one in full):
            raise OSError(28, "No space left on device")
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(loading, "_convert", convert)
    monkeypatch.setattr(loading, "_find_gguf", lambda: Path("model.gguf"))
    monkeypatch.setattr(loading.importlib.metadata, "version", lambda name: "9.9")
    return places, full


def test_the_default_model_is_converted_for_the_process(homeless, conversions):
    with pytest.warns(UserWarning, match="no home directory") as heard:
        folders = {loading._default_model_folder(lambda text: None) for _ in range(2)}
    assert len(heard) == len(folders) == len(conversions[0]) == 1
    assert folders.pop().is_relative_to(cache_root())


def test_a_full_disk_is_passed_over_for_the_default_model(conversions, monkeypatch, tmp_path):
    monkeypatch.setenv("SWIFT_SD_CACHE", str(tmp_path / "cache"))
    conversions[1].add(tmp_path / "cache")
    with pytest.warns(UserWarning, match="cache .*No space left"):
        folder = loading._default_model_folder(lambda text: None)
    assert (folder / "config.json").is_file()
    assert folder.is_relative_to(private_root("it is there already"))


def test_full_disks_everywhere_are_an_error_with_the_remedy(conversions, homeless, tmp_path):
    conversions[1].add(tmp_path)
    with (
        pytest.warns(UserWarning, match="no home"),
        pytest.raises(ConfigError, match="free some 300 MB there, or set SWIFT_SD_CACHE"),
    ):
        loading._default_model_folder(lambda text: None)


WHOLE = """
import os, pwd, warnings
if os.getuid() == KNOWN:
    def unknown(number): raise KeyError(number)
    pwd.getpwuid = unknown
import torch
from swift_sd import Swift
from swift_sd.testing.families import tiny_model
model = tiny_model("llama", hidden_size=64, intermediate_size=128).bfloat16()
ids = torch.arange(5, 12).unsqueeze(0)
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    swift = Swift(model, profile="auto")
    expected = model.generate(ids, max_new_tokens=20)
    assert torch.equal(swift.generate(ids, max_new_tokens=20), expected)
told = [str(one.message) for one in heard if "SWIFT_SD_CACHE" in str(one.message)]
assert len(told) == 1, told
from swift_sd.cache_folder import cache_root
print(cache_root())
"""


def test_a_user_without_a_name_and_a_home_gets_the_same_tokens(tmp_path):
    """For real as root: another user id, with the right to read what is installed."""
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents[:2]:
        folder.chmod(0o755)
    command = [sys.executable, "-c", WHOLE.replace("KNOWN", str(os.getuid()))]
    if os.getuid() == 0 and shutil.which("setpriv"):
        right = "+dac_read_search"
        user = ["--reuid=54321", "--regid=54321", "--clear-groups"]
        command = ["setpriv", *user, f"--inh-caps={right}", f"--ambient-caps={right}", *command]
    known = {name: value for name, value in os.environ.items() if name not in NAMES}
    source = str(Path(cache_folder.__file__).parents[1])
    environment = {"TMPDIR": str(tmp_path), "PYTHONPATH": source, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, env=known | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.split()[-1])
    assert folder.parent == tmp_path
    assert not folder.exists()  # it went with the process
