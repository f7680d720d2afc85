"""What clients may ask: OpenAI's requests, as far as they can be honoured.

The `openai` package has its requests as typed dictionaries of all that OpenAI ever offered. Here
stands what this server does with them: a field is honoured; or changes nothing; or is not offered
and may only ask for nothing (`not_offered`). Every other one is unknown, which is ignored and told.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from swift_sd.prompts import TEMPLATE_ARGUMENTS
from swift_sd.serve.fields import Label, Lenient, Only, Small, Whole
from swift_sd.serve.not_offered import Empty, Nothing, NotOffered, Off, Zero

GREEDY_BELOW = 0.01  # temperatures under it pick the likeliest token anyway, or overflow
LEAST_PENALTY = 0.01  # scores divided by less overflow
AS_MUCH_AS_FITS = -1
ROLES = ("system", "developer", "user", "assistant")


def _not_zero(number: int) -> int:
    if number == 0:
        raise ValueError("there is no answer of 0 tokens; ask for at least 1, or -1 for all")
    return number


Length = Annotated[
    Whole,
    Field(ge=AS_MUCH_AS_FITS, json_schema_extra={"not": {"const": 0}}),
    AfterValidator(_not_zero),
]
Stop = Annotated[str, Field(max_length=256)]
# What is wrong with the first of a million elements is enough to know.
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]


class TextPart(Lenient):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


Parts = Annotated[list[TextPart], Field(fail_fast=True)]


class Message(Lenient):
    """One message of a conversation."""

    role: Literal["system", "developer", "user"]
    content: str | Annotated[Parts, Field(min_length=1)]
    name: Label | None = None

    def as_dict(self) -> dict[str, str]:
        """Role and text, for a chat template, and what else it may read."""
        role = "system" if self.role == "developer" else self.role
        return _without_nulls(role=role, content=_joined(self.content), name=self.name)


class Answer(Lenient):
    """A message of the assistant, who may have said nothing."""

    role: Literal["assistant"]
    content: str | Parts | None = None
    reasoning_content: str | None = None
    name: Label | None = None
    tool_calls: Empty = None
    function_call: Nothing = None
    audio: Nothing = None

    def as_dict(self) -> dict[str, str]:
        """See `Message`."""
        return _without_nulls(
            role=self.role,
            content=_joined(self.content or ""),
            name=self.name,
            reasoning_content=self.reasoning_content,
        )


def _joined(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _without_nulls(**fields: str | None) -> dict[str, str]:
    return {name: text for name, text in fields.items() if text is not None}


class StreamOptions(Lenient):
    """What a stream tells beside the text.

    Attributes:
        include_usage: a last chunk without choices has the usage.
        include_origins: chunks have `origins`, a list of `{"text": …, "origin": …}`: how each token
            came about. Not part of OpenAI's interface.
        include_obfuscation: accepted; there is none.
    """

    include_usage: bool | None = False
    include_origins: bool | None = False
    include_obfuscation: bool | None = False


class TextFormat(Lenient):
    """The one response format there is."""

    type: Literal["text"]


class Ask(NotOffered):
    """What chats and completions have in common.

    Attributes:
        subject: the field that is read.
    """

    subject: ClassVar[str]

    model: Annotated[str, Field(max_length=1000)]
    max_tokens: Length | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=LEAST_PENALTY, le=10)] | None = None
    seed: Whole | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # Accepted, because they do not change the answer.
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    service_tier: Label | None = None
    store: bool | None = None
    metadata: Small | None = None

    @model_validator(mode="after")
    def _without_unknown(self) -> Ask:
        self.forget_unknown()
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts before which the answer ends."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)

    @property
    def wanted(self) -> int | None:
        """How many tokens were asked for; None for as many as fit."""
        return None if self.max_tokens == AS_MUCH_AS_FITS else self.max_tokens

    def sampling(self) -> dict[str, Any]:
        """Arguments of `generate`; as at OpenAI, what is not given is 1."""
        temperature = 1.0 if self.temperature is None else self.temperature
        top_p = 1.0 if self.top_p is None else self.top_p
        top_k = max(self.top_k or 0, 0)
        others = {"min_p": self.min_p, "repetition_penalty": self.repetition_penalty}
        given = {name: value for name, value in others.items() if value is not None}
        if temperature < GREEDY_BELOW or top_p == 0 or top_k == 1:
            given.pop("min_p", None)
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, **given}
        return {
            "do_sample": True,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            **given,
        }


class Chat(Ask):
    """The body of `POST /v1/chat/completions`."""

    subject = "messages"

    messages: Annotated[
        list[Annotated[Message | Answer, Field(discriminator="role")]],
        Field(min_length=1, fail_fast=True),
    ]
    max_completion_tokens: Length | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[Any, Only(["text"], [])] = None
    audio: Nothing = None
    logprobs: Off = None
    top_logprobs: Zero = None
    web_search_options: Nothing = None
    tool_choice: Any = None  # before `tools`, which it decides about
    tools: list[Any] | None = None
    parallel_tool_calls: bool | None = None
    function_call: Annotated[Any, Only("none", "auto")] = None
    functions: Empty = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Small | None = None

    @field_validator("tools")
    @classmethod
    def _are_not_called(cls, tools: list[Any] | None, info: ValidationInfo) -> None:
        if tools and info.data.get("tool_choice") != "none":
            raise PydanticCustomError("not_offered", "no tools are called here; leave them out")

    @field_validator("continue_final_message")
    @classmethod
    def _is_one_of_two(cls, continues: bool | None, info: ValidationInfo) -> bool | None:
        if continues and info.data.get("add_generation_prompt"):
            raise ValueError("it excludes add_generation_prompt; leave one of them out")
        return continues

    @field_validator("chat_template_kwargs")
    @classmethod
    def _are_variables(cls, given: dict[str, Any] | None) -> dict[str, Any] | None:
        if taken := sorted(TEMPLATE_ARGUMENTS & (given or {}).keys()):
            raise ValueError(f"{taken[0]} is no variable of a template; leave it out")
        return given

    @property
    def wanted(self) -> int | None:
        """How many tokens were asked for; the newer name counts."""
        if self.max_completion_tokens is None:
            return super().wanted
        return None if self.max_completion_tokens == AS_MUCH_AS_FITS else self.max_completion_tokens

    def template(self) -> dict[str, Any]:
        """For the chat template, beside the messages."""
        continues = bool(self.continue_final_message)
        begins = self.add_generation_prompt
        return {
            **(self.chat_template_kwargs or {}),
            "continue_final_message": continues,
            "add_generation_prompt": not continues if begins is None else begins,
        }


class Complete(Ask):
    """The body of `POST /v1/completions`."""

    subject = "prompt"

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=1)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=1)]
    )
    logprobs: Annotated[Any, Only(0, False)] = None

    @property
    def wanted(self) -> int | None:
        """How many tokens were asked for; 16 where nothing is, as at OpenAI."""
        return 16 if self.max_tokens is None else super().wanted

    def text_or_ids(self) -> str | list[int]:
        """The prompt itself, out of the list that it may come in."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return prompt
        if isinstance(prompt[0], str | list):
            return prompt[0]
        return [token for token in prompt if isinstance(token, int)]
