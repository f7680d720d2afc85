"""How long OpenMP threads that wait keep their core from other processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from time import perf_counter

import torch

MANY = 1 << 18  # numbers of an operation that torch shares among threads
LOOK_EVERY = 0.05  # seconds
# Shares of the time that a thread waits for a core: above the first there is contention, and below
# the second there is none any more.
WAITING, STILL_WAITING = 0.1, 0.03


@contextmanager
def short_spins() -> Iterator[None]:
    """Within it, threads of torch that wait for each other give way after microseconds.

    libgomp lets a waiting thread spin for milliseconds. Where two processes share the cores, it
    spins away the time that its partner needs, at each of many thousand small operations. It spins
    for microseconds only while it manages more threads than there are cores (GOMP_SPINCOUNT in its
    manual); so a second team of threads is kept, asleep. Decoding on a quiet machine is a little
    faster with long spins, which is why this is for what is done once.
    """
    if torch.get_num_threads() == 1:
        yield
        return
    begun, finished = Event(), Event()

    def keep_a_team() -> None:
        try:
            torch.ones(MANY, dtype=torch.float32, device="cpu").add_(1)
        finally:
            begun.set()
        finished.wait()

    keeper = Thread(target=keep_a_team, name="swift-sd-short-spins", daemon=True)
    try:
        keeper.start()
    except RuntimeError:  # no more threads may be started here
        yield
        return
    try:
        begun.wait()
        yield
    finally:
        finished.set()
        keeper.join()


class SpinControl:
    """Shortens spins while other processes want the cores, and only then.

    Linux counts how long a thread that could run had to wait for a core. If that is a notable share
    of the time, the cores are not ours alone.

    Args:
        clock: tells the seconds.
        run_delay: tells the seconds that this thread has waited for a core so far; None if unknown.
    """

    def __init__(
        self,
        clock: Callable[[], float] = perf_counter,
        run_delay: Callable[[], float | None] | None = None,
    ) -> None:
        self._clock, self._run_delay = clock, run_delay or thread_run_delay
        self.is_contended = False  # as far as the thread that looked last knows

    @contextmanager
    def watching(self) -> Iterator[Callable[[], None]]:
        """Gives a function to be called between forwards, on the thread that computes them."""
        with ExitStack() as held:
            last, waited = self._clock(), self._run_delay()
            is_short = False

            def look() -> None:
                nonlocal last, waited, is_short
                now = self._clock()
                if waited is None or now - last < LOOK_EVERY:
                    return
                total = self._run_delay()
                if total is None:
                    return
                share = (total - waited) / (now - last)
                last, waited = now, total
                set_spins(share > (STILL_WAITING if is_short else WAITING))

            def set_spins(contended: bool) -> None:
                nonlocal is_short
                if contended and not is_short:
                    held.enter_context(short_spins())
                elif is_short and not contended:
                    held.close()
                is_short = self.is_contended = contended

            set_spins(self.is_contended)  # as the response before has left it
            yield look


def thread_run_delay() -> float | None:
    """Seconds that the calling thread was ready to run and had no core; None where unknown."""
    try:
        _, waited, _ = Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return int(waited) * 1e-9
