"""Attacks on `swift-sd serve`, and what its other clients notice of them.

    .venv/bin/python benchmarks/attacks.py --out benchmarks/results/attacks.json

For each attack a server with the default model is started and asked by an honest client, then
attacked from another process, while /health is asked all the time and the honest client goes on.
Wanted: /health within 100 ms (median) and 500 ms (worst), at most 200 MiB more memory, and the
honest client served within 3 times its usual time. To add an attack, write a function that makes
one wave of it, and name it in ATTACKS.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

MEBIBYTE = 2**20
LARGE = int(3.9 * MEBIBYTE)
READ = 900_000  # bytes; as large as a body for this model may be
PATIENCE = 120.0  # seconds
WANTED = {"health_median_ms": 100, "health_worst_ms": 500, "memory_mib": 200, "slower": 3.0}


@dataclass(frozen=True)
class Target:
    port: int
    key: str | None = None
    source: str = "127.0.0.1"  # an address of this machine; other clients come from another

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE, (self.source, 0))

    def headers(self, **more: str) -> dict[str, str]:
        key = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return {"Content-Type": "application/json", **key, **more}

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> int:
        """The status of an answer that was read to its end; 0 for none."""
        made = http.client.HTTPConnection("127.0.0.1", self.port, PATIENCE, (self.source, 0))
        try:
            made.request(method, path, body, self.headers(**headers))
            answer = made.getresponse()
            answer.read()
            return answer.status
        except OSError:
            return 0
        finally:
            made.close()

    def head(self, **more: str) -> bytes:
        given = self.headers(Host="localhost", **more)
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        return f"POST {CHATS} HTTP/1.1\r\n{lines}\r\n".encode()

    def send(self, body: bytes, missing: int = 0) -> socket.socket:
        """A connection on which something was asked, `missing` bytes left, and nothing is read."""
        raw = self.connect()
        with contextlib.suppress(OSError):
            raw.sendall(self.head(**{"Content-Length": str(len(body) + missing)}) + body)
        return raw


CHATS = "/v1/chat/completions"
Attack = Callable[[Target], Counter[int]]


def chat(content: str = "Why is the sky blue?", **fields: object) -> bytes:
    messages = [{"role": "user", "content": content}]
    body = {"model": "smollm2-135m", "messages": messages, "temperature": 0, **fields}
    return json.dumps(body, separators=(",", ":")).encode()


def keys(count: int) -> dict[str, int]:
    return {f"{n:x}": 1 for n in range(count)}


def words(size: int) -> str:
    return "hello world " * (size // 12)


def together(count: int, work: Callable[[int], int]) -> Counter[int]:
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(work, range(count)))


def nothing(_: Target) -> Counter[int]:
    time.sleep(1)
    return Counter()


def huge_header(target: Target) -> Counter[int]:
    """One header of 100 MB, without a key."""
    with target.connect() as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\na: ")
        try:
            for _ in range(100):
                raw.sendall(b"x" * 1_000_000)
            return Counter([int(raw.recv(100).split()[1])])
        except (OSError, IndexError):
            return Counter([0])


def tiny_chunks(target: Target) -> Counter[int]:
    """Eight bodies of 1 MB in chunks of a byte."""

    def one(_: int) -> int:
        with target.connect() as raw:
            try:
                raw.sendall(target.head(**{"Transfer-Encoding": "chunked"}))
                raw.sendall(b"1\r\nx\r\n" * 1_000_000 + b"0\r\n\r\n")
                return int(raw.recv(100).split()[1])
            except (OSError, IndexError):
                return 0

    return together(8, one)


def asking(count: int, body: Callable[[], bytes], **headers: str) -> Attack:
    """The same request, `count` times at once."""

    def attack(target: Target) -> Counter[int]:
        made = body()
        return together(count, lambda _: target.ask("POST", CHATS, made, **headers))

    return attack


def sent_and_left(target: Target) -> Counter[int]:
    """200 large requests, and 200 that are just read; their clients leave as soon as they sent."""

    def one(_: int) -> int:
        for n in range(20):
            target.send(bodies[n % 2]).close()
        return 0

    bodies = [chat(words(size)) for size in (LARGE, READ)]
    return together(20, one)


def silent_connections(target: Target, body: bytes | None = None) -> Counter[int]:
    """530 connections that say nothing, or not all of `body`, for 30 seconds."""
    silent = [target.connect() if body is None else target.send(body, 1) for _ in range(530)]
    time.sleep(30)
    for raw in silent:
        raw.close()
    return Counter({0: 530})


def slow_bodies(target: Target) -> Counter[int]:
    """530 requests whose bodies do not all come."""
    return silent_connections(target, chat())


def forged_addresses(target: Target) -> Counter[int]:
    """200 long answers at a time, each asked for from another address, as it says."""

    body = chat("Tell me a long story.", max_tokens=300)

    return together(
        200, lambda n: target.ask("POST", CHATS, body, **{"X-Forwarded-For": f"192.0.2.{n}"})
    )


# name: (one wave of it, whether the server asks for keys, whether the attacker has one)
ATTACKS: dict[str, tuple[Attack, bool, bool]] = {
    "nothing": (nothing, True, False),
    "header of 100 MB": (huge_header, True, False),
    "chunks of a byte": (tiny_chunks, True, True),
    "400,000 unknown keys": (asking(4, lambda: chat(**keys(400_000))), True, True),
    "as many keys as fit": (asking(8, lambda: chat(**keys(8_000))), True, True),
    "prompts of 3.9 MiB": (asking(8, lambda: chat(words(LARGE))), True, True),
    "prompts just read": (asking(8, lambda: chat(words(READ))), True, True),
    "sent and left": (sent_and_left, True, True),
    "530 silent connections": (silent_connections, True, False),
    "530 slow bodies": (slow_bodies, True, True),
    "forged X-Forwarded-For": (forged_addresses, False, False),
    "other Host": (asking(8, lambda: chat(max_tokens=8), Host="evil.example"), False, False),
    "two long answers": (asking(2, lambda: chat("Tell me a story.", max_tokens=2000)), True, True),
}


@contextlib.contextmanager
def serving(has_keys: bool, source: str | None) -> Iterator[tuple[int, psutil.Process]]:
    environment = {name: value for name, value in os.environ.items() if "API_KEY" not in name}
    if has_keys:
        environment["SWIFT_SD_API_KEY"] = "honest other"
    if source is not None:
        environment["PYTHONPATH"] = source
    command = [sys.executable, "-m", "swift_sd", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            told = next(line for line in process.stderr if " at http://" in line)
            threading.Thread(target=process.stderr.read, daemon=True).start()  # or it would block
            target = Target(int(told.rsplit(":", 1)[1]))
            while target.ask("GET", "/health") != 200:
                time.sleep(0.1)
            yield target.port, psutil.Process(process.pid)
        finally:
            process.kill()


def waves(attack: Attack, target: Target, statuses, seconds) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        statuses.put(attack(target))


def honest_seconds(target: Target) -> float:
    begin = time.monotonic()
    while target.ask("POST", CHATS, chat(max_tokens=32)) != 200:  # as clients do, try again
        if time.monotonic() - begin > PATIENCE:
            break
    return time.monotonic() - begin


def measured(name: str, seconds: float, source: str | None) -> dict[str, object]:
    attack, has_keys, knows_key = ATTACKS[name]
    with serving(has_keys, source) as (port, server):
        honest = Target(port, "honest" if has_keys else None, "127.0.0.2")
        usual = statistics.median([honest_seconds(honest) for _ in range(6)][1:])
        before = peak = server.memory_info().rss
        statuses = multiprocessing.Queue()
        target = Target(port, "other" if knows_key else None)
        attacker = multiprocessing.Process(target=waves, args=(attack, target, statuses, seconds))
        attacker.start()
        failed, health = 0, []
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            served: list[float] = []
            asking = pool.submit(honest_seconds, honest)
            end = time.monotonic() + seconds
            while time.monotonic() < end or not served:
                begin = time.monotonic()
                failed += honest.ask("GET", "/health") != 200
                health.append(1000 * (time.monotonic() - begin))
                peak = max(peak, server.memory_info().rss)
                if asking.done():
                    served.append(asking.result())
                    asking = pool.submit(honest_seconds, honest)
                time.sleep(0.02)
            attacker.kill()
            attacker.join()
            asking.result()
        answers: Counter[int] = Counter()
        while not statuses.empty():
            answers += statuses.get()
        return {
            "attack": name,
            "health_median_ms": round(statistics.median(health), 1),
            "health_worst_ms": round(max(health), 1),
            "health_failed": failed,
            "memory_mib": round((peak - before) / MEBIBYTE, 1),
            "honest_usual_s": round(usual, 3),
            "honest_s": round(statistics.median(served), 3),
            "slower": round(statistics.median(served) / usual, 2),
            "statuses": {str(status): count for status, count in sorted(answers.items())},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ATTACKS)}")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each goes on")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--source", help="src of another checkout, to compare with")
    given = parser.parse_args()
    print("| attack | /health median | worst | not 200 | memory | honest client | answers |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    records = []
    for name in given.names or ATTACKS:
        record = measured(name, given.seconds, given.source)
        records.append(record | {"holds": all(record[key] <= WANTED[key] for key in WANTED)})
        print(
            "| {attack} | {health_median_ms} ms | {health_worst_ms} ms | {health_failed} | "
            "+{memory_mib} MiB | × {slower} | {statuses} |".format(**record),
            flush=True,
        )
        if given.out is not None:
            given.out.write_text(json.dumps({"wanted": WANTED, "records": records}, indent=1))


if __name__ == "__main__":
    main()
