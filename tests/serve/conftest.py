from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

import openai
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.decoding.trace import Step
from swift_sd.serve.decoding import Decoding
from swift_sd.serve.engine import Engine
from swift_sd.serve.limits import Limits
from swift_sd.serve.metrics import Metrics
from swift_sd.serve.served import Served
from swift_sd.serve.server import listen, make_server
from swift_sd.testing.families import tiny_model

TEMPLATE = (
    "{% if tone %}{{ tone }}</s>{% endif %}"
    "{% if fails == 'TypeError' %}{{ 1 + 'a' }}{% endif %}"
    "{% if fails == 'undefined' %}{{ nobody.knows }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' and loop.first %}"
    "{{ raise_exception('an assistant cannot begin') }}{% endif %}"
    "{{ message['role'][0] }}:{{ message['content'] }}</s>"
    "{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
NAME = "tiny"
CONTEXT = 4096


def _bytes_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a byte, so that some characters take several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>"]
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=TEMPLATE,
    )


@pytest.fixture(scope="session")
def bytes_tokenizer() -> transformers.PreTrainedTokenizerFast:
    return _bytes_tokenizer()


@pytest.fixture(scope="session")
def byte_model(bytes_tokenizer) -> transformers.PreTrainedModel:
    return tiny_model(
        "llama", vocab_size=len(bytes_tokenizer), layers=4, max_position_embeddings=CONTEXT
    )


@pytest.fixture(scope="session")
def folder(tmp_path_factory, byte_model, bytes_tokenizer) -> Path:
    """The model as a checkpoint, for servers in processes of their own."""
    path = tmp_path_factory.mktemp("serve") / NAME
    byte_model.save_pretrained(path)
    bytes_tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def gate(monkeypatch) -> Iterator[threading.Event]:
    """Every answer stops behind three steps, until this is set."""
    opened, steps = threading.Event(), Decoding.next
    done: WeakKeyDictionary[Decoding, int] = WeakKeyDictionary()

    def held(self: Decoding) -> Step | None:
        done[self] = done.get(self, 0) + 1
        assert done[self] <= 3 or opened.wait(60)
        return steps(self)

    monkeypatch.setattr(Decoding, "next", held)
    yield opened
    opened.set()


@dataclass
class Running:
    """A server in this process, on a port of its own."""

    url: str
    engine: Engine
    stop: Callable[[], None]
    keys: tuple[str, ...] = field(default=())

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def client(self, **kwargs) -> openai.OpenAI:
        given = {"api_key": "none", "max_retries": 0, "timeout": 60, **kwargs}
        return openai.OpenAI(base_url=f"{self.url}/v1", **given)

    def idle(self, seconds: float = 120.0) -> bool:
        """Wait until nothing is left to do; whether that came to pass."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            load = self.engine.load
            if load.active == load.waiting == 0:
                return True
            time.sleep(0.02)
        return False


@contextlib.contextmanager
def running(swifts: dict[str, Swift], limits: Limits, **kwargs) -> Iterator[Running]:
    metrics = Metrics()
    served = [Served(name, swift) for name, swift in swifts.items()]
    engine = Engine(served, limits.active, metrics)
    server = make_server(engine, metrics, limits, log_level="error", **kwargs)
    with listen("127.0.0.1", 0, limits.transfer) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()

        def stop() -> None:
            server.should_exit = True

        try:
            deadline = time.monotonic() + 120
            while not server.started and time.monotonic() < deadline:
                time.sleep(0.01)
            assert server.started
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            yield Running(url, engine, stop, kwargs.get("api_keys", ()))
        finally:
            stop()
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture
def serving() -> Callable[..., contextlib.AbstractContextManager[Running]]:
    """`with serving({name: swift}, limits) as server`: stopped at the end."""
    return running


@pytest.fixture
def drafting_swift(byte_model, bytes_tokenizer) -> Callable[..., Swift]:
    """`drafting_swift(skip)`: drafts 4 tokens at a time, always."""

    def make(skip: str = "unified", model=None) -> Swift:
        layer_set = getattr(LayerSet, skip)(4)
        config = SwiftConfig(layer_set=layer_set, max_draft_tokens=4, early_stop=0)
        return Swift(model or byte_model, bytes_tokenizer, config)

    return make


@pytest.fixture(scope="module")
def server(byte_model, bytes_tokenizer) -> Iterator[Running]:
    """One for all tests of a module; every draft is of 4 tokens, some accepted."""
    config = SwiftConfig(layer_set=LayerSet(4, [1], []), max_draft_tokens=4, early_stop=0)
    swift = Swift(byte_model, bytes_tokenizer, config)
    with running({NAME: swift}, Limits(active=3, waiting=300, tokens=200)) as made:
        yield made


@pytest.fixture
def client(server) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


@pytest.fixture
def plain(byte_model, bytes_tokenizer) -> Callable[..., str]:
    """`plain(prompt, tokens)`: what transformers alone says to a text or to messages."""

    def answer(prompt, tokens: int, seed: int | None = None, **kwargs) -> str:
        if isinstance(prompt, str):
            inputs = bytes_tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        else:
            inputs = bytes_tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        if seed is not None:
            torch.manual_seed(seed)
        sampling = {"do_sample": True, "top_k": 0} if seed is not None else {"do_sample": False}
        out = byte_model.generate(**inputs, max_new_tokens=tokens, **{**sampling, **kwargs})
        new = out[0, inputs["input_ids"].shape[1] :]
        return bytes_tokenizer.decode(new, skip_special_tokens=True)

    return answer
