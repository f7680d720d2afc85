"""The one thread that runs the models."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from swift_sd.decoding.trace import Step
from swift_sd.errors import SwiftError
from swift_sd.serve.companions import Chores, Loaded, Observer
from swift_sd.serve.jobs import Failure, Job
from swift_sd.serve.lockstep import Parted
from swift_sd.serve.response import Response
from swift_sd.serve.served import Served
from swift_sd.serve.turns import Turns
from swift_sd.serve.waiting import Waiting

log = logging.getLogger(__name__)
IDLE = 1.0  # seconds between two looks at what has to be done now and then
# Seconds after which a step is said to hang: one that reads a prompt may take so long for each
# started thousand tokens.
SILENCE, THOUSAND = 60.0, 1024
# After these no further step can be done: another process has to take over. A GPU that has met an
# error of this kind refuses all that follows (older releases of torch have no name for it).
FATAL = (Parted, getattr(torch, "AcceleratorError", Parted))


State = Literal["loading", "ok", "stalled", "stopping"]


class Refused(Exception):  # noqa: N818 - says what became of the request
    """Raised for a request that cannot be taken, or was not answered in time."""


@dataclass(frozen=True)
class Load:
    """How many jobs there are."""

    active: int
    waiting: int


class Engine:
    """Answers jobs, several at a time, a step here and a step there: clients share its time.

    All models run on one thread: they share the machine anyway, what steps cost is measured while
    nothing else runs, and torch's random numbers belong to one response at a time.

    Args:
        models: what can be asked.
        active: responses in progress, each of which holds a cache. A client that has none gets one
            even beyond that, as long as there are not twice as many.
        observer: is told of every step.
        chores: done between steps and at the end.
        load: makes models and chores instead, on the engine's thread.
        clock: seconds, for turns and for what hangs.

    Attributes:
        models: by name; none while they are being loaded.
        failure: what the engine died of, if it did.
        on_end: called when nothing is answered any more, on the engine's thread.
    """

    def __init__(
        self,
        models: Iterable[Served],
        active: int,
        observer: Observer | None = None,
        chores: Chores | None = None,
        *,
        load: Callable[[], Loaded] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.models = {served.name: served for served in models}
        self._most_active = active
        self._observer = observer
        self._chores = chores
        self._load = load
        self._clock = clock
        self._due = clock() + SILENCE  # when the running step hangs, if it still runs then
        self.failure: Exception | None = None
        self.on_end: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        self._waiting = Waiting()
        self._turns = Turns()
        self._active: list[Response] = []  # the one that had its last step latest comes last
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
    def is_loading(self) -> bool:
        """Whether models are being made, which cannot be interrupted."""
        return self._load is not None and self._thread.is_alive()

    @property
    def health(self) -> State:
        """What it is about: "stalled" if nothing has come of what is to be done for too long."""
        if not self.is_alive:
            return "stopping"
        if self.is_loading:
            return "loading"
        load = self.load
        is_late = self._clock() > self._due
        return "stalled" if is_late and (load.active or load.waiting) else "ok"

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
            if self.is_loading:
                raise Refused("the models are being loaded; ask again in a moment")
            self._waiting.put(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for `job` any more: it is forgotten, within a step if it runs."""
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
        """Give up what still runs; wait `timeout` seconds for that, but never for models."""
        self.give_up()
        if self._thread.ident is not None and not self.is_loading:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self._make_models()
            while self._ready():
                self._turn()
                if self._chores is not None:
                    self._guarded(self._chores)
        except Exception as error:
            self.failure = error
            if not isinstance(error, SwiftError):  # which says all by itself
                log.exception("the engine has died")
        finally:  # whatever happened, nobody shall wait for ever
            self.drain()
            self._load = None
            over = Failure(Refused("the server was shut down; ask again in a moment"))
            for response in self._active:
                self._guarded(partial(response.job.deliver, over))
                self._guarded(response.close)
            if self._chores is not None:
                self._guarded(self._chores.finish)
            for leader in {one.leader for one in self.models.values() if one.leader is not None}:
                self._guarded(leader.end)
            self.on_end()

    def _make_models(self) -> None:
        if self._load is None:
            return
        loaded = self._load()
        self._chores = loaded.chores
        self.models = {served.name: served for served in loaded.models}  # others iterate over it
        self._load = None

    def _guarded(self, work: Callable[[], object]) -> None:
        """Do what no answer depends on."""
        try:
            work()
        except Exception:
            log.exception("the engine goes on without it")

    def _ready(self) -> bool:
        """Fill free places; wait while there is nothing to do. False when all is over."""
        self._expect()
        with self._changed:
            if not (self._active or self._waiting or self._is_closed):
                self._changed.wait(IDLE)
            if self._is_closed:
                return False
            late = [job for job in self._waiting if self._clock() > job.deadline]
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
            clients = [response.job.client for response in self._active]
            places = self._most_active * (2 if self._waiting.has_newcomer(clients) else 1)
            if not self._waiting or len(clients) >= places:
                return None
            return self._waiting.take(clients)

    def _turn(self) -> None:
        """A step for the client whose turn it is, of its response that has waited longest."""
        for response in [one for one in self._active if one.job.cancelled.is_set()]:
            self._end(response)
        if not self._active:
            return
        client = self._turns.next(response.job.client for response in self._active)
        response = next(one for one in self._active if one.job.client == client)
        begin = self._clock()
        self._expect(response.unread)
        self._advance(response)
        self._turns.spend(client, self._clock() - begin)

    def _expect(self, tokens: int = 0) -> None:
        """What is done next is soon done, also if it reads a prompt of so many tokens."""
        self._due = self._clock() + SILENCE * (1 + tokens // THOUSAND)

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
        served = self.models[job.model]
        begin = time.perf_counter()
        try:
            step = response.advance()
        except Exception as error:
            self._fail(job, error)
            self._end(response)
            if isinstance(error, FATAL):
                raise
            return
        if step is not None:
            seconds = time.perf_counter() - begin
            served.figures.add(step, seconds, served.swift.layer_set)
            self._observed(job.model, step, seconds)
        if response.is_complete:
            self._end(response)
            return
        with self._changed:
            self._active.remove(response)
            self._active.append(response)

    def _end(self, response: Response) -> None:
        self._guarded(response.close)
        with self._changed:
            self._active.remove(response)

    def _observed(self, model: str, step: Step, seconds: float) -> None:
        if self._observer is not None:
            self._guarded(partial(self._observer.stepped, model, step, seconds))

    def _fail(self, job: Job, error: Exception) -> None:
        """One request went wrong; the others go on."""
        if not isinstance(error, SwiftError):
            log.exception("a response failed", exc_info=error)
        job.deliver(Failure(error))
