"""What happens to answers when something beside them goes wrong."""

import queue
import time
from dataclasses import replace

import pytest
import torch

from swift_sd import Swift
from swift_sd.decoding.trace import Step
from swift_sd.errors import SwiftError
from swift_sd.serve import lockstep
from swift_sd.serve.decoding import Decoding
from swift_sd.serve.engine import Engine, Refused
from swift_sd.serve.failures import as_api_error
from swift_sd.serve.jobs import End, Failure, Job
from swift_sd.serve.lockstep import Leader, Parted
from swift_sd.serve.response import origins
from swift_sd.serve.served import Served


@pytest.fixture
def served(drafting_swift):
    return Served("tiny", drafting_swift())


def asked(served: Served, tokens: int, **options) -> tuple[Job, queue.Queue]:
    events: queue.Queue = queue.Queue()
    arguments = {"max_new_tokens": tokens, "do_sample": False}
    job = Job("tiny", "me", served.swift.encode("abc"), arguments, float("inf"), **options)
    job.deliver = events.put
    return job, events


def last(events: queue.Queue):
    while not isinstance(event := events.get(timeout=60), End | Failure):
        pass
    return event


class Broken:
    def stepped(self, model, step, seconds):
        raise OSError("nobody listens")


class Away:
    def __call__(self):
        raise OSError("the storage is away")

    def finish(self):
        raise OSError("the storage is still away")


def test_an_observer_and_chores_that_fail_cost_no_answer(served, caplog):
    engine = Engine([served], 2, Broken(), Away())
    engine.start()
    for _ in range(2):
        job, events = asked(served, 8)
        engine.submit(job)
        assert isinstance(last(events), End)
    engine.close(60)
    assert "nobody listens" in caplog.text
    assert "the storage is away" in caplog.text
    assert "the storage is still away" in caplog.text
    assert engine.failure is None


def test_when_the_engine_dies_nobody_waits_for_ever(served, monkeypatch, caplog):
    engine, ended = Engine([served], 1), queue.Queue()
    engine.on_end = lambda: ended.put(True)
    jobs = [asked(served, 8) for _ in range(3)]

    def dies(response):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(engine, "_advance", dies)
    for job, _ in jobs:
        engine._waiting.put(job)
    engine.start()
    for _, events in jobs:
        event = last(events)
        assert isinstance(event, Failure)
        assert isinstance(event.error, Refused)
    assert ended.get(timeout=60)
    assert not engine.is_alive
    assert "a fault of ours" in str(engine.failure)
    assert "a fault of ours" in caplog.text
    with pytest.raises(Refused):
        engine.submit(jobs[0][0])


@pytest.fixture
def told(served, monkeypatch):
    """What other processes are told; there are none."""
    orders = []
    monkeypatch.setattr(lockstep, "tell", lambda order: orders.append(order.verb))
    served.leader = Leader()
    return orders


def part(served) -> list[Failure]:
    """What three jobs come to that an engine with two places finds waiting."""
    engine = Engine([served], 2)
    jobs = [asked(served, 8) for _ in range(3)]
    for job, _ in jobs:
        engine._waiting.put(job)
    engine.start()
    failures = [last(events) for _, events in jobs]
    engine.close(60)
    assert isinstance(engine.failure, Parted)
    assert all(events.empty() for _, events in jobs)  # one end each
    return [failure.error for failure in failures]


def test_processes_that_come_apart_in_a_step_end_the_engine(served, told, monkeypatch):
    def exhausted(decoding):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(Decoding, "next", exhausted)
    first, *others = part(served)
    assert "come apart: can't allocate memory" in str(first)
    assert as_api_error(first).status == 503
    assert all(isinstance(error, Refused) for error in others)
    assert told == ["start", "start", "next"]  # another word would never arrive


def test_processes_that_cannot_be_told_end_the_engine(served, told, monkeypatch):
    def broken(order):
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr(lockstep, "tell", broken)
    first, *others = part(served)
    assert "connection closed" in str(first)
    assert all(isinstance(error, Refused) for error in others)


def test_a_gpu_that_computes_nothing_any_more_ends_the_engine(served, monkeypatch):
    """So that its health is bad, and another process takes over."""

    def broken(decoding):
        raise torch.AcceleratorError("device-side assert triggered")

    monkeypatch.setattr(Decoding, "next", broken)
    engine = Engine([served], 2)
    jobs = [asked(served, 8) for _ in range(3)]
    for job, _ in jobs:
        engine._waiting.put(job)
    engine.start()
    first, *others = [last(events).error for _, events in jobs]
    engine.close(60)
    assert "device-side assert" in str(first)
    assert as_api_error(first).status == 500
    assert all(isinstance(error, Refused) for error in others)
    assert isinstance(engine.failure, torch.AcceleratorError)
    assert not engine.is_alive


def test_a_request_that_is_refused_parts_nobody(served, told):
    engine = Engine([served], 2)
    engine.start()
    job, events = asked(served, 8)
    engine.submit(replace(job, arguments={**job.arguments, "num_beams": 2}))
    assert isinstance(last(events).error, SwiftError)
    job, events = asked(served, 4)
    engine.submit(job)
    assert isinstance(last(events), End)
    engine.close(60)
    assert engine.failure is None
    assert told[-1] == "end"


def test_a_cancelled_answer_ends_within_a_step(served):
    engine = Engine([served], 1)
    job, events = asked(served, 200)
    deltas = []

    def deliver(event):
        deltas.append(event)
        engine.cancel(job)  # by the first one

    job.deliver = deliver
    engine.start()
    engine.submit(job)
    other, events = asked(served, 8)
    engine.submit(other)
    assert isinstance(last(events), End)
    engine.close(60)
    assert len(deltas) <= 2
    assert served.figures.state()["tokens"] < 8 + 2 * 5  # a step is of five tokens at most


def test_what_waits_too_long_is_refused_and_what_runs_too_long_ends(served):
    engine = Engine([served], 1)
    late, events = asked(served, 8)
    late.deadline = time.monotonic() - 1
    engine.start()
    engine.submit(late)
    event = last(events)
    assert isinstance(event, Failure)
    assert "waited too long" in str(event.error)

    slow, events = asked(served, 200)
    told = []

    def deliver(event):
        told.append(event)
        slow.deadline = time.monotonic() - 1  # after the first step
        events.put(event)

    slow.deliver = deliver
    engine.submit(slow)
    end = last(events)
    engine.close(60)
    assert end.reason == "length"
    assert 1 <= end.usage.completion <= 5


def test_each_token_says_how_it_came_about():
    step = Step(
        tokens=(10, 11, 12, 13),
        sources=("copying", "layer_skip", "recycling"),
        drafter="layer_skip",
        drafted=5,
        accepted=3,
        accepted_on_chain=2,
    )
    assert list(origins(step)) == ["copying", "layer_skip", "sibling", "bonus"]
    assert list(origins(Step(tokens=(10,)))) == ["plain"]


def test_no_more_is_counted_as_accepted_than_was_said(served, byte_model, bytes_tokenizer):
    whole = Served("tiny", Swift(byte_model, bytes_tokenizer))
    engine = Engine([served], 1)
    engine.start()
    ids = whole.swift.generate(**whole.swift.encode("abc"), do_sample=False, max_new_tokens=30)
    said = bytes_tokenizer.decode(ids[0, 3:], skip_special_tokens=True)
    for place in range(1, 12):
        job, events = asked(served, 30, stop=(said[place : place + 2],))
        engine.submit(job)
        usage = last(events).usage
        assert usage.accepted <= usage.completion
    engine.close(60)
