"""What a model is asked at a turn: everything said so far, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from swift_sd.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def encoded_turn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[str],
    answers: Sequence[str],
) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, `[1, n]`, of a conversation whose last turn is unanswered.

    Without a chat template the texts follow one another, an empty line between them.

    Raises:
        ConfigError: the chat template refuses the conversation.
    """
    import jinja2

    call: Any = tokenizer
    if getattr(tokenizer, "chat_template", None) is None:
        texts = [turns[0]]
        for answer, turn in zip(answers, turns[1:], strict=True):
            texts += [answer, turn]
        encoded = call("\n\n".join(texts), return_tensors="pt", return_token_type_ids=False)
    else:
        messages = [{"role": "user", "content": turns[0]}]
        for answer, turn in zip(answers, turns[1:], strict=True):
            messages += [
                {"role": "assistant", "content": answer},
                {"role": "user", "content": turn},
            ]
        try:
            encoded = call.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        except jinja2.TemplateError as error:
            raise ConfigError(f"the model's chat template refuses this: {error}") from None
    return {
        name: encoded[name].to(model.device)
        for name in ("input_ids", "attention_mask")
        if name in encoded
    }
