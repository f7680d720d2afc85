"""What a model is asked at a turn: everything said so far, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
        PromptError: the chat template refuses the conversation.
    """
    from swift_sd.prompts import encoded

    if getattr(tokenizer, "chat_template", None) is None:
        texts = [turns[0]]
        for answer, turn in zip(answers, turns[1:], strict=True):
            texts += [answer, turn]
        return encoded(tokenizer, "\n\n".join(texts), model.device)
    messages = [{"role": "user", "content": turns[0]}]
    for answer, turn in zip(answers, turns[1:], strict=True):
        messages += [
            {"role": "assistant", "content": answer},
            {"role": "user", "content": turn},
        ]
    return encoded(tokenizer, messages, model.device)
