"""Waiting threads give way where others want the cores, and only there."""

import gc
import threading

import pytest
import torch

from swift_sd.native.waiting import LOOK_EVERY, SpinControl, short_spins, thread_run_delay

KEEPER = "swift-sd-short-spins"


def keepers():
    return sum(thread.name == KEEPER for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def several_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    gc.collect()  # responses that other tests have left half-way
    yield
    torch.set_num_threads(before)


class Machine:
    """Seconds go by as a test says, and a share of them is spent waiting for a core."""

    def __init__(self, knows=True):
        self.now = self.waited = 0.0
        self.control = SpinControl(lambda: self.now, lambda: self.waited if knows else None)

    def decode(self, look, share, seconds=2 * LOOK_EVERY):
        self.now += seconds
        self.waited += share * seconds
        look()
        return keepers()


def test_spins_are_short_within_and_long_again_after():
    assert keepers() == 0
    with short_spins():
        assert keepers() == 1
    assert keepers() == 0


def test_spins_are_long_again_after_an_error():
    with pytest.raises(ZeroDivisionError), short_spins():
        raise ZeroDivisionError
    assert keepers() == 0


def test_a_single_thread_waits_for_nobody():
    torch.set_num_threads(1)
    with short_spins():
        assert keepers() == 0


def test_spins_are_short_while_others_want_the_cores():
    machine = Machine()
    with machine.control.watching() as look:
        assert machine.decode(look, 0.0) == 0
        assert machine.decode(look, 0.5) == 1
        assert machine.decode(look, 0.5) == 1
        assert machine.decode(look, 0.05) == 1  # between the two limits it stays as it is
        assert machine.decode(look, 0.0) == 0
        assert machine.decode(look, 0.05) == 0
    assert keepers() == 0


def test_the_next_response_begins_as_the_last_one_ended():
    machine = Machine()
    with machine.control.watching() as look:
        machine.decode(look, 0.5)
    assert keepers() == 0
    with machine.control.watching() as look:
        assert keepers() == 1
        assert machine.decode(look, 0.0) == 0
    with machine.control.watching():
        assert keepers() == 0


def test_two_responses_in_turn_leave_nothing_behind():
    machine = Machine()
    with machine.control.watching() as one, machine.control.watching() as two:
        assert machine.decode(one, 0.5) == 1
        assert machine.decode(two, 0.5) == 2
        assert machine.decode(one, 0.0, seconds=9) == 1
        assert machine.decode(two, 0.5, seconds=9) == 1
        assert machine.decode(one, 0.5) == 2
    assert keepers() == 0


def test_where_no_thread_can_be_started_spins_are_as_they_were(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with short_spins():
        assert keepers() == 0


def test_a_moment_too_short_to_tell_changes_nothing():
    machine = Machine()
    with machine.control.watching() as look:
        assert machine.decode(look, 1.0, LOOK_EVERY / 2) == 0
        assert machine.decode(look, 1.0, LOOK_EVERY / 2) == 1


def test_where_nothing_is_counted_nothing_changes():
    machine = Machine(knows=False)
    with machine.control.watching() as look:
        assert machine.decode(look, 1.0) == 0


def test_linux_counts_what_a_thread_waits():
    waited = thread_run_delay()
    assert waited is None or waited >= 0
