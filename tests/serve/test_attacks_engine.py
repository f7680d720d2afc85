"""What clients do to each other, and what hangs: who is served when, and what the server says."""

from __future__ import annotations

import gc
import http.client
import json
import threading
import time
import weakref
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import pytest

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.adapting.governor import Governor, Purse
from swift_sd.decoding.trace import Step
from swift_sd.drafting.growth import CostGrowth
from swift_sd.serve.companions import Loaded
from swift_sd.serve.engine import SILENCE, Engine, Refused
from swift_sd.serve.figures import Figures
from swift_sd.serve.jobs import End, Failure, Job
from swift_sd.serve.limits import Limits
from swift_sd.serve.metrics import Metrics
from swift_sd.serve.response import Response
from swift_sd.serve.served import Served
from swift_sd.serve.server import listen, make_server


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Script:
    """Stands in for a model: one token a step, which takes as long as is said."""

    def __init__(self, tokenizer, clock: Clock, seconds: dict[str, float] | None = None) -> None:
        self.name = "tiny"
        self.leader = None
        self.figures = Figures(LayerSet.none(4))
        self.swift = SimpleNamespace(layer_set=LayerSet.none(4))
        self.steps: list[str] = []  # whose they were
        self.most_open = self.open = 0
        self._tokenizer, self._clock, self._seconds = tokenizer, clock, seconds or {}
        self.before: Callable[[str], None] = lambda client: None  # each step

    def begin(self, job: Job) -> Response:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        return Response(job, Scripted(self, job), self._tokenizer, frozenset())

    def step(self, client: str) -> Step:
        self.before(client)
        self.steps.append(client)
        self._clock.now += self._seconds.get(client, 1.0)
        return Step((68,))


class Scripted:
    def __init__(self, script: Script, job: Job) -> None:
        self._script, self._job = script, job

    def next(self) -> Step | None:
        return self._script.step(self._job.client)

    def close(self) -> None:
        self._script.open -= 1


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def script(bytes_tokenizer, clock):
    return Script(bytes_tokenizer, clock)


class Prompt:
    """Of so many tokens."""

    def __init__(self, tokens: int) -> None:
        self.shape = (1, tokens)


def job(client: str, tokens: int, prompt: int = 3) -> Job:
    inputs = {"input_ids": Prompt(prompt)}
    return Job("tiny", client, inputs, {"max_new_tokens": tokens}, deadline=float("inf"))


def answered(engine: Engine, *jobs: Job) -> list[str]:
    """Run until all are answered; clients in the order of their ends."""
    ends, left = [], threading.Semaphore(0)

    def told(one: Job):
        deliver = one.deliver

        def hear(event):
            deliver(event)
            if isinstance(event, End | Failure):
                ends.append(one.client)
                left.release()

        return hear

    for one in jobs:
        one.deliver = told(one)
        engine._waiting.put(one)
    engine.start()
    for _ in jobs:
        assert left.acquire(timeout=60)
    engine.close(60)
    assert engine.failure is None
    return ends


# --- turns ------------------------------------------------------------------------------------


@pytest.mark.parametrize("owners", ["ab", "aa"], ids=["of two clients", "of one client"])
def test_a_third_client_does_not_wait_for_two_long_answers(script, clock, owners):
    engine = Engine([script], 2, clock=clock)
    late, ended = job("c", 5), threading.Event()
    late.deliver = lambda event: ended.set() if isinstance(event, End) else None
    came = []

    def arrives(client: str) -> None:
        if len(script.steps) == 20:
            came.append(len(script.steps))
            engine.submit(late)

    script.before = arrives
    assert set(answered(engine, *(job(owner, 200) for owner in owners))) == set(owners)
    assert ended.is_set()
    assert came == [20]
    first = script.steps.index("c")
    assert first == 21  # after the step in which it came
    assert script.steps[first : first + 3 * 5].count("c") == 5


def test_a_client_with_many_answers_gets_as_much_time_as_one_with_a_single(script, clock):
    engine = Engine([script], 4, clock=clock)
    jobs = [*(job("many", 100) for _ in range(8)), job("one", 100)]
    ends = answered(engine, *jobs)
    until = len(script.steps) - script.steps[::-1].index("one")
    assert abs(script.steps[:until].count("many") - 100) <= 2
    assert ends.index("one") <= 2


def test_steps_that_take_long_count_for_what_they_take(bytes_tokenizer, clock):
    """A client that has long prompts read, one after the other, delays another one by one each."""
    script = Script(bytes_tokenizer, clock, {"prompts": 50.0})
    engine = Engine([script], 2, clock=clock)
    answered(engine, *(job("prompts", 1, prompt=2000) for _ in range(8)), job("one", 100))
    places = [place for place, client in enumerate(script.steps) if client == "prompts"]
    between = [after - before for before, after in pairwise(places)]
    assert between[:2] == [51, 51]  # until the other one is done


def test_answers_of_one_client_begin_in_their_order_and_take_turns(script, clock):
    engine = Engine([script], 2, clock=clock)
    jobs = [job("a", 10) for _ in range(4)]
    begun = []
    for number, one in enumerate(jobs):
        one.deliver = lambda event, number=number: begun.append(number)
    answered(engine, *jobs)
    assert begun[:6] == [0, 1, 0, 1, 0, 1]
    firsts = [begun.index(number) for number in range(4)]
    assert firsts == sorted(firsts)


def test_there_are_only_so_many_answers_in_progress(script, clock):
    engine = Engine([script], 2, clock=clock)
    answered(engine, *(job(client, 20) for client in "aaaaaa"))
    assert script.most_open == 2
    script.most_open = 0
    engine = Engine([script], 2, clock=clock)
    answered(engine, *(job(client, 20) for client in "aabbccddeeff"))
    assert script.most_open == 4


def test_whose_client_leaves_is_closed_before_the_next_step(script, clock):
    engine = Engine([script], 4, clock=clock)
    left = job("a", 100)
    left.deliver = lambda event: engine.cancel(left)
    other = job("b", 10)
    ended = threading.Event()
    other.deliver = lambda event: ended.set() if isinstance(event, End) else None
    for one in (left, other):
        engine._waiting.put(one)
    engine.start()
    assert ended.wait(60)
    engine.close(60)
    assert script.steps == ["a", *"b" * 10]
    assert script.open == 0


# --- what hangs -------------------------------------------------------------------------------


@pytest.fixture
def hanging(script):
    """A step that goes on until `release` is set, and says when it has `begun`."""
    hold = SimpleNamespace(begun=threading.Event(), release=threading.Event())

    def hangs(client: str) -> None:
        hold.begun.set()
        assert hold.release.wait(60)

    script.before = hangs
    yield hold
    hold.release.set()


def test_of_a_request_whose_client_left_nothing_is_kept(script, hanging):
    """While a step of another one hangs."""
    engine = Engine([script], 1)
    engine.start()
    engine.submit(job("a", 1))
    assert hanging.begun.wait(60)
    left = job("b", 1)
    prompt = weakref.ref(left.inputs["input_ids"])
    engine.submit(left)
    assert engine.load.waiting == 1
    engine.cancel(left)
    del left
    gc.collect()
    assert prompt() is None
    assert engine.load.waiting == 0
    hanging.release.set()
    engine.close(60)
    assert script.steps == ["a"]


@pytest.mark.parametrize(("prompt", "patience"), [(10, SILENCE), (2500, 3 * SILENCE)])
def test_a_step_that_hangs_is_told(script, clock, hanging, prompt, patience):
    """Where a long prompt is read, it may take so much longer."""
    engine, ended = Engine([script], 2, clock=clock), threading.Event()
    engine.start()
    assert engine.health == "ok"
    one = job("a", 1, prompt)
    one.deliver = lambda event: ended.set()
    engine.submit(one)
    assert hanging.begun.wait(60)
    clock.now += patience - 1
    assert engine.health == "ok"
    clock.now += 2
    assert engine.health == "stalled"
    hanging.release.set()
    assert ended.wait(60)
    engine.close(60)
    assert engine.health == "stopping"


def test_an_engine_with_nothing_to_do_is_not_stalled(script, clock):
    engine = Engine([script], 2, clock=clock)
    engine.start()
    clock.now += 10 * SILENCE
    assert engine.health == "ok"
    engine.close(60)


# --- the server -------------------------------------------------------------------------------


class Server:
    """An engine behind HTTP, in this process."""

    def __init__(self, engine: Engine, **options) -> None:
        self.engine = engine
        self._server = make_server(engine, Metrics(), Limits(), log_level="error", **options)
        self._listener = listen("127.0.0.1", 0, 60)
        arguments = {"sockets": [self._listener]}
        self._thread = threading.Thread(target=self._server.run, kwargs=arguments)

    def __enter__(self) -> Server:
        self._thread.start()
        deadline = time.monotonic() + 60
        while not self._server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        return self

    def __exit__(self, *error) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)
        self._listener.close()
        assert not self._thread.is_alive()

    def ask(self, path: str, body=None, key: str = "none") -> tuple[int, dict]:
        link = http.client.HTTPConnection(*self._listener.getsockname(), timeout=60)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        method = "GET" if body is None else "POST"
        link.request(method, path, body and json.dumps(body), headers)
        answer = link.getresponse()
        told = answer.status, json.loads(answer.read() or "{}")
        link.close()
        return told


def test_the_health_of_a_server_whose_step_hangs_is_bad(script, clock, hanging):
    with Server(Engine([script], 2, clock=clock)) as server:
        assert server.ask("/health") == (200, {"status": "ok", "active": 0, "waiting": 0})
        server.engine.submit(job("a", 1))
        assert hanging.begun.wait(60)
        clock.now += SILENCE + 1
        assert server.ask("/health") == (503, {"status": "stalled", "active": 1, "waiting": 0})
        hanging.release.set()


@pytest.fixture
def loading(script, clock):
    """An engine whose models are there once `release` is set."""
    release = threading.Event()

    def load() -> Loaded:
        assert release.wait(60)
        return Loaded([script])

    engine = Engine([], 2, load=load, clock=clock)
    yield SimpleNamespace(engine=engine, release=release)
    release.set()


def test_a_server_listens_while_its_models_load(loading):
    with Server(loading.engine) as server:
        status, told = server.ask("/health")
        assert (status, told["status"]) == (503, "loading")
        question = {"model": "tiny", "prompt": "abc"}
        for path, body in (("/v1/models", None), ("/status", None), ("/v1/completions", question)):
            status, told = server.ask(path, body)
            assert status == 503
            assert "loaded" in told["error"]["message"]
        with pytest.raises(Refused, match="loaded"):
            loading.engine.submit(job("a", 1))
        loading.release.set()
        deadline = time.monotonic() + 60
        while (told := server.ask("/health"))[0] == 503 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert told == (200, {"status": "ok", "active": 0, "waiting": 0})
        assert server.ask("/v1/models")[1]["data"][0]["id"] == "tiny"


def test_a_server_stops_without_waiting_for_its_models(loading):
    with Server(loading.engine) as server:
        assert server.ask("/health")[0] == 503
        server.stop()  # which waits for all threads but the one that loads
        assert loading.engine.is_loading
        assert loading.engine.health == "stopping"


def test_models_that_cannot_be_loaded_end_the_engine():
    def load() -> Loaded:
        raise OSError("no such file")

    ended = threading.Event()
    engine = Engine([], 2, load=load)
    engine.on_end = ended.set
    engine.start()
    assert ended.wait(60)
    assert isinstance(engine.failure, OSError)
    assert not engine.is_loading


# --- what one client's texts tell another ------------------------------------------------------


@pytest.mark.parametrize("keys", [("one", "two"), ()], ids=["with keys", "without"])
def test_what_one_key_asked_is_not_remembered_for_another(
    byte_model, bytes_tokenizer, monkeypatch, keys
):
    """Drafts are proposed whenever there is something to propose, so that they tell of it."""
    monkeypatch.setattr(CostGrowth, "pruned", lambda self, tree, **_: tree)
    monkeypatch.setattr(Governor, "_choice", lambda self, promises: 0)
    monkeypatch.setattr(Governor, "_is_plain_due", False)
    monkeypatch.setattr(Purse, "may_ask", True)
    swift = Swift(byte_model, bytes_tokenizer, SwiftConfig(drafters=("recycling",)))
    asked = {"model": "tiny", "prompt": "abc def", "max_tokens": 3, "temperature": 0}
    with Server(Engine([Served("tiny", swift)], 2), api_keys=keys) as server:
        drafted = []
        for key in ("one", "one", "two"):
            status, told = server.ask("/v1/completions", asked, key)
            assert status == 200
            drafted.append(told["usage"]["drafted_tokens"])
    first, again, other = drafted
    assert first == 0 < again
    assert (other == 0) == bool(keys)
