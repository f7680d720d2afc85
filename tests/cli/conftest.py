from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from swift_sd.testing.families import tiny_model

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] }} : {{ message['content'] }} </s> "
    "{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
WORDS = 97


def _tokenizer(template: str | None) -> transformers.PreTrainedTokenizerFast:
    words = [
        "abcdef",
        "system",
        "user",
        "assistant",
        ":",
    ]  # transformers tries stop strings on abcdef
    words += [f"w{index}" for index in range(WORDS - len(words))]
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=template,
    )


def _saved(folder: Path, template: str | None, **config: Any) -> Path:
    model = tiny_model("llama", vocab_size=WORDS + len(SPECIAL), **config)
    # As published checkpoints have it; with do_sample=False transformers may warn about these.
    model.generation_config.do_sample = True
    model.generation_config.temperature = 0.7
    model.generation_config.top_p = 0.8
    model.save_pretrained(folder)
    _tokenizer(template).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    return _saved(tmp_path_factory.mktemp("cli") / "tiny", TEMPLATE)


@pytest.fixture(scope="session")
def folder_without_template(tmp_path_factory) -> Path:
    return _saved(tmp_path_factory.mktemp("cli") / "plain", None)


@pytest.fixture(scope="session")
def folder_with_short_context(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "short"
    return _saved(folder, TEMPLATE, max_position_embeddings=24)


@pytest.fixture(scope="session")
def folder_with_stretched_context(tmp_path_factory) -> Path:
    """Whose rotary embedding changes behind 24 positions, and reaches to 96."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    folder = tmp_path_factory.mktemp("cli") / "stretched"
    return _saved(folder, TEMPLATE, max_position_embeddings=24, rope_parameters=rope)


@pytest.fixture(autouse=True)
def own_cache(own_cache) -> Path:
    """Nothing is read from the user's cache directory, nor written there."""
    return own_cache


@pytest.fixture
def swift_sd(monkeypatch, capfd) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: exit status, stdout and stderr."""
    from io import BytesIO, TextIOWrapper

    from swift_sd.cli.main import main

    def run(*arguments: object, stdin: str | bytes = "") -> tuple[int, str, str]:
        capfd.readouterr()  # what the test itself printed before
        raw = stdin if isinstance(stdin, bytes) else stdin.encode()
        with TextIOWrapper(BytesIO(raw), encoding="utf-8") as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            status = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture
def layer_set_file(tmp_path) -> Path:
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"depth": 5, "attention": [2], "mlp": [1, 3]}))
    return path


def assert_refused(result: tuple[int, str, str], *words: str) -> None:
    """Exit status 2, nothing on stdout, one line on stderr that contains `words`."""
    status, out, err = result
    assert (status, out) == (2, ""), err
    assert err.startswith("swift-sd: error: "), err
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err


@pytest.fixture
def refused() -> Callable[..., None]:
    return assert_refused


class Interrupted:
    """A `swift-sd` of its own that gets SIGINT as soon as its answer has begun."""

    def run(self, *arguments: object, stdin: str = "") -> tuple[int, str, str]:
        command = [sys.executable, "-u", "-m", "swift_sd", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(
            command,
            bufsize=0,  # what `read` took beyond one character would be lost to `communicate`
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        ) as process:
            assert process.stdin
            assert process.stdout
            process.stdin.write(stdin.encode())
            process.stdin.flush()
            begun = process.stdout.read(1)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=300)
        return process.returncode, (begun + out).decode(), err.decode()


@pytest.fixture
def interrupted() -> Callable[..., tuple[int, str, str]]:
    return Interrupted().run
