import importlib.util
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest

from swift_sd import Profile
from swift_sd.cli.serve import _scale
from swift_sd.errors import ConfigError, SwiftError
from swift_sd.serve import server
from swift_sd.serve.engine import Engine
from swift_sd.serve.metrics import Metrics
from swift_sd.serve.spec import Spec, named


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--replicas", "2"), "--ray"),
        (("--autoscaling", "max_replicas=2"), "--ray"),
        (("--ray", "--autoscaling", "many"), "NAME=VALUE"),
        (("--ray", "--replicas", "2", "--autoscaling", "a=1"), "--replicas"),
        (("--ray", "--tensor-parallel", "2"), "torchrun"),
        (("--tensor-parallel", "2"), "--early-stop"),
        (("--tensor-parallel", "2", "--plain"), "torchrun"),
        (("--api-key", "a b"), "API key"),
        (("--cors", "chat.example"), "--cors chat.example"),
        (("--cors", "https://chat.example/"), "--cors https://chat.example/"),
        (("--profile", "new.json", "--plain"), "--profile"),
        (("--max-active", "0"), "--max-active"),
        (("--draft-bits", "5"), "draft_bits is '5'"),
        (("./no/such/folder",), "no/such/folder"),
        (("~no-user/model",), "~no-user/model"),
        (("--profile", "./no/such/folder/p.json"), "--profile"),
        (("a=x", "a=y"), "'a'"),
        (("--host", "192.0.2.77"), "--host"),
        (("--trusted-proxy", "proxy.example"), "--trusted-proxy"),
        (("--trusted-proxy", "*"), "--trusted-proxy"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(
    swift_sd, monkeypatch, arguments, words
):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    status, out, err = swift_sd("serve", *arguments, "--port", "0")
    assert (status, out) == (2, ""), err
    last = err.strip().splitlines()[-1]
    assert last.startswith("swift-sd: error: ")
    assert words in last


@pytest.mark.parametrize("value", ["", " ", " \n\t"])
def test_an_empty_api_key_is_no_open_door(swift_sd, refused, monkeypatch, value):
    monkeypatch.setenv("SWIFT_SD_API_KEY", value)
    refused(swift_sd("serve", "--port", "0"), "SWIFT_SD_API_KEY is set but empty")
    monkeypatch.delenv("SWIFT_SD_API_KEY")
    refused(swift_sd("serve", "--port", "0", "--api-key", value), "API key")


@pytest.mark.parametrize(
    "module", ["fastapi", "uvicorn", "httptools", "openai", "prometheus_client"]
)
def test_what_is_not_installed_is_told_with_the_remedy(swift_sd, refused, monkeypatch, module):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "swift_sd.cli.serve.importlib.util.find_spec",
        lambda name, *rest: None if name == module else find(name, *rest),
    )
    refused(swift_sd("serve", "--port", "0"), "swift-sd[serve]")


def test_a_taken_port_is_refused_with_the_remedy(swift_sd, refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused(swift_sd("serve", "--port", taken.getsockname()[1]), "--port")


def test_models_have_the_names_of_their_folders_or_the_given_ones(model_folder):
    named_so = named([str(model_folder), f"other={model_folder}", "org/model"])
    assert named_so == {
        model_folder.name: str(model_folder),
        "other": str(model_folder),
        "org/model": "org/model",
    }
    for wrong in ("=x", "x="):
        with pytest.raises(ConfigError, match="NAME=FOLDER"):
            named([wrong])
    with pytest.raises(ConfigError, match="name a model"):
        Spec({})


def test_autoscaling_values_are_those_of_json():
    assert _scale(["max_replicas=4", "look_back_period_s=1.5", "policy=x"]) == {
        "max_replicas": 4,
        "look_back_period_s": 1.5,
        "policy": "x",
    }


def test_it_serves_until_it_is_told_to_stop(model_folder, tmp_path):
    profile = tmp_path / "profile.json"
    given = ("--port", "0", "--api-key", "secret", "--profile", str(profile))
    command = [sys.executable, "-m", "swift_sd", "serve", str(model_folder), *given]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            told = process.stderr.readline()
            assert f"{model_folder.name} at http://127.0.0.1:" in told
            url = told.split()[-1]
            assert _page(url).startswith("<!doctype html>")
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"{url}/v1/models", timeout=10)
            _asked(url, model_folder.name)
        finally:
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGTERM)
    assert err == ""
    assert Profile.load(profile).learned["kinds"]  # written at the end


IMPORTING = """
import sys, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("now", flush=True)
            time.sleep(600)

sys.meta_path.insert(0, Slow())
"""
LOADING = """
import threading
from swift_sd import loading

def load(*given, **options):
    print("now", flush=True)
    threading.Event().wait()

loading.load = load
"""


@pytest.mark.parametrize("start", [IMPORTING, LOADING], ids=["importing", "loading"])
def test_it_ends_at_sigterm_before_its_models_are_there(start):
    """As process 1, for which nobody else handles it; else where it was ignored before."""
    run = "from swift_sd.cli.main import main; main(['serve', '--port', '0'])"
    command = [sys.executable, "-c", start + run]
    is_first = subprocess.run(["unshare", "-pf", "true"], capture_output=True).returncode == 0
    if is_first:
        command = ["unshare", "--pid", "--fork", "--kill-child", *command]
    ignored = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGTERM, ignored)
    with process:
        try:
            assert process.stdout.readline() == "now\n"
            (server,) = psutil.Process(process.pid).children() if is_first else [process]
            server.send_signal(signal.SIGTERM)
            assert process.wait(60) == (0 if is_first else -signal.SIGTERM)
        finally:
            process.kill()


def test_a_server_whose_engine_has_died_fails(monkeypatch):
    engine = Engine([], 1)

    def dead(self, sockets):
        engine.failure = RuntimeError("a fault of ours")

    monkeypatch.setattr(server.Server, "run", dead)
    with (
        server.listen("127.0.0.1", 0, 60) as listener,
        pytest.raises(SwiftError, match="a fault of ours"),
    ):
        server.run(Spec({"a": "b"}), engine, Metrics(), listener)


def _asked(url: str, model: str) -> None:
    """A long answer, of which something is learned."""
    body = {"model": model, "prompt": "abc abc", "max_tokens": 200, "temperature": 0}
    headers = {"Content-Type": "application/json", "Authorization": "Bearer secret"}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), headers, method="POST"
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert json.load(response)["choices"]


def _page(url: str) -> str:
    deadline = time.monotonic() + 60
    while True:  # the address is told a moment before it answers
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return response.read().decode()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
