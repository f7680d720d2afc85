"""`swift-sd chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from swift_sd.cli import options
from swift_sd.cli.session import (
    fitting_tokens,
    opened,
    set_seed,
    stream_answer,
)
from swift_sd.cli.settings import (
    BYTE_ORDER_MARK,
    checked_text,
    draft_config,
    profile_of,
    sampling_arguments,
)
from swift_sd.cli.terminal import fail, figures, note, write
from swift_sd.errors import ConfigError, PromptError
from swift_sd.loading import DEFAULT_MODEL

if TYPE_CHECKING:
    from swift_sd.cli.session import Answer
    from swift_sd.prompts import Messages
    from swift_sd.swift import Swift

EPILOG = """[bold]Examples[/bold]

  swift-sd chat

  swift-sd chat --system "You are a pirate." --temperature 0.8

[bold]In the chat[/bold]

  /help  /reset  /report  /exit; Ctrl-C stops an answer, Ctrl-D ends the chat.
"""
HELP = """\
/reset   forget the conversation
/report  what the last answer cost, and whether it was faster
/exit    end the chat (so does Ctrl-D)
/help    this
Ctrl-C stops an answer; what was said so far stays in the conversation."""
BOLD = "\001\033[1m\002{}\001\033[0m\002"  # \001 and \002 tell readline what takes no room


def chat(
    model: options.Model = DEFAULT_MODEL,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    max_new_tokens: options.MaxNewTokens = 512,
    system: options.System = None,
    plain: options.Plain = False,
    layer_set: options.LayerSetFile = None,
    max_draft_tokens: options.MaxDraftTokens = None,
    early_stop: options.EarlyStop = None,
    exact: options.Exact = None,
    draft_bits: options.DraftBits = None,
    keep_copies: options.KeepCopies = False,
    profile: options.Profile = "auto",
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    seed: options.Seed = None,
) -> None:
    """Talk with a model. Answers go to stdout, figures to stderr."""
    config = draft_config(
        plain, layer_set, max_draft_tokens, early_stop, exact, draft_bits, keep_copies
    )
    arguments = sampling_arguments(temperature, top_p, top_k)
    checked_text("--system", system)
    with opened(
        model, dtype=dtype, device=device, config=config, profile=profile_of(profile)
    ) as swift:
        if getattr(swift.tokenizer, "chat_template", None) is None:
            raise ConfigError(
                f"{model} has no chat template: use an instruction-tuned model, or "
                "swift-sd generate --raw"
            )
        set_seed(seed)
        if sys.stdin.isatty():
            figures(f"{model}: /help for help, Ctrl-D to leave\n")
        Chat(swift, system, max_new_tokens, arguments).run()


class Chat:
    """One conversation and the loop around it.

    Args:
        swift: answers; its tokenizer has a chat template.
        system: opens the conversation, if given.
        max_new_tokens: longest answer.
        arguments: for `swift.steps`: how a token is chosen.
    """

    def __init__(
        self, swift: Swift, system: str | None, max_new_tokens: int, arguments: dict[str, Any]
    ) -> None:
        self._swift = swift
        self._opening: Messages = [{"role": "system", "content": system}] if system else []
        self._messages: Messages = list(self._opening)
        self._max_new_tokens = max_new_tokens
        self._arguments = arguments
        self._prompt = _prompt_line()

    def run(self) -> None:
        """Read and answer until the user leaves: /exit, Ctrl-D, or Ctrl-C at the prompt."""
        while True:
            try:
                line = input(self._prompt).removeprefix(BYTE_ORDER_MARK).strip()
            except (EOFError, KeyboardInterrupt):
                if self._prompt:
                    print()  # the shell's prompt starts on a line of its own
                return
            except UnicodeDecodeError:
                raise PromptError("stdin is not UTF-8 text: convert it first") from None
            if line == "/exit":
                return
            try:
                self._react(line)
            except KeyboardInterrupt:  # in a report, or just before or behind an answer
                write("\n")

    def _react(self, line: str) -> None:
        if line == "/reset":
            self._messages = list(self._opening)
            note("a new conversation")
        elif line == "/report":
            figures(self._swift.report() if self._swift.trace else "nothing was answered yet")
        elif line == "/help":
            figures(HELP)
        elif line.startswith("/"):
            note(f"there is no command {line.split()[0]}; /help lists them")
        elif line:
            self._say(line)

    def _say(self, text: str) -> None:
        """Answer `text`; a turn that came to nothing is not kept."""
        messages = [*self._messages, {"role": "user", "content": text}]
        try:
            checked_text("the message", text)
            answer = self._answer(messages)
        except PromptError as error:
            fail(f"{error} (/reset starts a new conversation)")
            return
        if answer.text:
            self._messages = [*messages, {"role": "assistant", "content": answer.text}]
        if answer.token_ids and self._swift.trace is not None:
            stopped = ", stopped" if answer.interrupted else ""
            figures(_one_line(self._swift.trace.summary()) + stopped + "\n")

    def _answer(self, messages: Messages) -> Answer:
        inputs = self._swift.encode(messages)
        prompt_tokens = inputs["input_ids"].shape[1]
        room = fitting_tokens(self._swift, prompt_tokens, self._max_new_tokens)
        answer = stream_answer(
            self._swift, inputs, {**self._arguments, "max_new_tokens": room}, write
        )
        write("\n")
        if len(answer.token_ids) == room < self._max_new_tokens:
            context = self._swift.context_length
            note(f"the model's context of {context} tokens is full; /reset starts a new one")
        return answer


def _prompt_line() -> str:
    """What stands before the user's words: nothing if they do not come from a terminal."""
    if not sys.stdin.isatty():
        return ""
    try:
        import readline  # noqa: F401 - importing it gives `input` line editing and a history
    except ImportError:
        return "> "
    return BOLD.format("> ") if sys.stdout.isatty() else "> "


def _one_line(summary: dict[str, Any]) -> str:
    line = f"{summary['new_tokens']} tokens, {summary['tokens_per_second'] or 0:.1f} tokens/s"
    if summary["drafted_tokens"]:
        line += (
            f", {summary['acceptance_rate']:.0%} of {summary['drafted_tokens']} drafted accepted"
        )
    return line
