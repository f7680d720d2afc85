"""Clients that are too many, too slow, or leave: clear errors, no leak."""

import asyncio
import concurrent.futures
import copy
import gc
import http.client
import itertools
import json
import socket
import threading
import time
from types import SimpleNamespace

import openai
import psutil
import pytest

from swift_sd import Swift, SwiftConfig
from swift_sd.model.kv_cache import KVCache
from swift_sd.serve import desk, response
from swift_sd.serve.desk import Conversation
from swift_sd.serve.engine import Engine, Load
from swift_sd.serve.limits import Limits
from swift_sd.serve.response import Response

PATHS = ["/v1/chat/completions", "/v1/completions"]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
MEBIBYTE = 2**20


def asked(server, raw=None, **changes):
    """A connection on which a streamed answer was asked for."""
    body = json.dumps({**CHAT, "stream": True, **changes})
    raw = raw or socket.create_connection(("127.0.0.1", server.port), timeout=60)
    head = f"POST {PATHS[0]} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return raw


def streaming(server, tokens):
    """A connection on which a streamed answer has begun."""
    raw = asked(server, max_tokens=tokens)
    assert raw.recv(1)
    return raw


def test_a_body_that_does_not_come_is_not_waited_for(serving, drafting_swift):
    with (
        serving({"tiny": drafting_swift()}, Limits(transfer=0.3)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw,
    ):
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        raw.sendall(head + b"Content-Length: 9\r\n\r\n{")
        assert b"408" in raw.recv(1000)


@pytest.fixture
def narrow(monkeypatch):
    """Servers that begin from now on have small buffers, and so has what it connects."""
    listen = socket.create_server

    def create(*arguments, **options):
        made = listen(*arguments, **options)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # its connections inherit it
        return made

    def connect(server, tokens):
        """A connection on which a long answer, much of it for each token, was asked for."""
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        raw.connect(("127.0.0.1", server.port))
        return asked(server, raw, max_tokens=tokens, stream_options={"include_origins": True})

    monkeypatch.setattr(socket, "create_server", create)
    return connect


@pytest.fixture
def endless(byte_model, bytes_tokenizer):
    """Answers are as long as they may be, a piece for each token."""
    model = copy.deepcopy(byte_model)
    model.generation_config.eos_token_id = None
    return Swift(model, bytes_tokenizer, SwiftConfig.plain())


def test_a_client_that_reads_a_byte_a_second_holds_nobody_up(narrow, serving, endless, plain):
    expected = plain(CHAT["messages"], 20, eos_token_id=None)
    limits = Limits(active=2, tokens=2000)
    with serving({"tiny": endless}, limits) as server, server.client() as client:
        slow = narrow(server, 2000)
        slow.settimeout(60)
        for _ in range(4):
            assert slow.recv(1)
            time.sleep(1)
            answer = client.chat.completions.create(**CHAT, max_tokens=20)
            assert answer.choices[0].message.content == expected
        rest = b""
        while b"[DONE]" not in rest:
            more = slow.recv(65536)
            assert more
            rest += more
        slow.close()
        assert len(rest) > 2 * 65536  # more than all buffers hold: it did have to wait
        assert server.idle()


def test_a_client_that_reads_nothing_is_left_and_its_connection_closed(narrow, serving, endless):
    limits = Limits(active=4, transfer=3.0, tokens=4000)
    process = psutil.Process()
    with serving({"tiny": endless}, limits) as server, server.client() as client:
        client.models.list()
        before = process.num_fds()
        unread = [narrow(server, 3500) for _ in range(4)]
        assert server.idle(60)
        # The server's ends of these connections are gone too, though the clients' are open.
        deadline = time.monotonic() + 30
        while process.num_fds() > before + len(unread) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert process.num_fds() <= before + len(unread)
        assert client.chat.completions.create(**CHAT, max_tokens=3).choices
        for raw in unread:
            raw.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_left_is_not_answered(serving, endless, gate, monkeypatch, stream):
    """The whole answer would be 300 tokens; behind three it stops until it is given up."""
    given_up, cancel = threading.Event(), Engine.cancel

    def noted(self, job):
        cancel(self, job)
        given_up.set()

    monkeypatch.setattr(Engine, "cancel", noted)
    with serving({"tiny": endless}, Limits(tokens=300)) as server:
        figures = server.engine.models["tiny"].figures
        raw = asked(server, max_tokens=300, stream=stream)
        deadline = time.monotonic() + 120
        while not server.engine.load.active and time.monotonic() < deadline:
            time.sleep(0.001)
        raw.close()
        assert given_up.wait(60)
        gate.set()
        assert server.idle()
        assert figures.state()["tokens"] < 10


@pytest.mark.parametrize("is_at_once", [True, False])
def test_a_client_that_left_after_a_second_request_is_not_answered(
    serving, endless, gate, monkeypatch, is_at_once
):
    given_up, cancel = threading.Event(), Engine.cancel

    def noted(self, job):
        cancel(self, job)
        given_up.set()

    monkeypatch.setattr(Engine, "cancel", noted)
    body = json.dumps({**CHAT, "max_tokens": 300})
    first = (
        f"POST {PATHS[0]} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    second = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with serving({"tiny": endless}, Limits(tokens=300)) as server:
        raw = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        raw.sendall(first + second if is_at_once else first)
        deadline = time.monotonic() + 60
        while not server.engine.load.active and time.monotonic() < deadline:
            time.sleep(0.001)
        if not is_at_once:
            raw.sendall(second)
        raw.close()
        try:
            assert given_up.wait(20)
        finally:
            gate.set()
        assert server.idle()


def test_two_hundred_clients_that_leave_in_mid_stream_leave_nothing_behind(server, client, plain):
    def leaving(count):
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            for raw in pool.map(lambda _: streaming(server, 30), range(count)):
                raw.close()
        assert server.idle(60)

    leaving(30)  # so that pools and caches are as large as they get
    gc.collect()
    process = psutil.Process()
    threads, memory = threading.active_count(), process.memory_info().rss
    sockets, figures = process.num_fds(), server.engine.models["tiny"].figures
    before = figures.state()["tokens"]
    leaving(200)
    assert figures.state()["tokens"] - before < 200 * 30  # they did leave in mid-stream
    gc.collect()
    kept = [one for one in gc.get_objects() if type(one) in (KVCache, Response, Conversation)]
    assert len(kept) < 20  # what other tests hold, at most; of 200 answers nothing
    answer = client.chat.completions.create(**CHAT, max_tokens=20)
    assert answer.choices[0].message.content == plain(CHAT["messages"], 20)
    assert threading.active_count() <= threads + 1
    assert process.num_fds() <= sockets + 3
    assert process.memory_info().rss - memory < 40 * MEBIBYTE


def test_who_finds_no_place_is_told_when_to_come_again(serving, endless, gate):
    limits = Limits(active=1, waiting=1)
    with serving({"tiny": endless}, limits) as server, server.client() as client:
        held = [asked(server, max_tokens=300) for _ in range(2)]
        deadline = time.monotonic() + 30
        while server.engine.load != Load(1, 1) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.engine.load == Load(1, 1)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(**CHAT)
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        assert client.models.list().data  # only answers need a place
        gate.set()
        for raw in held:
            raw.close()
        assert server.idle()
        assert client.chat.completions.create(**CHAT, max_tokens=3).choices


def test_an_answer_that_takes_too_long_ends_as_it_stands(serving, endless, plain, monkeypatch):
    looks = itertools.count(1)

    def monotonic():  # with each step half a minute goes by
        return time.monotonic() + 30 * next(looks)

    monkeypatch.setattr(response, "time", SimpleNamespace(monotonic=monotonic))
    with (
        serving({"tiny": endless}, Limits(seconds=600.0)) as server,
        server.client() as client,
    ):
        answer = client.chat.completions.create(**CHAT, max_tokens=300)
    choice, tokens = answer.choices[0], answer.usage.completion_tokens
    assert choice.finish_reason == "length"
    assert 1 <= tokens <= 20
    assert choice.message.content == plain(CHAT["messages"], tokens, eos_token_id=None)


def test_a_stopped_server_finishes_what_runs_and_refuses_what_waits(
    serving, byte_model, drafting_swift, plain
):
    begun, may_go_on = threading.Event(), threading.Event()

    def held(*_) -> None:
        begun.set()
        assert may_go_on.wait(60)

    model = copy.deepcopy(byte_model)
    with (
        serving({"tiny": drafting_swift(model=model)}, Limits(active=1, waiting=5)) as server,
        server.client() as client,
        concurrent.futures.ThreadPoolExecutor(2) as pool,
    ):
        model.register_forward_pre_hook(held)
        request = {**CHAT, "max_tokens": 150}
        running = pool.submit(client.chat.completions.create, **request)
        assert begun.wait(60)
        waiting = pool.submit(client.chat.completions.create, **request)
        deadline = time.monotonic() + 60
        while not server.engine.load.waiting and time.monotonic() < deadline:
            time.sleep(0.005)
        server.stop()
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            waiting.result(timeout=60)
        may_go_on.set()
        said = running.result(timeout=60).choices[0].message.content
    assert said == plain(CHAT["messages"], 150)


def test_answers_longer_than_the_grace_end_with_an_error_that_clients_understand(
    serving, drafting_swift, byte_model
):
    model = copy.deepcopy(byte_model)
    model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    model.generation_config.eos_token_id = None
    request = {**CHAT, "max_tokens": 3500}
    with (
        serving({"tiny": drafting_swift(model=model)}, Limits(active=2, grace=1.0)) as server,
        server.client() as client,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        whole = pool.submit(client.chat.completions.create, **request)
        streamed = client.chat.completions.create(**request, stream=True)
        next(streamed)
        deadline = time.monotonic() + 60
        while server.engine.load.active < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        server.stop()
        with pytest.raises(openai.APIError, match="shut down"):
            for _ in streamed:
                pass
        with pytest.raises(openai.InternalServerError, match="shut down") as error:
            whole.result(timeout=60)
    assert error.value.status_code == 503


def test_a_client_that_leaves_while_its_prompt_waits_to_be_read_is_forgotten(
    serving, drafting_swift, monkeypatch
):
    read, let_in, begun, left, may_go_on = [], [], *(threading.Event() for _ in range(3))
    encoded, parsing = desk._encoded, desk.Desk.parse

    def held(served, ask):
        read.append(ask)
        begun.set()
        assert may_go_on.wait(60)
        return encoded(served, ask)

    async def noted(self, kind, body, client, *others):
        let_in.append(client)
        try:
            return await parsing(self, kind, body, client, *others)
        except asyncio.CancelledError:
            left.set()
            raise

    monkeypatch.setattr(desk, "_encoded", held)
    monkeypatch.setattr(desk.Desk, "parse", noted)
    with serving({"tiny": drafting_swift()}, Limits(active=1, waiting=5)) as server:
        first = asked(server, max_tokens=3)
        assert begun.wait(60)
        second = asked(server, max_tokens=3)
        deadline = time.monotonic() + 30
        while len(let_in) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        second.close()  # it waits for the one thread that reads
        assert left.wait(60)
        may_go_on.set()
        assert first.recv(1)
        first.close()
        assert server.idle()
    assert len(read) == 1


def test_metrics_count_what_happened(server, client):
    client.chat.completions.create(**CHAT, max_tokens=20)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['swift_sd_tokens_total{model="tiny"}']) >= 20
    assert float(values['swift_sd_accepted_tokens_total{model="tiny"}']) > 0
    assert float(values['swift_sd_skipped_sublayers{kind="attention",model="tiny"}']) == 1
    count = 'swift_sd_request_seconds_count{path="/v1/chat/completions",status="200"}'
    assert float(values[count]) >= 1
