import json
import threading

import pytest

from swift_sd import Profile, Swift, SwiftConfig
from swift_sd.errors import ProfileError
from swift_sd.serve.engine import Engine
from swift_sd.serve.jobs import End, Job
from swift_sd.serve.profiles import ProfileFile, stamp
from swift_sd.serve.served import Served
from swift_sd.serve.spec import Spec, load

QUICK = SwiftConfig(draft_bits=16, compiled=False, exact="off", max_draft_tokens=2)  # to make


@pytest.fixture
def served(byte_model, bytes_tokenizer):
    return Served("tiny", Swift(byte_model, bytes_tokenizer))


def answered(served: Served, chores=None) -> None:
    """One long response, on an engine."""
    engine, done = Engine([served], 1, None, chores), threading.Event()
    engine.start()
    inputs = served.swift.encode("abc def")
    arguments = {"max_new_tokens": 200, "do_sample": False}
    job = Job("tiny", "me", inputs, arguments, deadline=float("inf"))
    job.deliver = lambda event: done.set() if isinstance(event, End) else None
    engine.submit(job)
    assert done.wait(60)
    engine.close(60)


def test_what_is_learned_is_saved_and_the_next_server_starts_from_it(
    served, byte_model, bytes_tokenizer, tmp_path
):
    path = tmp_path / "profile.json"
    assert ProfileFile.start(path) is None
    keeping = ProfileFile(served, path, period=0)
    keeping.update()
    assert not path.exists()  # nothing was learned yet
    answered(served, keeping)
    keeping.update()
    learned = Profile.load(path).learned
    again = Swift(byte_model, bytes_tokenizer, None, ProfileFile.start(path))
    assert again.layer_set == served.swift.layer_set
    assert learned == served.swift.profile.learned


@pytest.mark.parametrize("parts", [("no", "p.json"), ("file", "p.json")])
def test_a_place_where_nothing_can_be_kept_is_refused(tmp_path, parts):
    (tmp_path / "file").touch()
    with pytest.raises(ProfileError, match="--profile"):
        ProfileFile.start(tmp_path.joinpath(*parts))


def test_what_was_learned_last_is_saved_when_the_engine_ends(served, tmp_path):
    path = tmp_path / "profile.json"
    keeping = ProfileFile(served, path, period=1e9)
    keeping()  # the next time would be far away
    answered(served, keeping)
    assert Profile.load(path).learned["kinds"]


def test_what_another_process_saved_is_taken_over(byte_model, bytes_tokenizer, tmp_path):
    path = tmp_path / "profile.json"
    one, other = (Served("tiny", Swift(byte_model, bytes_tokenizer)) for _ in range(2))
    first, second = ProfileFile(one, path), ProfileFile(other, path)
    answered(one)
    first.update()
    second.update()
    assert other.swift.profile.learned == one.swift.profile.learned
    assert other.swift.layer_set == one.swift.layer_set
    answered(other)  # goes on from there
    written = path.stat().st_mtime_ns
    first.update()  # its own file is nothing new
    assert path.stat().st_mtime_ns == written


def test_prompts_alone_are_nothing_to_write_down(served, tmp_path):
    keeping = ProfileFile(served, tmp_path / "profile.json", period=0)
    answered(served, keeping)
    keeping.update()
    before = keeping._learned()
    kind = served.swift._experience._adaptation.kinds.latest
    kind.prompts += 1
    assert keeping._learned() == before


@pytest.fixture(scope="module")
def written(byte_model, bytes_tokenizer, tmp_path_factory) -> dict:
    """What a file holds that can be used."""
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    Swift(byte_model, bytes_tokenizer, QUICK).profile.save(path)
    return json.loads(path.read_text())


@pytest.mark.parametrize("kind", ["empty", "of another version", "of another model", "no profile"])
def test_a_file_that_cannot_be_used_is_set_aside_at_the_start(
    written, folder, tmp_path, caplog, kind
):
    """A unit that is started again and again would never come up."""
    path = tmp_path / "profile.json"
    content = {
        "empty": "",
        "of another version": json.dumps({**written, "version": written["version"] + 1}),
        "of another model": json.dumps({**written, "model": {**written["model"], "digest": "0"}}),
        "no profile": "[1, 2]",
    }[kind]
    path.write_text(content)
    load(Spec({"tiny": str(folder)}, profile=path, config=QUICK), lambda message: None)
    assert [one.name for one in tmp_path.iterdir()] == ["profile.json.unusable-1"]
    assert (tmp_path / "profile.json.unusable-1").read_text() == content
    assert "profile.json.unusable-1" in caplog.text


def test_what_was_set_aside_before_stays(tmp_path):
    path = tmp_path / "profile.json"
    for content in ("one", "two"):
        path.write_text(content)
        ProfileFile.set_aside(path, ProfileError("damaged"), stamp(path))
    assert (tmp_path / "profile.json.unusable-1").read_text() == "one"
    assert (tmp_path / "profile.json.unusable-2").read_text() == "two"


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_file_that_another_replica_has_set_aside_stops_nothing(tmp_path, is_replaced):
    path = tmp_path / "profile.json"
    path.write_text("damaged")
    seen = stamp(path)
    path.rename(tmp_path / "elsewhere")
    if is_replaced:
        path.write_text("good")
    ProfileFile.set_aside(path, ProfileError("damaged"), seen)
    assert path.exists() == is_replaced
    assert not list(tmp_path.glob("*.unusable-*"))


def test_what_is_no_file_is_not_set_aside(folder, tmp_path):
    path = tmp_path / "profile.json"
    path.mkdir()
    with pytest.raises(ProfileError, match="cannot read"):
        load(Spec({"tiny": str(folder)}, profile=path, config=QUICK), lambda message: None)
    assert path.is_dir()


def test_a_file_that_cannot_be_used_stops_nothing(served, tmp_path, caplog):
    path = tmp_path / "profile.json"
    keeping = ProfileFile(served, path, period=0)
    path.write_text("{")
    before = served.swift
    keeping()
    assert "damaged" in caplog.text
    assert served.swift is before
    with pytest.raises(ProfileError):
        Swift(before.model, None, SwiftConfig(), path)
