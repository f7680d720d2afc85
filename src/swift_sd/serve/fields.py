"""What the fields of requests are made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PrivateAttr,
)
from pydantic_core import PydanticCustomError, core_schema

MOST_NAMED = 16  # unknown fields of a request
LONGEST_NAME = 64  # characters of one that are told
LARGEST_OBJECT = 2**14  # bytes of a field that holds an object of the client's own
EMPTY: tuple[Any, ...] = (None, "", [], {})


def _small(value: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(value, ensure_ascii=False).encode()) > LARGEST_OBJECT:
        raise ValueError(f"it has more than {LARGEST_OBJECT} bytes")
    return value


def _whole(value: Any) -> Any:
    """To clients whose language has one kind of number, 4.0 is 4."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Label = Annotated[str, Field(max_length=1000)]
Small = Annotated[dict[str, Any], AfterValidator(_small)]
Whole = Annotated[int, BeforeValidator(_whole), Field(ge=-(2**63), lt=2**63)]


class Only:
    """Marks a field of something that is not offered: it may be null, or ask for nothing.

    Args:
        values: with which it asks for nothing.
    """

    def __init__(self, *values: Any) -> None:
        self._values = values

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """See pydantic."""
        return core_schema.no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """See pydantic."""
        return {"enum": [None, *self._values]}

    def _checked(self, value: Any) -> Any:
        for known in (None, *self._values):
            if value == known and isinstance(value, bool) == isinstance(known, bool):
                return value
        taken = " or ".join(json.dumps(known) for known in self._values)
        remedy = f"leave it out, or send {taken}" if taken else "leave it out"
        raise PydanticCustomError(
            "not_offered", "this is not supported; {remedy}", {"remedy": remedy}
        )


class Lenient(BaseModel):
    """Types are strict (a number given as text is an error); unknown names are remembered."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)
    _unknown: list[str] = PrivateAttr(default_factory=list)

    @property
    def unknown(self) -> list[str]:
        """Names of fields that ask for something and are not known; see `forget_unknown`."""
        return self._unknown

    def forget_unknown(self) -> None:
        """Of unknown fields, keep no more than the names; that of a message's is `messages.…`."""
        self._unknown = list(islice(dict.fromkeys(_unknown_in(self, "")), MOST_NAMED))


def _unknown_in(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, Lenient):
        extra = value.model_extra or {}
        for name, asked in extra.items():
            if asked not in EMPTY:
                yield path + ascii(name)[1:-1][:LONGEST_NAME]  # no line breaks in logs and headers
        extra.clear()
        for name in type(value).model_fields:
            yield from _unknown_in(getattr(value, name), f"{path}{name}.")
    elif isinstance(value, list) and value and isinstance(value[0], Lenient):
        for one in value:
            yield from _unknown_in(one, path)
