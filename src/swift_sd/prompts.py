"""Texts and conversations as token ids."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from swift_sd.errors import ConfigError, PromptError, UnsupportedArgument

Messages = list[dict[str, str]]
Encoded = dict[str, Tensor]

# What `apply_chat_template` takes for itself; all other names are variables of the template.
TEMPLATE_ARGUMENTS = frozenset(
    ["messages", *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters]
)
FOR_RENDERING = frozenset(
    ["add_generation_prompt", "chat_template", "continue_final_message", "documents", "tools"]
)
# Private-use characters around a typed control token, while a template is filled in.
OPEN, CLOSE = "\U0010fffc", "\U0010fffd"
NOTHING = re.compile(r"(?!)")
PLAIN: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False}


def encoded(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages,
    device: torch.device | None = None,
    /,
    **template: Any,
) -> Encoded:
    """What `PromptEncoder(tokenizer).encode` gives, for a tokenizer that is needed once."""
    return PromptEncoder(tokenizer).encode(prompt, device, **template)


class PromptEncoder:
    """Makes token ids of texts and chat messages, on any number of threads.

    A fast tokenizer is one object for all threads, some of whose settings are arguments of a call:
    the first call changes them, and so does a later one with other arguments. The first one is made
    here, and all later ones have the same arguments.

    Args:
        tokenizer: has all its tokens; those added later may be typed into messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        tokenizer("", add_special_tokens=False)
        added = tokenizer.added_tokens_decoder.values()
        self._special = [token.content for token in added if token.special]
        self._others = [token.content for token in added if not token.special]
        self._latest: tuple[str, _Typed] | None = None

    def encode(
        self,
        prompt: str | Messages,
        device: torch.device | None = None,
        context: int | None = None,
        /,
        **template: Any,
    ) -> Encoded:
        """`input_ids` and `attention_mask`, `[1, n]`, of a text or of chat messages.

        The ids are those of the tokenizer and of its `apply_chat_template`, except where a message
        has a control token in it, such as `<|im_end|>`: there it is text, and ends nothing. In a
        text that is no message it counts as what it is.

        Args:
            prompt: a text as it stands, or `[{"role": "user", "content": …}, …]`, if the tokenizer
                has a chat template.
            device: where the tensors are put.
            context: tokens beyond which a prompt need not be encoded; None for any number.
            template: for `apply_chat_template`; what that does not know reaches the template.
                Unless `add_generation_prompt` or `continue_final_message` says otherwise, an answer
                begins.

        Raises:
            ConfigError: there is no chat template.
            PromptError: nothing comes of the prompt, the template refuses it, or more control
                tokens were typed than `context` has room for.
            UnsupportedArgument: an argument of `apply_chat_template` about the tokenizer, such as
                `truncation`.
        """
        if isinstance(prompt, str):
            found: Any = self.tokenizer(prompt, return_tensors="pt")
        elif self.tokenizer.chat_template is None:
            raise ConfigError("the tokenizer has no chat template; pass the prompt as one text")
        else:
            found = self._encode_messages(prompt, context, template)
        if found["input_ids"].shape[-1] == 0:
            raise PromptError("the prompt is empty; give it some text")
        # Whatever else a tokenizer returns (`token_type_ids`, say) is for models of other kinds.
        names = ("input_ids", "attention_mask")
        return {name: found[name].to(device) for name in names if name in found}

    def _encode_messages(
        self, messages: Messages, context: int | None, template: dict[str, Any]
    ) -> Any:
        for name in sorted((TEMPLATE_ARGUMENTS - FOR_RENDERING) & template.keys()):
            raise UnsupportedArgument(name, f"{name} is not for the chat template; leave it out")
        template.setdefault("add_generation_prompt", not template.get("continue_final_message"))
        try:
            source = self.tokenizer.get_chat_template(
                template.get("chat_template"), template.get("tools")
            )
            typed = self._typed(source)
            is_typed = typed.is_in(messages, template)
            if is_typed:
                messages, template = typed.marked(messages, template)
            render: Any = self.tokenizer.apply_chat_template
            rendered: str = render(messages, tokenize=False, **template)
        except Exception as error:  # a template is a program: it may raise anything
            raise PromptError(
                f"the model's chat template refuses this: {str(error) or type(error).__name__}"
            ) from error
        if is_typed:
            return self._encode_marked(typed.marks.split(rendered), context)
        return self.tokenizer(rendered, add_special_tokens=False, return_tensors="pt")

    def _typed(self, source: str) -> _Typed:
        """For a template, mostly always the same one."""
        if self._latest is None or self._latest[0] != source:
            named = getattr(self.tokenizer, "chat_control_tokens", None) or ()
            written = [
                token
                for token in self._others
                if token in named or (token in source and not token.isspace())
            ]
            self._latest = source, _Typed.of(self._special, written)
        return self._latest[1]

    def _encode_marked(self, pieces: list[str | None], context: int | None) -> Encoded:
        """Ids of text and control tokens by turns; None stands for half a mark."""
        typed = [token for token in pieces[1::2] if token]
        if context is not None and len(typed) > context:  # each of them is a token at least
            raise PromptError(
                f"the prompt has {len(typed)} control tokens typed into it and there is room for "
                f"{context} tokens; shorten it",
                is_too_long=True,
            )
        start, *texts = pieces[0::2]
        ids_of_text = self._inside([*dict.fromkeys(text for text in texts if text)])
        ids_of_token = {token: self._as_text(token) for token in dict.fromkeys(typed)}
        ids: list[int] = self.tokenizer.encode(start or "", add_special_tokens=False)
        for token, text in zip(pieces[1::2], texts, strict=True):
            ids += ids_of_token[token] if token else []
            ids += ids_of_text[text] if text else []
        found = torch.tensor([ids], dtype=torch.long, device="cpu")
        return {"input_ids": found, "attention_mask": torch.ones_like(found)}

    def _inside(self, texts: list[str]) -> dict[str, list[int]]:
        """Ids of texts that others go before.

        They are encoded after a line break, which is taken away again: at the start of a text some
        tokenizers (SentencePiece's) put a space.
        """
        if not texts:
            return {}
        alone: Any = self.tokenizer(["\n", *("\n" + text for text in texts)], **PLAIN)["input_ids"]
        lead, *found = alone
        return {
            text: ids[len(lead) :]
            if ids[: len(lead)] == lead
            else self.tokenizer.encode(text, add_special_tokens=False)
            for text, ids in zip(texts, found, strict=True)
        }

    def _as_text(self, token: str) -> list[int]:
        """Ids of a control token's characters, where others go before them."""
        lead: list[int] = self.tokenizer.encode("\n", add_special_tokens=False)
        ids = self._characters("\n" + token)
        ids = ids[len(lead) :] if ids[: len(lead)] == lead else self._characters(token)
        if self.tokenizer.convert_tokens_to_ids(token) in ids:
            raise PromptError(f"the tokenizer cannot read {token} as text; leave it out")
        return ids

    def _characters(self, text: str) -> list[int]:
        """Ids of `text` without tokens that were added to the tokenizer; changes no setting."""
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            ids: list[int] = self.tokenizer.encode(
                text, add_special_tokens=False, split_special_tokens=True
            )
            return ids
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        words = [text]
        if backend.pre_tokenizer is not None:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [one.id for word in words for one in backend.model.tokenize(word)]


@dataclass(frozen=True)
class _Typed:
    """Finds control tokens that somebody wrote into a message.

    Those are special tokens, and others that the chat template writes or the tokenizer names as
    such. Models write the latter themselves (`<think>`), so that they stand in answers that are
    sent back.

    Attributes:
        anywhere: special tokens.
        asked: special tokens and others.
        marks: splits at any of them that is marked, and at half a mark.
    """

    anywhere: re.Pattern[str]
    asked: re.Pattern[str]
    marks: re.Pattern[str]

    @classmethod
    def of(cls, special: list[str], written: list[str]) -> _Typed:
        anywhere, asked = _any_of(special), _any_of([*special, *written])
        marks = re.compile(f"{OPEN}({asked.pattern}){CLOSE}|[{OPEN}{CLOSE}]")
        return cls(anywhere, asked, marks)

    def is_in(self, messages: Messages, template: dict[str, Any]) -> bool:
        return any(self.asked.search(text) for text in _strings(template)) or any(
            self._in(message).search(text) for message in messages for text in _strings(message)
        )

    def marked(
        self, messages: Messages, template: dict[str, Any]
    ) -> tuple[Messages, dict[str, Any]]:
        """Both with marks around what was typed; the template itself is not touched."""
        own = {name: template[name] for name in ("chat_template",) if name in template}
        return (
            [_marked(message, self._in(message)) for message in messages],
            {**_marked(template, self.asked), **own},
        )

    def _in(self, message: dict[str, str]) -> re.Pattern[str]:
        return self.anywhere if message.get("role") == "assistant" else self.asked


def _any_of(tokens: list[str]) -> re.Pattern[str]:
    """The longest first: one may begin as another does."""
    longest = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest))) if longest else NOTHING


def _marked(value: Any, tokens: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        value = value.replace(OPEN, "").replace(CLOSE, "")  # nobody forges them
        return tokens.sub(lambda found: f"{OPEN}{found[0]}{CLOSE}", value)
    if isinstance(value, dict):
        return {name: _marked(one, tokens) for name, one in value.items()}
    return [_marked(one, tokens) for one in value] if isinstance(value, list | tuple) else value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _strings(one)
