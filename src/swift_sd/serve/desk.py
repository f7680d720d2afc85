"""Between HTTP and the engine: requests become jobs, and their events find their way back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from swift_sd.errors import PromptError, SwiftError
from swift_sd.serve import bodies
from swift_sd.serve.clients import memory_of
from swift_sd.serve.engine import Engine, Refused
from swift_sd.serve.failures import ApiError, as_api_error
from swift_sd.serve.gate import Gate
from swift_sd.serve.jobs import Event, Failure, Job
from swift_sd.serve.limits import Limits
from swift_sd.serve.reader import Reader
from swift_sd.serve.requests import Ask, Chat, Complete
from swift_sd.serve.served import Served

log = logging.getLogger(__name__)
A = TypeVar("A", bound=Ask)
T = TypeVar("T")


class Conversation:
    """A job's events for one client, from being let in to `close`.

    Args:
        engine: answers.
        job: what is asked.
        place: given back at the end.
    """

    def __init__(self, engine: Engine, job: Job, place: ExitStack) -> None:
        self._engine = engine
        self._job = job
        self._place = place
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        # Bounded by the answer's longest length; so the engine never has to wait for a slow client.
        job.deliver = partial(_deliver, loop, self._events)

    def start(self) -> None:
        """Hand the job in.

        Raises:
            Refused: the server is about to stop.
        """
        self._engine.submit(self._job)

    async def next(self) -> Event:
        """The next event.

        Raises:
            ApiError: the request failed.
        """
        event = await self._events.get()
        if isinstance(event, Failure):
            raise as_api_error(event.error)
        return event

    def close(self) -> None:
        """Nobody listens any more."""
        self._engine.cancel(self._job)
        self._place.close()


class Desk:
    """Turns requests into conversations.

    Args:
        engine: answers.
        limits: what clients may ask for.
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine = engine
        self.limits = limits
        self.gate = Gate(limits.places, limits.stored)
        self._reader = Reader()

    @property
    def size(self) -> bodies.Size:
        """What a request may bring.

        Raises:
            ApiError: 503, that is not known yet.
        """
        return bodies.size_for(self.models.values(), self.limits)

    @property
    def models(self) -> Mapping[str, Served]:
        """What can be asked.

        Raises:
            ApiError: 503, that is not known yet.
        """
        if self.engine.is_loading:
            raise as_api_error(Refused("the models are being loaded; ask again in a moment"))
        if not (self.engine.models or self.engine.is_alive):  # they could not be loaded
            raise as_api_error(Refused("the server is shutting down; ask again in a moment"))
        return self.engine.models

    def model(self, name: str) -> Served:
        """A model by its name; nothing but the configured names leads anywhere.

        Raises:
            ApiError: 404, there is none; 503, that is not known yet.
        """
        served = self.models.get(name)
        if served is None:
            known = ", ".join(self.models)
            raise ApiError(
                404,
                f"there is no model {name[:100]!r}; this server has {known}",
                param="model",
                code="model_not_found",
            )
        return served

    async def parse(self, kind: type[A], body: bytes, client: str, deadline: float) -> A:
        """What a body asks for.

        Raises:
            ApiError: 400, it cannot be parsed; says why.
            RequestValidationError: it is not a `kind`.
        """
        work = partial(bodies.parsed, kind, body, self.size)
        return await self._in_time(deadline, client, len(body), work)

    async def open(
        self, ask: Chat | Complete, size: int, client: str, deadline: float, place: ExitStack
    ) -> Conversation:
        """Check a request and hand it to the engine.

        Args:
            ask: what is asked.
            size: bytes of it.
            deadline: `time.monotonic()` at which the answer ends as it stands.
            client: who asks.
            place: what the request holds while it is answered; the conversation gives it back.

        Raises:
            ApiError: it cannot be answered; says why.
        """
        served = self.model(ask.model)
        inputs = await self._read(served, ask, size, client, deadline)
        room = self._room(served, ask, inputs["input_ids"].shape[1])
        job = Job(
            served.name,
            client,
            inputs,
            {
                **ask.sampling(),
                "max_new_tokens": min(ask.wanted or room, room, self.limits.tokens),
            },
            deadline=deadline,
            stop=ask.stops,
            seed=ask.seed,
            memory=memory_of(client),
        )
        conversation = Conversation(self.engine, job, place.pop_all())
        try:
            conversation.start()
        except BaseException as error:
            conversation.close()
            raise as_api_error(error) from None
        return conversation

    def close(self) -> None:
        """Stop reading requests."""
        self._reader.close()

    async def _read(
        self, served: Served, ask: Ask, size: int, client: str, deadline: float
    ) -> dict[str, Tensor]:
        work: Callable[[], dict[str, Tensor]] = partial(_encoded, served, ask)
        try:
            return await self._in_time(deadline, client, size, work)
        except PromptError as error:
            code = "context_length_exceeded" if error.is_too_long else None
            raise ApiError(400, str(error), param=ask.subject, code=code) from None
        except ValueError as error:  # SwiftError is one, and so is what tokenizers object to
            if not isinstance(error, SwiftError):
                log.exception("a prompt could not be read")
            raise as_api_error(error) from None

    async def _in_time(self, deadline: float, client: str, size: int, work: Callable[[], T]) -> T:
        """The result of `work`, done on the reader's threads.

        Raises:
            ApiError: 503, not until `deadline`.
        """
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await self._reader.run(client, size, work)
        except TimeoutError:
            late = Refused("the request waited too long; ask again later")
            raise as_api_error(late) from None

    def _room(self, served: Served, ask: Ask, prompt: int) -> int:
        """How many tokens may follow a prompt.

        Raises:
            ApiError: none.
        """
        context = served.swift.context_length
        room = self.limits.tokens if context is None else context - prompt
        if room < 1:
            raise ApiError(
                400,
                f"the prompt has {prompt} tokens and there is room for {context}; shorten it",
                param=ask.subject,
                code="context_length_exceeded",
            )
        return room


def _encoded(served: Served, ask: Ask) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, `[1, n]`; takes as long as the prompt is."""
    if isinstance(ask, Chat):
        return served.swift.encode(
            [message.as_dict() for message in ask.messages], **ask.template()
        )
    assert isinstance(ask, Complete)
    prompt = ask.text_or_ids()
    if isinstance(prompt, str):
        return served.swift.encode(prompt)
    size: int = served.swift.model.config.get_text_config(decoder=True).vocab_size
    if max(prompt) >= size:
        raise ApiError(400, f"there are no token ids from {size} on", param="prompt")
    ids = torch.tensor([prompt], dtype=torch.long, device=served.swift.model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _deliver(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], event: Event) -> None:
    """From the engine's thread to the loop's; a loop that has ended has no clients."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(events.put_nowait, event)
