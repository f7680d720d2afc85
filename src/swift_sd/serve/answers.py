"""OpenAI's answers, made with the types of its own package."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any, Protocol

from openai.types import Completion, CompletionChoice, CompletionUsage, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel
from pydantic_core import to_json

from swift_sd.serve.jobs import FinishReason, Piece, Usage


def usage_of(usage: Usage) -> CompletionUsage:
    """Token counts; those of drafts stand where OpenAI counts predicted outputs, and by name."""
    return CompletionUsage.model_validate(
        {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.completion,
            "total_tokens": usage.prompt + usage.completion,
            "completion_tokens_details": {
                "accepted_prediction_tokens": usage.accepted,
                "rejected_prediction_tokens": max(usage.drafted - usage.accepted, 0),
            },
            "drafted_tokens": usage.drafted,
            "accepted_tokens": usage.accepted,
        }
    )


def model_card(name: str, created: int) -> Model:
    """An entry of `/v1/models`."""
    return Model(id=name, created=created, object="model", owned_by="swift-sd")


class Form(Protocol):
    """How one endpoint's answers look."""

    def whole(self, text: str, reason: FinishReason, usage: Usage) -> BaseModel:
        """The answer in one piece."""
        ...

    def opening(self) -> BaseModel | None:
        """A stream's first chunk, before any text."""
        ...

    def chunk(self, text: str, reason: FinishReason | None = None) -> BaseModel:
        """A part of a stream."""
        ...

    def closing(self, usage: Usage) -> BaseModel:
        """A stream's chunk with the usage, behind all text."""
        ...


class _Form:
    def __init__(self, model: str, prefix: str, kinds: tuple[str, str]) -> None:
        self._whole_kind, self._chunk_kind = kinds
        self._head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def _body(self, kind: str, choices: Sequence[dict[str, Any]], usage: Any) -> dict[str, Any]:
        told = {} if usage is None else {"usage": usage_of(usage)}
        return {**self._head, "object": kind, "choices": list(choices), **told}


class ChatForm(_Form):
    """Answers of `/v1/chat/completions`."""

    def __init__(self, model: str) -> None:
        super().__init__(model, "chatcmpl", ("chat.completion", "chat.completion.chunk"))

    def whole(self, text: str, reason: FinishReason, usage: Usage) -> ChatCompletion:
        """See `Form`."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return ChatCompletion.model_validate(self._body(self._whole_kind, [choice], usage))

    def opening(self) -> ChatCompletionChunk:
        """See `Form`."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def chunk(self, text: str, reason: FinishReason | None = None) -> ChatCompletionChunk:
        """See `Form`."""
        return self._chunk({"content": text} if text else {}, reason)

    def closing(self, usage: Usage) -> ChatCompletionChunk:
        """See `Form`."""
        return ChatCompletionChunk.model_validate(self._body(self._chunk_kind, [], usage))

    def _chunk(self, delta: dict[str, str], reason: FinishReason | None) -> ChatCompletionChunk:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return ChatCompletionChunk.model_validate(self._body(self._chunk_kind, [choice], None))


class TextForm(_Form):
    """Answers of `/v1/completions`, whose chunks look like the whole."""

    def __init__(self, model: str) -> None:
        super().__init__(model, "cmpl", ("text_completion", "text_completion"))

    def whole(self, text: str, reason: FinishReason, usage: Usage) -> Completion:
        """See `Form`."""
        choice = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
        return Completion.model_validate(self._body(self._whole_kind, [choice], usage))

    def opening(self) -> None:
        """See `Form`; there is none."""

    def chunk(self, text: str, reason: FinishReason | None = None) -> Completion:
        """See `Form`. Before the last there is no reason, which only the type demands."""
        choice = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
        built = CompletionChoice.model_construct(None, **choice)
        return Completion.model_construct(
            None, **self._body(self._chunk_kind, [], None) | {"choices": [built]}
        )

    def closing(self, usage: Usage) -> Completion:
        """See `Form`."""
        return Completion.model_validate(self._body(self._whole_kind, [], usage))


def event(chunk: BaseModel, pieces: Sequence[Piece] = (), *, has_usage: bool = False) -> bytes:
    """A chunk as a server-sent event, with its tokens' origins if they are given.

    Args:
        has_usage: whether the stream tells it at its end; then, as at OpenAI, it is null before.
    """
    data = chunk.model_dump(mode="json", exclude_unset=True)
    if has_usage:
        data.setdefault("usage", None)
    if pieces:
        data["origins"] = [{"text": piece.text, "origin": piece.origin} for piece in pieces]
    return server_sent(data)


def server_sent(data: Any) -> bytes:
    """`data` as one server-sent event."""
    return b"data: " + to_json(data) + b"\n\n"
