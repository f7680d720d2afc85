"""What clients may ask: OpenAI's requests, as far as they can be honoured.

The `openai` package has its requests as typed dictionaries of all that OpenAI ever offered. Here
stands what this server does. Everything else is refused by name instead of being dropped.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

GREEDY_BELOW = 0.01  # temperatures under it pick the likeliest token anyway, or overflow


def _readable(text: str) -> str:
    """JSON can write halves of characters, which no tokenizer reads."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("there is half a character (a lone surrogate) in it") from None
    return text


Text = Annotated[str, AfterValidator(_readable)]
Empty = Annotated[list[Any], Field(max_length=0)] | None
Zero = Annotated[float, Field(ge=0, le=0)]
One = Annotated[int, Field(ge=1, le=1)]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]
# What is wrong with the first of a million elements is enough to know.
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]


class Strict(BaseModel):
    """No conversions (a number given as text is an error), no unknown names."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """One message of a conversation; the fields that must be empty come with OpenAI's answers."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Empty = None
    annotations: Empty = None

    def as_dict(self) -> dict[str, str]:
        """Role and text, for a chat template."""
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return {"role": role, "content": self.content}
        return {"role": role, "content": "".join(part.text for part in self.content)}


class StreamOptions(Strict):
    """What a stream tells beside the text.

    Attributes:
        include_usage: a last chunk without choices has the usage.
        include_origins: chunks have `origins`, a list of `{"text": …, "origin": …}`: how each token
            came about. Not part of OpenAI's interface.
        include_obfuscation: accepted; there is none.
    """

    include_usage: bool = False
    include_origins: bool = False
    include_obfuscation: bool = False


class TextFormat(Strict):
    """The one response format there is."""

    type: Literal["text"]


class Ask(Strict):
    """What chats and completions have in common.

    Attributes:
        subject: the field that is read.
    """

    subject: ClassVar[str]

    model: Annotated[str, Field(max_length=1000)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # Accepted only where they ask for nothing.
    n: One | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None

    # Accepted, because they do not change the answer.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts before which the answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wanted(self) -> int | None:
        """How many tokens were asked for."""
        return self.max_tokens

    def sampling(self) -> dict[str, Any]:
        """Arguments of `generate`; as at OpenAI, what is not given is 1."""
        temperature = 1.0 if self.temperature is None else self.temperature
        if temperature < GREEDY_BELOW:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        top_p = 1.0 if self.top_p is None else self.top_p
        return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}


class Chat(Ask):
    """The body of `POST /v1/chat/completions`."""

    subject = "messages"

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    response_format: TextFormat | None = None
    logprobs: Literal[False] | None = None
    tools: Empty = None
    parallel_tool_calls: bool | None = None

    @property
    def wanted(self) -> int | None:
        """How many tokens were asked for; the newer name counts."""
        return self.max_completion_tokens or self.max_tokens


class Complete(Ask):
    """The body of `POST /v1/completions`."""

    subject = "prompt"

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=1)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=1)]
    )
    echo: Literal[False] | None = None
    best_of: One | None = None
    logprobs: None = None
    suffix: None = None

    @property
    def wanted(self) -> int | None:
        """How many tokens were asked for; 16 where nothing is, as at OpenAI."""
        return self.max_tokens or 16

    def text_or_ids(self) -> str | list[int]:
        """The prompt itself, out of the list that it may come in."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return prompt
        if isinstance(prompt[0], str | list):
            return prompt[0]
        return [token for token in prompt if isinstance(token, int)]
