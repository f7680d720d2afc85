"""A model in front of which a command works, and one answer of it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swift_sd.cli.terminal import progress
from swift_sd.config import SwiftConfig

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from swift_sd.swift import Swift

CHATTY = r"(torch|transformers|huggingface_hub|tokenizers)(\.|$)"
# What transformers imports where it is installed, and what that makes torch say.
CHATTY_LOGGERS = ("torchao", "torch.utils._pytree")


@contextmanager
def loaded(name: str, *, dtype: str, device: str) -> Iterator[tuple[PreTrainedModel, Tokenizer]]:
    """The model `name` and its tokenizer; transformers is quiet until the end.

    Raises:
        SwiftError: there is no such model, or it cannot be loaded.
    """
    with progress("starting"):
        from swift_sd import loading
    with quiet_transformers():
        with progress("loading") as tell:
            model, tokenizer = loading.load(name, dtype=dtype, device=device, on_progress=tell)
        yield model, tokenizer


@contextmanager
def opened(
    name: str,
    *,
    dtype: str,
    device: str,
    config: SwiftConfig | None = None,
    profile: str | None = None,
) -> Iterator[Swift]:
    """The model `name` with its tokenizer, ready to draft; see `loaded`.

    Raises:
        SwiftError: there is no such model, it is not supported, or it does not fit the settings.
    """
    with loaded(name, dtype=dtype, device=device) as (model, tokenizer):
        with progress("looking for sublayers to skip"):
            from swift_sd.swift import Swift

            swift = Swift(model, tokenizer, config, profile)
        yield swift


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars, advice and warnings of transformers; its settings are put back after."""
    from transformers.utils import logging as chatter

    loggers = [logging.getLogger(name) for name in CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    verbosity = chatter.get_verbosity()
    chatter.set_verbosity(logging.ERROR)
    hook = chatter.set_tqdm_hook(
        lambda make_bar, args, kwargs: make_bar(*args, **{**kwargs, "disable": True})
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=CHATTY)
            yield
    finally:
        chatter.set_tqdm_hook(hook)
        chatter.set_verbosity(verbosity)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def set_seed(seed: int | None) -> None:
    """Make the sampling that follows repeatable, if a seed is given."""
    import torch

    if seed is not None:
        torch.manual_seed(seed)


def fitting_tokens(swift: Swift, prompt_tokens: int, wanted: int) -> int:
    """`wanted` new tokens, or as many as the context has room for.

    A prompt beyond the context is left to the library, which refuses it.
    """
    context = swift.context_length
    if context is None or context < prompt_tokens:
        return wanted
    return min(wanted, max(context - prompt_tokens, 1))


@dataclass(frozen=True)
class Answer:
    """What came out, `interrupted` by Ctrl-C or not."""

    text: str
    token_ids: list[int]
    interrupted: bool


def stream_answer(
    swift: Swift, inputs: dict[str, Tensor], arguments: dict[str, Any], write: Callable[[str], None]
) -> Answer:
    """Generate, giving each piece of text to `write` at once; Ctrl-C ends it with what there is."""
    from swift_sd.text import TextPieces

    assert swift.tokenizer is not None  # `opened` always gives one
    pieces = TextPieces(swift.tokenizer)
    token_ids: list[int] = []
    interrupted = False
    try:
        for step in swift.steps(**inputs, **arguments):
            token_ids += step.tokens
            for piece in pieces.add(step.tokens):
                write(piece)
    except KeyboardInterrupt:
        interrupted = True
    for piece in pieces.finish():
        write(piece)
    text = swift.tokenizer.decode(token_ids, skip_special_tokens=True)
    assert isinstance(text, str)  # one sequence, not a batch
    return Answer(text, token_ids, interrupted)
