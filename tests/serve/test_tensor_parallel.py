"""Two local processes under torchrun, with gloo: the tokens of one process, drafts included."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import openai
import pytest
import torch

from swift_sd import SwiftConfig
from swift_sd.errors import ConfigError
from swift_sd.serve import orders
from swift_sd.serve.lockstep import join, require_lockstep
from swift_sd.serve.orders import NoOrder, Order, hear, tell

IMPOSTOR = """
import sys
import torch.distributed as dist

class Order:
    def __reduce__(self):
        return open, (sys.argv[2], "w")

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=2)
dist.broadcast_object_list([Order()], src=0)
sys.stdin.read()
"""
FOLLOWER = """
import sys
import torch.distributed as dist
from swift_sd.serve.lockstep import follow

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=1, world_size=2)
follow({})
"""
PROMPTS = ["abc", "def f(x):", "Why is the sky blue?"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def torchrun(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [*command, "--nproc-per-node", "2", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_generate_the_tokens_of_one(folder, byte_model, bytes_tokenizer):
    process = torchrun(Path(__file__).parent / "tensor_parallel.py", folder)
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, err
    told = json.loads(out.strip().splitlines()[-1])
    assert told["is_split"]
    assert told["accepted"] > 0
    expected = []
    for sampling in ({"do_sample": False}, {"do_sample": True, "temperature": 0.8, "top_k": 0}):
        for prompt in PROMPTS:
            ids = bytes_tokenizer(prompt, return_tensors="pt").input_ids
            torch.manual_seed(7)
            tokens = byte_model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, **sampling
            )
            expected.append(tokens[0, ids.shape[1] :].tolist())
    assert told["answers"] == expected


@pytest.mark.parametrize("farewell", [signal.SIGTERM, signal.SIGINT])
def test_a_split_model_is_served(folder, plain, tmp_path, farewell):
    layer_set = tmp_path / "set.json"
    layer_set.write_text(json.dumps({"depth": 4, "attention": [1], "mlp": []}))
    port = free_port()
    process = torchrun(
        *("-m", "swift_sd", "serve", f"tiny={folder}", "--tensor-parallel", 2, "--port", port),
        *("--dtype", "float32", "--early-stop", 0, "--layer-set", layer_set),
    )
    try:
        url = f"http://127.0.0.1:{port}"
        assert is_up(f"{url}/health", process)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=60) as client:
            asked = {"model": "tiny", "temperature": 0, "max_tokens": 24}
            for prompt in PROMPTS:
                answer = client.completions.create(prompt=prompt, **asked)
                assert answer.choices[0].text == plain(prompt, 24)
            with client.completions.create(prompt="abc", stream=True, **asked) as stream:
                next(iter(stream))  # and leave
            answer = client.completions.create(prompt="abc", **asked)
            assert answer.choices[0].text == plain("abc", 24)
            assert answer.usage.drafted_tokens > 0
    finally:
        process.send_signal(farewell)
        try:
            _, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert "SIGABRT" not in err
    assert "Traceback" not in err.split("SignalException")[0].split("Sending process")[0]


def test_an_impostor_in_the_place_of_the_first_process_gets_no_code_run(tmp_path):
    meeting, evidence = tmp_path / "meeting", tmp_path / "evidence"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    impostor = subprocess.Popen(
        [sys.executable, "-c", IMPOSTOR, meeting, evidence], stdin=subprocess.PIPE
    )
    try:
        follower = subprocess.run(
            [sys.executable, "-c", FOLLOWER, meeting],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        impostor.communicate()
    assert not evidence.exists()
    assert "NoOrder" in follower.stderr


def received(monkeypatch, *sent: torch.Tensor) -> Order:
    """What is heard where these tensors are broadcast."""
    rest = list(sent)
    monkeypatch.setattr(orders.dist, "broadcast", lambda tensor, src: tensor.copy_(rest.pop(0)))
    return hear()


def test_an_order_arrives_as_it_was_told(monkeypatch):
    order = Order(
        verb="start",
        number=3,
        model="é",
        inputs={"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1, 1]]},
        arguments={"do_sample": True, "temperature": 0.1 + 0.2, "top_k": 0, "top_p": None},
        seed=2**63 - 1,
    )
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(orders.dist, "broadcast", lambda tensor, src: sent.append(tensor))
    tell(order)
    heard = received(monkeypatch, *sent)
    assert heard == order
    assert heard.arguments["do_sample"] is True
    assert torch.equal(heard.tensors()["input_ids"], torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize(
    "said",
    [
        pickle.dumps(Order(verb="end")),
        b"",
        b"{}",
        b'{"verb": "run"}',
        b'{"verb": "end", "more": 1}',
        b'{"verb": "start", "arguments": {"custom_generate": "somebody/something"}}',
        b'{"verb": "start", "inputs": {"input_ids": [["a"]]}}',
        b'{"verb": "start", "inputs": {"input_ids": [[1], [2]]}}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_order_is_not_followed(monkeypatch, said):
    text = torch.tensor(list(said), dtype=torch.uint8)
    with pytest.raises(NoOrder):
        received(monkeypatch, torch.tensor([len(text)]), text)


@pytest.mark.parametrize("length", [-1, 1 << 62])
def test_no_memory_is_taken_for_an_order_of_any_length(monkeypatch, length):
    with pytest.raises(NoOrder):
        received(monkeypatch, torch.tensor([length]))


def is_up(url: str, process: subprocess.Popen) -> bool:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as told:
                return told.status == 200
        except OSError:
            time.sleep(0.3)
    return False


def test_drafts_that_depend_on_time_are_refused():
    with pytest.raises(ConfigError, match="--early-stop"):
        require_lockstep(SwiftConfig())
    require_lockstep(SwiftConfig.plain())
    require_lockstep(SwiftConfig(early_stop=0.8, exact="strict"))


def test_without_torchrun_it_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigError, match=r"torchrun .*pipeline parallelism"):
        join(2)
