from contextlib import ExitStack

import pytest

from swift_sd.serve.failures import ApiError
from swift_sd.serve.gate import Gate
from swift_sd.serve.jobs import Job
from swift_sd.serve.waiting import Waiting


def job(client: str) -> Job:
    return Job("tiny", client, {}, {}, deadline=0.0)


def order(waiting: Waiting) -> list[str]:
    return [waiting.take().client for _ in range(len(waiting))]


def test_one_client_is_served_in_order():
    waiting, jobs = Waiting(), [job("a") for _ in range(3)]
    for one in jobs:
        waiting.put(one)
    assert [waiting.take() for _ in jobs] == jobs


def test_clients_take_turns():
    waiting = Waiting()
    for client in "aaaaabbc":
        waiting.put(job(client))
    assert "".join(order(waiting)) == "abcabaaa"


def test_a_late_client_comes_before_the_rest_of_an_earlier_one():
    waiting = Waiting()
    for _ in range(3):
        waiting.put(job("a"))
    waiting.take()
    waiting.put(job("b"))
    assert order(waiting)[:2] == ["a", "b"]


def test_who_has_fewest_active_comes_first():
    waiting = Waiting()
    for client in "ab":
        waiting.put(job(client))
    assert waiting.take(["a", "a", "b"]).client == "b"


def test_a_job_that_left_is_not_served():
    waiting, first, second = Waiting(), job("a"), job("a")
    waiting.put(first)
    waiting.put(second)
    waiting.discard(first)
    waiting.discard(first)
    assert waiting.take() is second
    assert len(waiting) == 0
    with pytest.raises(IndexError):
        waiting.take()


def test_a_client_cannot_take_all_places():
    gate = Gate(2, 1)
    with ExitStack() as inside:
        for _ in range(2):
            inside.enter_context(gate.passed("many"))
        with pytest.raises(ApiError) as refused, gate.passed("many"):
            pass
        assert refused.value.status == 429
        for other in ("one", "two"):
            inside.enter_context(gate.passed(other))
        with pytest.raises(ApiError), gate.passed("three"):
            pass
    with gate.passed("many"), gate.passed("many"):
        pass


def test_bodies_that_wait_have_a_bound_together_and_none_is_locked_out():
    gate, much = Gate(8, 4 * 2**20), 2**20
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(gate.stored("a"))(much)
        more = held.enter_context(gate.stored("a"))
        with pytest.raises(ApiError, match="too many large"):
            more(much)
        more(100)  # a small one
        other = held.enter_context(gate.stored("b"))
        other(much)
        other(3 * much)  # as it comes
        with pytest.raises(ApiError):
            other(4 * much)
    with gate.stored("a") as again:
        again(4 * much)
