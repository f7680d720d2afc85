"""Two local processes under torchrun, with gloo: the tokens of one process, drafts included."""

import json
import os
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
from swift_sd.serve.lockstep import join, lockstep_config

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
        lockstep_config(SwiftConfig())
    with pytest.raises(ConfigError, match="strict"):
        lockstep_config(SwiftConfig(early_stop=0.8, exact="strict"))
    assert lockstep_config(SwiftConfig.plain()).max_draft_tokens == 0


def test_without_torchrun_it_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigError, match=r"torchrun .*pipeline parallelism"):
        join(2)
