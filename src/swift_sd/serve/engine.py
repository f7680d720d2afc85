"""The one thread that runs the models."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from swift_sd.decoding.trace import Step
from swift_sd.errors import SwiftError
from swift_sd.serve.jobs import Failure, Job
from swift_sd.serve.lockstep import Parted
from swift_sd.serve.response import Response
from swift_sd.serve.served import Served
from swift_sd.serve.waiting import Waiting

log = logging.getLogger(__name__)
IDLE = 1.0  # seconds between two looks at what has to be done now and then
# After these no further step can be done: another process has to take over. A GPU that has met an
# error of this kind refuses all that follows (older releases of torch have no name for it).
FATAL = (Parted, getattr(torch, "AcceleratorError", Parted))


class Refused(Exception):  # noqa: N818 - says what became of the request
    """Raised for a request that cannot be taken, or was not answered in time."""


class Chores(Protocol):
    """What has to be done now and then, on the engine's thread."""

    def __call__(self) -> None:
        """Called between steps, often; must be quick when there is nothing to do."""
        ...

    def finish(self) -> None:
        """Called once, when no more steps follow."""
        ...


class Observer(Protocol):
    """Is told what happens, on the engine's thread."""

    def stepped(self, model: str, step: Step, seconds: float) -> None:
        """A step was done in `seconds` of wall time."""
        ...


@dataclass(frozen=True)
class Load:
    """How many jobs there are."""

    active: int
    waiting: int


class Engine:
    """Answers jobs with a few responses at a time, a step of each in turn.

    All models run on one thread: they share the machine anyway, what steps cost is measured while
    nothing else runs, and torch's random numbers belong to one response at a time.

    Args:
        models: what can be asked.
        active: responses in turn.
        observer: is told of every step.
        chores: done between steps and at the end.

    Attributes:
        failure: what the engine died of, if it did.
        on_end: called when nothing is answered any more, on the engine's thread.
    """

    def __init__(
        self,
        models: Iterable[Served],
        active: int,
        observer: Observer | None = None,
        chores: Chores | None = None,
    ) -> None:
        self.models = {served.name: served for served in models}
        self._most_active = active
        self._observer = observer
        self._chores = chores
        self.failure: Exception | None = None
        self.on_end: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        self._waiting = Waiting()
        self._active: list[Response] = []
        self._is_draining = self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="swift-engine", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it takes jobs and answers them."""
        return self._thread.is_alive() and not self._is_draining

    @property
    def load(self) -> Load:
        """How much there is to do."""
        with self._changed:
            return Load(len(self._active), len(self._waiting))

    def submit(self, job: Job) -> None:
        """Answer `job` when its turn comes.

        Raises:
            Refused: the server is about to stop.
        """
        with self._changed:
            if self._is_draining or not self._thread.is_alive():
                raise Refused("the server is shutting down; ask again in a moment")
            self._waiting.put(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for `job` any more: its response ends within a step."""
        job.cancelled.set()
        with self._changed:
            self._waiting.discard(job)
            self._changed.notify()

    def drain(self) -> None:
        """Take no more jobs and refuse those that wait; what runs goes on."""
        with self._changed:
            self._is_draining = True
            refused = list(self._waiting)
            self._waiting = Waiting()
        for job in refused:
            job.deliver(Failure(Refused("the server is shutting down; ask again in a moment")))

    def give_up(self) -> None:
        """End what still runs, within a step; its clients are told."""
        self.drain()
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def close(self, timeout: float) -> None:
        """Give up what still runs; wait `timeout` seconds for that."""
        self.give_up()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while self._ready():
                self._turn()
                if self._chores is not None:
                    self._guarded(self._chores)
        except Exception as error:
            self.failure = error
            log.exception("the engine has died")
        finally:  # whatever happened, nobody shall wait for ever
            self.drain()
            over = Failure(Refused("the server was shut down; ask again in a moment"))
            for response in self._active:
                self._guarded(partial(response.job.deliver, over))
                self._guarded(response.close)
            if self._chores is not None:
                self._guarded(self._chores.finish)
            for leader in {one.leader for one in self.models.values() if one.leader is not None}:
                self._guarded(leader.end)
            self.on_end()

    def _guarded(self, work: Callable[[], object]) -> None:
        """Do what no answer depends on."""
        try:
            work()
        except Exception:
            log.exception("the engine goes on without it")

    def _ready(self) -> bool:
        """Fill free places; wait while there is nothing to do. False when all is over."""
        with self._changed:
            if not (self._active or self._waiting or self._is_closed):
                self._changed.wait(IDLE)
            if self._is_closed:
                return False
            late = [job for job in self._waiting if time.monotonic() > job.deadline]
            for job in late:
                self._waiting.discard(job)
        for job in late:
            job.deliver(Failure(Refused("the request waited too long; ask again later")))
        while (following := self._next()) is not None:
            self._begin(following)
        return True

    def _next(self) -> Job | None:
        """Whose turn it is, if there is a place."""
        with self._changed:
            if not self._waiting or len(self._active) >= self._most_active:
                return None
            return self._waiting.take([response.job for response in self._active])

    def _turn(self) -> None:
        """A step of each response; none is held on to while there is nothing to do."""
        for response in tuple(self._active):
            self._advance(response)

    def _begin(self, job: Job) -> None:
        try:
            response = self.models[job.model].begin(job)
        except Exception as error:
            self._fail(job, error)
            if isinstance(error, FATAL):
                raise
            return
        with self._changed:
            self._active.append(response)

    def _advance(self, response: Response) -> None:
        job = response.job
        failure: Exception | None = None
        if not job.cancelled.is_set():
            served = self.models[job.model]
            begin = time.perf_counter()
            try:
                step = response.advance()
            except Exception as error:
                failure = error
                self._fail(job, error)
            else:
                if step is not None:
                    seconds = time.perf_counter() - begin
                    served.figures.add(step, seconds, served.swift.layer_set)
                    self._observed(job.model, step, seconds)
                if not response.is_complete:
                    return
        self._guarded(response.close)
        with self._changed:
            self._active.remove(response)
        if isinstance(failure, FATAL):
            raise failure

    def _observed(self, model: str, step: Step, seconds: float) -> None:
        if self._observer is not None:
            self._guarded(partial(self._observer.stepped, model, step, seconds))

    def _fail(self, job: Job, error: Exception) -> None:
        """One request went wrong; the others go on."""
        if not isinstance(error, SwiftError):
            log.exception("a response failed", exc_info=error)
        job.deliver(Failure(error))
