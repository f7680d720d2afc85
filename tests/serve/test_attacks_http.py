"""Attacks by HTTP alone, run against a server: it refuses or forgets them, and goes on."""

import asyncio
import concurrent.futures
import contextlib
import gc
import http.client
import json
import socket
import threading
import time
import tracemalloc

import pytest

from swift_sd.serve import bodies, desk
from swift_sd.serve.clients import client_of
from swift_sd.serve.connections import LARGEST
from swift_sd.serve.engine import Engine, Load
from swift_sd.serve.failures import ApiError
from swift_sd.serve.hosts import known_hosts
from swift_sd.serve.limits import Limits
from swift_sd.serve.reader import SHORT, Reader
from swift_sd.serve.requests import Chat
from swift_sd.serve.served import Served, longest_token

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
PATH = "/v1/chat/completions"
MEBIBYTE = 2**20


def connected(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def post(server, body, headers=None, path=PATH):
    """Status and parsed body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        given = {"Content-Type": "application/json", **(headers or {})}
        connection.request("POST", path, body, given)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def health(server, host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("GET", "/health", headers={"Host": host} if host else {})
        return connection.getresponse().status
    finally:
        connection.close()


def started(body, **headers):
    """A request whose body is `body`, or the beginning of one."""
    given = {"Host": "localhost", "Content-Type": "application/json", **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    return f"POST {PATH} HTTP/1.1\r\n{lines}\r\n{body}".encode()


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def rest(raw):
    """What else comes until the server ends the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := raw.recv(MEBIBYTE):
            parts.append(part)
    return b"".join(parts)


HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"a: " + b"x" * 8 * MEBIBYTE,
        HEAD + b"a:" + b"x" * LARGEST + b"\r\n\r\n",  # all there at once
        HEAD + b"".join(b"a%d: b\r\n" % n for n in range(20_000)),
        b"GET /" + b"x" * 8 * MEBIBYTE,
    ],
    ids=["one header", "complete", "many headers", "path"],
)
def test_headers_beyond_64_kib_are_refused_with_431(server, sent):
    with connected(server) as raw:
        raw.sendall(HEAD + b"\r\n")  # one before that is as it should be
        answer = b""
        while not answer.endswith(b"}"):
            answer += raw.recv(1000)
        raw.sendall(sent)
        assert health(server) == 200
        head, _, body = rest(raw).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert b"connection: close" in head
    assert str(LARGEST) in json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    "sent",
    [
        b"1;" + b"x" * 4 * LARGEST + b"\r\na\r\n",
        b"0\r\n" + b"a: b\r\n" * LARGEST,
        b"1\r\nx\r\n" * 20_000,
    ],
    ids=["chunk extension", "trailers", "chunks of a byte"],
)
def test_what_comes_with_a_chunked_body_is_bounded_as_headers_are(server, sent):
    with connected(server) as raw:
        raw.sendall(started("", Transfer_Encoding="chunked"))
        with contextlib.suppress(ConnectionError):
            raw.sendall(sent)
        assert rest(raw) == b""  # ended, though the request was not over
    assert health(server) == 200


def test_requests_sent_before_the_first_is_answered_are_bounded(server):
    with connected(server) as raw:
        raw.sendall((HEAD + b"\r\n") * 3)
        answers = b""
        while answers.count(b" 200 ") < 3:
            answers += raw.recv(1000)
    with connected(server) as raw:
        raw.sendall((HEAD + b"\r\n") * 5000)
        assert rest(raw).count(b" 200 ") < 1000
    assert health(server) == 200


def test_a_body_in_chunks_of_a_byte_is_read(server):
    body = json.dumps({**CHAT, "max_tokens": 1, "user": "x" * 1000}).encode()
    with connected(server) as raw:
        raw.sendall(started("", Transfer_Encoding="chunked", Connection="close"))
        pieces = [body[n : n + 1] for n in range(len(body))]
        raw.sendall(b"".join(b"1\r\n%s\r\n" % one for one in pieces) + b"0\r\n\r\n")
        assert b" 200 " in rest(raw)[:20]


def with_fields(fields):
    return (json.dumps(CHAT)[:-1] + "," + fields + "}").encode()


KINDS_OF_BODIES = {
    "unknown keys": with_fields(",".join(f'"k{n:06}":1' for n in range(20_000))),
    "keys within a message": with_fields(
        '"messages":[{' + ",".join(f'"k{n:06}":1' for n in range(20_000)) + "}]"
    ),
    "one key again and again": with_fields(",".join(['"k":1'] * 40_000)),
    "values": with_fields('"metadata":{"a":[' + ",".join(["[]"] * 60_000) + "]}"),
    "levels": with_fields('"a":' + "[" * 80 + "]" * 80),
    "levels that do not end": b'{"a":' * 50_000,
    "digits": with_fields('"max_tokens":' + "1" * 5000),
    "many numbers of digits": with_fields('"stop":[' + ",".join(["9" * 4000] * 50) + "]"),
    "strings only": b'""' * 100_000,
    "a string of escapes that does not end": b'"' + b'\\"' * 100_000,
}


@pytest.mark.parametrize("body", KINDS_OF_BODIES.values(), ids=KINDS_OF_BODIES)
def test_bodies_that_take_long_to_parse_are_refused_off_the_event_loop(server, monkeypatch, body):
    begun, may_go_on, parsed = threading.Event(), threading.Event(), bodies.parsed

    def held(*arguments):
        begun.set()
        assert may_go_on.wait(60)
        return parsed(*arguments)

    monkeypatch.setattr(bodies, "parsed", held)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        attack = pool.submit(post, server, body)
        assert begun.wait(60)
        assert health(server) == 200  # while it is being parsed
        assert not attack.done()
        may_go_on.set()
        status, answer = attack.result(timeout=60)
    assert status == 400
    assert answer["error"]["message"]


def test_a_body_is_no_larger_than_the_context_can_hold(server, bytes_tokenizer, byte_model):
    assert longest_token(bytes_tokenizer) == len("<pad>")
    context = byte_model.config.max_position_embeddings
    most = bodies.size_for(server.engine.models.values(), Limits()).bytes
    assert most == bodies.FLOOR + context * len("<pad>")
    assert bodies.size_for(server.engine.models.values(), Limits(body=1000)).bytes == 1000
    content = "x" * (most + 1 - len(json.dumps(CHAT)) + len("Hello"))
    body = json.dumps({**CHAT, "messages": [{"role": "user", "content": content}]})
    assert len(body) == most + 1
    status, answer = post(server, body)
    assert (status, answer["error"]["code"]) == (413, "context_length_exceeded")
    status, answer = post(server, body.replace("xx", "x", 1))
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


def test_long_prompts_do_not_hold_up_short_ones(serving, drafting_swift, monkeypatch):
    begun, may_go_on, encoded = threading.Event(), threading.Event(), desk._encoded

    def held(served, ask):
        if len(ask.messages[0].content) > SHORT:
            begun.set()
            assert may_go_on.wait(60)
        return encoded(served, ask)

    monkeypatch.setattr(desk, "_encoded", held)
    body = json.dumps({**CHAT, "messages": [{"role": "user", "content": "x" * 2 * SHORT}]})
    with (
        serving({"tiny": drafting_swift()}, Limits()) as server,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        attack = [pool.submit(post, server, body) for _ in range(8)]
        assert begun.wait(60)
        assert post(server, json.dumps({**CHAT, "max_tokens": 2}))[0] == 200
        assert not any(one.done() for one in attack)
        may_go_on.set()
        assert {one.result(timeout=60)[0] for one in attack} == {400}


def test_clients_take_turns_at_having_long_prompts_read():
    async def main():
        reader, order, may_go_on = Reader(), [], threading.Event()

        def work(name):
            assert may_go_on.wait(60)
            order.append(name)

        jobs = [
            asyncio.create_task(reader.run(name[0], SHORT + 1, lambda name=name: work(name)))
            for name in ("a1", "a2", "a3", "a4", "b1", "b2", "c1")
        ]
        await asyncio.sleep(0)
        jobs[2].cancel()
        await asyncio.sleep(0)
        may_go_on.set()
        await asyncio.gather(*jobs, return_exceptions=True)
        await reader.run("d", SHORT + 1, lambda: work("d1"))  # it is free again
        reader.close()
        return order

    assert asyncio.run(main()) == ["a1", "a2", "b1", "c1", "a4", "b2", "d1"]


def test_bodies_of_clients_that_left_are_not_kept(serving, drafting_swift, monkeypatch):
    """The thread that reads is busy meanwhile, so that nothing of theirs is ever begun."""
    begun, may_go_on, parsed = threading.Event(), threading.Event(), bodies.parsed

    def held(*arguments):
        begun.set()
        assert may_go_on.wait(60)
        return parsed(*arguments)

    monkeypatch.setattr(bodies, "parsed", held)
    body = json.dumps({**CHAT, "user": "x" * 250_000})
    request = started(body, Content_Length=len(body))
    with serving({"tiny": drafting_swift()}, Limits(active=4, waiting=60)) as server:
        first = connected(server)
        first.sendall(request)
        assert begun.wait(60)
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            gone = [connected(server) for _ in range(60)]
            for raw in gone:
                raw.sendall(request)
            wait_until(lambda: tracemalloc.get_traced_memory()[0] - before > 50 * len(body))
            for raw in gone:
                raw.close()
            wait_until(lambda: tracemalloc.get_traced_memory()[0] - before < 4 * len(body))
        finally:
            tracemalloc.stop()
        assert not may_go_on.is_set()
        may_go_on.set()
        first.close()
        assert post(server, json.dumps({**CHAT, "max_tokens": 2}))[0] == 200


def test_what_was_asked_is_not_kept_while_it_is_answered(serving, drafting_swift, gate):
    body = json.dumps({**CHAT, "ignored": "x" * 250_000, "max_tokens": 30})
    with serving({"tiny": drafting_swift()}, Limits(active=4, waiting=60)) as server:
        gc.collect()
        tracemalloc.start()
        try:
            asking = [connected(server) for _ in range(20)]
            for raw in asking:
                raw.sendall(started(body, Content_Length=len(body)))
            wait_until(lambda: server.engine.load == Load(4, 16))
            wait_until(lambda: tracemalloc.get_traced_memory()[0] < 10 * len(body))
        finally:
            tracemalloc.stop()
        gate.set()
        for raw in asking:
            raw.close()
        assert server.idle()


def test_who_finds_no_place_is_refused_before_the_body_is_read(serving, drafting_swift, gate):
    with serving({"tiny": drafting_swift()}, Limits(active=1, waiting=1)) as server:
        body = json.dumps({**CHAT, "max_tokens": 30})
        held = [connected(server) for _ in range(2)]
        for raw in held:
            raw.sendall(started(body, Content_Length=len(body)))
        wait_until(lambda: server.engine.load == Load(1, 1))
        with connected(server) as raw:
            raw.sendall(started("", Content_Length=100_000))
            assert b" 429 " in raw.recv(1000)
        gate.set()
        for raw in held:
            raw.close()
        assert server.idle()


BODY_BEGUN = started("{", Content_Length=1000)


@pytest.mark.parametrize(
    "sent",
    [b"", HEAD, HEAD + b"\r\n", BODY_BEGUN],
    ids=["nothing", "half a head", "a request that was answered", "half a body"],
)
def test_connections_that_stay_idle_are_ended(serving, drafting_swift, sent):
    with serving({"tiny": drafting_swift()}, Limits(idle=3)) as server:
        silent = []
        for _ in range(10):
            silent.append(connected(server))
            silent[-1].sendall(sent)
        for raw in silent:
            answer = rest(raw)  # until the server ends it
            assert (b" 200 " in answer) == sent.endswith(b"\r\n\r\n")
            assert (b" 408 " in answer) == (sent is BODY_BEGUN)
            raw.close()
        assert health(server) == 200


def test_a_head_that_comes_byte_by_byte_is_not_waited_for(serving, drafting_swift):
    with serving({"tiny": drafting_swift()}, Limits(idle=0.3)) as server, connected(server) as raw:
        raw.sendall(HEAD + b"a: ")
        deadline = time.monotonic() + 60
        with contextlib.suppress(ConnectionError):  # though something comes all the time
            while time.monotonic() < deadline:
                raw.sendall(b"x")
                time.sleep(0.02)
        assert time.monotonic() < deadline


def test_an_answer_may_take_longer_than_a_connection_may_be_idle(serving, drafting_swift, gate):
    body = json.dumps({**CHAT, "max_tokens": 8})
    with serving({"tiny": drafting_swift()}, Limits(idle=3)) as server:
        with connected(server) as raw:
            raw.sendall(started(body, Content_Length=len(body)))
            wait_until(lambda: server.engine.load.active == 1)
            with connected(server) as silent:  # it came later
                assert rest(silent) == b""  # its time was over
            gate.set()
            assert b" 200 " in raw.recv(1000)
        assert server.idle()


def test_silent_connections_make_room_for_new_ones(serving, drafting_swift, monkeypatch):
    monkeypatch.setattr(Limits, "connections", property(lambda self: 8))
    with serving({"tiny": drafting_swift()}, Limits(idle=600)) as server:
        silent = []
        for _ in range(40):
            silent.append(connected(server))
            if len(silent) % 10 == 0:
                assert health(server) == 200
        assert post(server, json.dumps({**CHAT, "max_tokens": 2}))[0] == 200
        assert rest(silent[0]) == b""  # the first to come were the first to go
        silent[-1].setblocking(False)
        with pytest.raises(BlockingIOError):  # it is still there
            silent[-1].recv(1)
        for raw in silent:
            raw.close()


def forwarded(address):
    return {"X-Forwarded-For": address, "Forwarded": f"for={address}", "X-Real-IP": address}


@pytest.mark.parametrize("is_trusted", [False, True])
def test_only_a_trusted_proxy_says_who_its_clients_are(serving, drafting_swift, gate, is_trusted):
    proxies = ("10.0.0.0/8", "127.0.0.1") if is_trusted else ("10.0.0.0/8",)
    limits = Limits(active=1, waiting=1)
    body = json.dumps({**CHAT, "max_tokens": 30})
    with (
        serving({"tiny": drafting_swift()}, limits, trusted_proxies=proxies) as server,
        concurrent.futures.ThreadPoolExecutor(4) as pool,
    ):
        try:
            held = [
                pool.submit(post, server, body, forwarded("192.0.2.1")),
                pool.submit(post, server, body, forwarded("192.0.2.1")),
            ]
            wait_until(lambda: server.engine.load == Load(1, 1))
            same = post(server, body, forwarded("192.0.2.1"))[0]
            other = pool.submit(post, server, body, forwarded("192.0.2.2"))
            # Of two clients the newcomer gets a place beyond those there are.
            known = (Load(1, 2), Load(2, 1))
            wait_until(lambda: other.done() or server.engine.load in known)
            assert same == 429
            assert other.done() != is_trusted
        finally:
            gate.set()
        assert other.result(timeout=60)[0] == (200 if is_trusted else 429)
        assert {one.result(timeout=60)[0] for one in held} == {200}


def test_addresses_put_before_the_proxys_own_word_are_not_believed(serving, drafting_swift):
    """A proxy appends the address it sees to what its client has sent."""
    seen = []

    def noted(scope, *, by_key):
        seen.append(client_of(scope, by_key=by_key))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("swift_sd.serve.app.client_of", noted)
        with serving(
            {"tiny": drafting_swift()}, Limits(), trusted_proxies=("127.0.0.1",)
        ) as server:
            post(server, b"{}", {"X-Forwarded-For": "203.0.113.9, 192.0.2.7"})
    assert seen == ["address 192.0.2.7"]


@pytest.mark.parametrize(
    ("host", "allowed", "known", "unknown"),
    [
        (
            "127.0.0.1",
            (),
            (
                "localhost",
                "localhost:80",
                "127.0.0.1",
                "127.0.0.1:8000",
                "[::1]:8000",
                "LocalHost.",
            ),
            (
                "evil.example",
                "evil.example:8000",
                "10.0.0.1",
                "localhost.evil.example",
                "[::2",
                "@",
            ),
        ),
        (
            "127.0.0.1",
            ("llm.example", "*.internal"),
            ("llm.example", "a.internal:80", "localhost"),
            ("evil.example", "evilinternal", "xllm.example"),
        ),
        ("0.0.0.0", (), ("10.0.0.1:8000", "[2001:db8::1]", "localhost"), ("evil.example",)),
        ("127.0.0.1", ("*",), ("evil.example",), ()),
    ],
)
def test_only_hosts_that_the_server_is_known_as_are_answered(
    serving, drafting_swift, host, allowed, known, unknown
):
    hosts = known_hosts(host, allowed, has_keys=False)
    with serving({"tiny": drafting_swift()}, Limits(), hosts=hosts) as server:
        assert {name: health(server, name) for name in known} == dict.fromkeys(known, 200)
        assert {name: health(server, name) for name in unknown} == dict.fromkeys(unknown, 421)
        for name in unknown[:1]:
            status, answer = post(server, json.dumps(CHAT), {"Host": name})
            assert status == 421
            assert "--allowed-host" in answer["error"]["message"]


def test_names_do_not_matter_where_keys_are_asked_for_on_a_network():
    assert known_hosts("0.0.0.0", (), has_keys=True) is None
    assert known_hosts("127.0.0.1", (), has_keys=True) is not None
    assert known_hosts("0.0.0.0", ("llm.example",), has_keys=True) is not None


def test_a_large_body_without_a_key_is_neither_read_nor_waited_for(serving, drafting_swift):
    with (
        serving({"tiny": drafting_swift()}, Limits(), api_keys=("secret",)) as server,
        connected(server) as raw,
    ):
        raw.sendall(started("", Content_Length=10**9))
        assert b" 401 " in raw.recv(1000)
        piece = b"x" * MEBIBYTE
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(32):  # more than the system's buffers hold
                raw.sendall(piece)  # is forgotten
            assert health(server) == 200
            assert tracemalloc.get_traced_memory()[0] - before < 4 * MEBIBYTE
        finally:
            tracemalloc.stop()


def test_what_waits_to_be_read_is_given_up_at_its_deadline(drafting_swift):
    served = Served("tiny", drafting_swift())

    async def main():
        asking = desk.Desk(Engine([served], 1), Limits(seconds=600))
        may_go_on = threading.Event()
        first = asyncio.create_task(asking._reader.run("a", 1, lambda: may_go_on.wait(60)))
        await asyncio.sleep(0)
        try:
            with pytest.raises(ApiError, match="waited too long") as refusal:
                await asking.parse(Chat, json.dumps(CHAT).encode(), "b", time.monotonic())
            assert refusal.value.status == 503
        finally:
            may_go_on.set()
        await first
        asking.close()

    asyncio.run(main())


def test_models_that_could_not_be_loaded_are_no_404():
    engine = Engine([], 1)
    with pytest.raises(ApiError) as refusal:
        desk.Desk(engine, Limits()).model("tiny")
    assert refusal.value.status == 503
    assert engine.models == {}
