"""Texts and conversations as token ids."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from swift_sd.errors import ConfigError, PromptError

Messages = list[dict[str, str]]
Encoded = dict[str, Tensor]

# What `apply_chat_template` takes for itself; all other names are variables of the template.
TEMPLATE_ARGUMENTS = frozenset(
    ["messages", *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters]
)
# Private-use characters around the number of a control token, while a template is filled in.
OPEN, CLOSE = "\U0010fffc", "\U0010fffd"


def encoded(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages,
    device: torch.device | None = None,
    **template: Any,
) -> Encoded:
    """`input_ids` and `attention_mask`, `[1, n]`, of a text or of chat messages.

    The ids are those of the tokenizer and of its `apply_chat_template`, except where a message has
    a control token in it, such as `<|im_end|>`: there it is text, and ends nothing. In a text that
    is no message it counts as what it is.

    Args:
        tokenizer: has a chat template, if there are messages.
        prompt: a text as it stands, or `[{"role": "user", "content": …}, …]`.
        device: where the tensors are put.
        template: for `apply_chat_template`; what that does not know reaches the template. Unless
            `add_generation_prompt` or `continue_final_message` says otherwise, an answer begins.

    Raises:
        ConfigError: there is no chat template.
        PromptError: nothing comes of the prompt, or the template refuses it.
    """
    if isinstance(prompt, str):
        found: Any = tokenizer(prompt, return_tensors="pt")
    elif tokenizer.chat_template is None:
        raise ConfigError("the tokenizer has no chat template; pass the prompt as one text")
    else:
        found = _encode_messages(tokenizer, prompt, **template)
    if found["input_ids"].shape[-1] == 0:
        raise PromptError("the prompt is empty; give it some text")
    # Whatever else a tokenizer returns (`token_type_ids`, say) is for models of other kinds.
    names = ("input_ids", "attention_mask")
    return {name: found[name].to(device) for name in names if name in found}


def _encode_messages(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    *,
    chat_template: str | None = None,
    **template: Any,
) -> Any:
    template.setdefault("add_generation_prompt", not template.get("continue_final_message"))
    call: Any = partial(tokenizer.apply_chat_template, chat_template=chat_template)
    try:
        source = tokenizer.get_chat_template(chat_template, template.get("tools"))
        typed = _typed_tokens(tokenizer, source, messages, template)
        if typed and not _sanitizes(tokenizer):
            return _encode_around(tokenizer, call, messages, template, typed)
        if typed:
            template["sanitize_control_tokens"] = True
        return call(messages, return_tensors="pt", return_dict=True, **template)
    except Exception as error:  # a template is a program: it may raise anything
        raise PromptError(
            f"the model's chat template refuses this: {str(error) or type(error).__name__}"
        ) from error


def _typed_tokens(
    tokenizer: PreTrainedTokenizerBase, source: str, messages: Messages, template: dict[str, Any]
) -> list[str]:
    """Control tokens that somebody wrote into a message, the longest first.

    Those are special tokens, and others that the chat template writes. Models write the latter
    themselves (`<think>`), so that they may stand in answers that are sent back.
    """
    special, written = [], []
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            special.append(token.content)
        elif token.content in source and not token.content.isspace():
            written.append(token.content)
    said = [*_strings(messages), *_strings(template)]
    asked = [*_strings([m for m in messages if m.get("role") != "assistant"]), *_strings(template)]
    is_typed = any(token in text for token in special for text in said)
    if not is_typed and not any(token in text for token in written for text in asked):
        return []
    return sorted([*special, *written], key=len, reverse=True)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _strings(one)


# --- releases of transformers that cannot sanitize (before 5.23) ------------------------------


def _sanitizes(tokenizer: PreTrainedTokenizerBase) -> bool:
    return "sanitize_control_tokens" in inspect.signature(tokenizer.apply_chat_template).parameters


def _encode_around(
    tokenizer: PreTrainedTokenizerBase,
    call: Any,
    messages: Messages,
    template: dict[str, Any],
    tokens: list[str],
) -> Encoded:
    """Fill in the template with numbers in place of `tokens`, which are encoded apart as text."""
    numbers = {token: f"{OPEN}{number}{CLOSE}" for number, token in enumerate(tokens)}
    anywhere = re.compile("|".join(map(re.escape, tokens)))

    def hidden(value: Any) -> Any:
        if isinstance(value, str):
            value = value.replace(OPEN, "").replace(CLOSE, "")
            return anywhere.sub(lambda found: numbers[found[0]], value)
        if isinstance(value, dict):
            return {name: hidden(one) for name, one in value.items()}
        return [hidden(one) for one in value] if isinstance(value, list | tuple) else value

    rendered = call(hidden(messages), tokenize=False, **hidden(template))
    ids: list[int] = []
    for index, part in enumerate(re.split(f"{OPEN}([0-9]+){CLOSE}", rendered)):
        if index % 2:
            ids += _as_text(tokenizer, tokens[int(part)])
        else:
            ids += tokenizer.encode(part, add_special_tokens=False)
    found = torch.tensor([ids], dtype=torch.long, device="cpu")
    return {"input_ids": found, "attention_mask": torch.ones_like(found)}


def _as_text(tokenizer: PreTrainedTokenizerBase, token: str) -> list[int]:
    """Ids of a control token's characters."""
    ids: list[int]
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        ids = tokenizer.encode(token, add_special_tokens=False, split_special_tokens=True)
    else:  # its pipeline, without the tokens that were added to it
        text = token if backend.normalizer is None else backend.normalizer.normalize_str(token)
        words = [text]
        if backend.pre_tokenizer is not None:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        ids = [one.id for word in words for one in backend.model.tokenize(word)]
    if tokenizer.convert_tokens_to_ids(token) in ids:
        raise ValueError(f"the tokenizer cannot read {token} as text; leave it out")
    return ids
