"""Two replicas on Ray Serve, one of which is killed while it answers."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import openai
import psutil
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from swift_sd import Swift, SwiftConfig
from swift_sd.errors import ConfigError
from swift_sd.serve.spec import Spec
from swift_sd.testing.planted import planted_model

QUESTION = {"model": "tiny", "prompt": "abc def", "max_tokens": 12, "temperature": 0}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.5)
    return False


class Cluster:
    """A Ray cluster of this machine alone, with our app on it."""

    def __init__(self, folder, log, *options: str) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "swift_sd", "serve", f"tiny={folder}", "--ray"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        environment.pop("RAY_ADDRESS", None)  # never somebody else's cluster
        self._process = subprocess.Popen(
            [*command, "--port", str(self.port), "--dtype", "float32", *options],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def client(self) -> openai.OpenAI:
        url = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(base_url=url, api_key="none", max_retries=8, timeout=60)

    def is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as told:
                return told.status == 200
        except OSError:
            return False

    def skipped(self) -> dict:
        """The layer set of a replica."""
        url = f"http://127.0.0.1:{self.port}/status"
        with urllib.request.urlopen(url, timeout=30) as told:
            state = json.load(told)["models"]["tiny"]
        return {key: state[key] for key in ("depth", "attention", "mlp")}

    def replicas(self) -> set[int]:
        """Processes that hold the model."""
        children = psutil.Process(self._process.pid).children(recursive=True)
        return {child.pid for child in children if "ServeReplica" in _name(child)}

    def tell(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def has_ended(self) -> bool:
        return self._process.wait(60) is not None

    def stop(self) -> None:
        if self._process.poll() is not None:  # it has ended, and Ray with it
            return
        children = psutil.Process(self._process.pid).children(recursive=True)
        self.tell(signal.SIGINT)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
        _, left = psutil.wait_procs(children, timeout=30)
        for child in left:
            child.kill()


def alone(folder) -> str:
    """What transformers says."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(QUESTION["prompt"], return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**inputs, max_new_tokens=QUESTION["max_tokens"], do_sample=False)
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture(scope="module")
def learned(byte_model, bytes_tokenizer, tmp_path_factory):
    """A model with superfluous layers, and what was learned about them: two paths and a set."""
    path = tmp_path_factory.mktemp("learned")
    model, _ = planted_model(byte_model, extra_layers=6)
    model.save_pretrained(path / "tiny")
    bytes_tokenizer.save_pretrained(path / "tiny")
    swift = Swift(model, bytes_tokenizer, SwiftConfig(eager_search=True))
    for text in ("abc", "def", "ghi"):
        swift.generate(**swift.encode(text), do_sample=False, max_new_tokens=60)
    assert swift.layer_set.skip_ratio > 0
    swift.profile.save(path / "profile.json")
    return path / "tiny", path / "profile.json", swift.layer_set


@pytest.fixture
def cluster(learned, tmp_path):
    folder, profile, _ = learned
    with (tmp_path / "log").open("w") as log:
        made = Cluster(folder, log, "--replicas", "2", "--profile", str(profile))
        try:
            yield made
        finally:
            made.stop()


@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_finish_the_answers_in_the_making(cluster, number):
    assert until(cluster.is_up, 300)
    asked = {**QUESTION, "max_tokens": 600}
    with cluster.client() as client, client.completions.create(**asked, stream=True) as stream:
        chunks = iter(stream)
        next(chunks)
        cluster.tell(number)
        *_, last = chunks
    assert last.choices[0].finish_reason in ("length", "stop")
    assert cluster.has_ended()
    assert not cluster.is_up()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
def test_autoscaling_is_handed_on_and_wrong_names_are_refused():
    from swift_sd.serve.replicas import deployed

    spec = Spec({"tiny": "x"})
    scaled = deployed(spec, 1, {"min_replicas": 1, "max_replicas": 4})
    config = scaled._bound_deployment._deployment_config.autoscaling_config
    assert (config.min_replicas, config.max_replicas) == (1, 4)
    for wrong in ({"max_replicas": "many"}, {"max_replica": 4}):
        with pytest.raises(ConfigError, match="--autoscaling"):
            deployed(spec, 1, wrong)


@pytest.mark.cluster
def test_a_killed_replica_comes_back_and_nothing_is_lost(cluster, learned):
    assert until(cluster.is_up, 300)
    assert until(lambda: len(cluster.replicas()) == 2, 60)
    assert cluster.skipped() == learned[-1].to_dict()
    expected = alone(learned[0])
    with cluster.client() as client, concurrent.futures.ThreadPoolExecutor(4) as pool:
        ask = lambda _: client.completions.create(**QUESTION).choices[0].text  # noqa: E731
        first = list(pool.map(ask, range(10)))
        under_way = [pool.submit(ask, number) for number in range(40)]
        killed = min(cluster.replicas())
        os.kill(killed, signal.SIGKILL)
        during = [future.result(timeout=300) for future in under_way]
        assert until(lambda: len(cluster.replicas() - {killed}) == 2, 300)
        later = list(pool.map(ask, range(20)))
        # The answer may come from either replica: both go on with what was learned.
        skipped = [cluster.skipped() for _ in range(10)]
    assert {*first, *during, *later} == {expected}
    assert all(found["attention"] or found["mlp"] for found in skipped)
