"""The run itself: every method timed next to `hf`, question by question."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from swift_sd.bench.catalogue import HF, METHODS
from swift_sd.bench.conversation import encoded_turn
from swift_sd.bench.journal import Entry, Journal
from swift_sd.bench.method import Answer, Method, Subject
from swift_sd.bench.questions import Question, limited
from swift_sd.bench.records import make_record
from swift_sd.bench.settings import Settings
from swift_sd.bench.stopwatch import Timing, reference_seconds, seed_for, timed

if TYPE_CHECKING:
    from torch import Tensor

Key = tuple[int | str, int, str]  # question, turn, method
Inputs = dict[str, "Tensor"]  # of one turn
WARM_UP = "Name three fruits and say what each of them tastes like."
WARM_UP_TOKENS = 16
REFERENCES = 10  # about so many timings of the reference work over a run


class Runner:
    """Times what `settings` asks for and writes it into `journal`.

    Methods go two by two with one answer of `hf` between them, so that each is timed right before
    or right after it; the order turns round from question to question and from repeat to repeat.
    Setting one up comes before, and is not counted. A conversation goes on with what `hf` answered,
    so that all methods do the same work; one that a run is taken up in the middle of is told anew.

    Args:
        subject: model, tokenizer and what some methods need besides.
        questions: what to ask, in this order.
        journal: what it already holds is not timed again.
        methods, clock: for tests; methods by name, and what tells the seconds.

    Raises:
        ConfigError: there are no questions.
    """

    def __init__(
        self,
        subject: Subject,
        questions: Sequence[Question],
        settings: Settings,
        journal: Journal,
        methods: Mapping[str, type[Method]] = METHODS,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._subject = subject
        self._clock = clock
        self._questions = limited(questions, None)
        self._settings = settings
        self._journal = journal
        self.skipped: dict[str, str] = {
            entry["method"]: entry["reason"] for entry in journal.of_kind("skipped")
        }
        self._methods: dict[str, Method] = {}
        for name in (HF, *settings.methods):
            method = methods[name](subject)
            known = self.skipped.get(name)
            reason = method.unavailable() if name not in self._methods and not known else known
            if reason is None:
                self._methods[name] = method
            else:
                self.skipped[name] = reason
        self._asked = [name for name in settings.methods if name in self._methods]
        self._done = {_key(record): record for record in journal.records}
        self._left_out = {_key(entry) for entry in journal.of_kind("left_out")}
        self._answers: dict[tuple[str, int], Answer] = {}
        self._set_up: dict[str, float] = {}  # seconds

    @property
    def total(self) -> int:
        """Records that a complete run has."""
        turns = sum(len(question.turns) for question in self._questions)
        return turns * len(self._asked) - self._of_asked(self._left_out)

    @property
    def missing(self) -> int:
        """Records still to be made."""
        return self.total - self._of_asked(self._done)

    def _of_asked(self, keys: Iterable[Key]) -> int:
        return sum(method in self._asked for *_, method in keys)

    def run(self) -> Iterator[Entry]:
        """Make the records that are missing; each is in the journal when it is yielded."""
        if not self.missing:
            return
        self._journal.append("start", {"records": len(self._done)})
        self._warm_up()
        self._time_reference()
        every = max(1, round(len(self._questions) / REFERENCES))
        for index, question in enumerate(self._questions):
            made = 0
            for record in self._question(index, question):
                made += 1
                yield record
            last = index == len(self._questions) - 1
            if (made and (index + 1) % every == 0) or last:
                self._time_reference()

    def _warm_up(self) -> None:
        """The first forward of everything is slow; nobody shall pay for it."""
        for name, method in list(self._methods.items()):
            with self._skipping(name):
                self._timed_warm_up(method.start())
        gc.collect()

    @contextmanager
    def _skipping(self, name: str) -> Iterator[None]:
        """Go on without a method of others that breaks; what breaks of ours is raised."""
        try:
            yield
        except Exception as error:
            if not self._methods[name].may_fail:
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            self._journal.append("skipped", {"method": name, "reason": reason})
            self.skipped[name] = reason
            self._asked.remove(name)

    def _time_reference(self) -> None:
        answer = self._methods[HF].start()
        seconds = reference_seconds(lambda: self._timed_warm_up(answer))
        self._journal.append("reference", {"seconds": seconds, "records": len(self._done)})

    def _timed_warm_up(self, answer: Answer) -> Timing:
        inputs = encoded_turn(self._subject.model, self._subject.tokenizer, [WARM_UP], [])
        tokens = min(WARM_UP_TOKENS, self._room(inputs))
        # Always as many tokens, wherever the model would end.
        arguments = {
            **self._settings.generate_arguments(),
            "max_new_tokens": tokens,
            "min_new_tokens": tokens,
        }
        return timed(answer, inputs, arguments, self._settings.seed, self._clock)

    def _question(self, index: int, question: Question) -> Iterator[Entry]:
        if not self._settings.stream:
            self._answers.clear()
            gc.collect()  # objects in cycles keep their copies: they go now, not in a timed answer
        answers: list[str] = []
        asked_before: list[Inputs] = []
        for turn in range(len(question.turns)):
            if self._rest_is_left_out(question, turn):
                return
            inputs = encoded_turn(
                self._subject.model, self._subject.tokenizer, question.turns[: turn + 1], answers
            )
            if not self._room(inputs):
                for rest in range(turn, len(question.turns)):
                    self._leave_out(question, rest, inputs["input_ids"].shape[1])
                return
            asked = tuple(self._asked)
            for names in (asked[first : first + 2] for first in range(0, len(asked), 2)):
                for record in self._beside_hf(index, question, names, [*asked_before, inputs]):
                    self._journal.append("record", record)
                    self._done[_key(record)] = record
                    yield record
            if not self._asked:
                return
            said = self._done[question.question_id, turn, self._asked[0]]["hf_token_ids"]
            tokenizer: Any = self._subject.tokenizer
            answers.append(tokenizer.decode(said, skip_special_tokens=True))
            asked_before.append(inputs)

    def _beside_hf(
        self, index: int, question: Question, names: Sequence[str], turns: Sequence[Inputs]
    ) -> Iterator[Entry]:
        """The records that are missing of one or two methods, at the last of these turns."""
        *before, inputs = turns
        turn = len(before)
        missing = [name for name in names if (question.question_id, turn, name) not in self._done]
        if not missing:
            return
        settings = self._settings
        # `hf` as a method of its own is timed twice: what it shows is the noise.
        order = [names[0], None, *names[1:]]
        timings: dict[str | None, list[Timing]] = {name: [] for name in order}
        for repeat in range(settings.repeats):
            ready: dict[str | None, Answer] = {}
            for name in (None, *missing):
                with self._skipping(name or HF):
                    ready[name] = self._started(name or HF, repeat, question, before)
            for name in reversed(order) if (index + repeat) % 2 == 0 else order:
                if name in ready:
                    with self._skipping(name or HF):
                        timing = self._timed(ready[name], inputs, question, turn)
                        timings[name].append(timing)
            missing = [name for name in missing if name not in self.skipped]
        prompt_tokens = inputs["input_ids"].shape[1]
        greedy = settings.temperature == 0
        for name in missing:
            record = make_record(
                question, turn, index, name, prompt_tokens, timings[name], timings[None], greedy
            )
            yield {**record, "set_up_seconds": self._set_up.get(name)}

    def _timed(self, answer: Answer, inputs: Inputs, question: Question, turn: int) -> Timing:
        room = min(self._settings.max_new_tokens, self._room(inputs))
        arguments = {**self._settings.generate_arguments(), "max_new_tokens": room}
        seed = seed_for(self._settings.seed, question.question_id, turn)
        return timed(answer, inputs, arguments, seed, self._clock)

    def _started(
        self, name: str, repeat: int, question: Question, before: Sequence[Inputs]
    ) -> Answer:
        """Each repeat has a state of its own: nothing learned from the same prompt before."""
        key = (name, repeat)
        if key not in self._answers:
            begin = self._clock()
            answer = self._methods[name].start()
            self._set_up[name] = self._clock() - begin
            if not self._settings.stream:  # else another process met more than these turns
                for turn, inputs in enumerate(before):
                    self._timed(answer, inputs, question, turn)
            self._answers[key] = answer
        return self._answers[key]

    def _room(self, inputs: Inputs) -> int:
        """New tokens for which the model's context has room."""
        if self._subject.context is None:
            return self._settings.max_new_tokens
        return max(0, self._subject.context - inputs["input_ids"].shape[1])

    def _rest_is_left_out(self, question: Question, turn: int) -> bool:
        """From `turn` on, all of it: a run may have been killed between two entries."""
        return all(
            (question.question_id, rest, name) in self._left_out
            for rest in range(turn, len(question.turns))
            for name in self._asked
        )

    def _leave_out(self, question: Question, turn: int, prompt_tokens: int) -> None:
        """A prompt that the model cannot read is left out for every method, and said to be."""
        for name in self._asked:
            entry = {
                "question_id": question.question_id,
                "group": question.group,
                "turn": turn,
                "method": name,
                "prompt_tokens": prompt_tokens,
            }
            self._journal.append("left_out", entry)
            self._left_out.add(_key(entry))


def _key(entry: Entry) -> Key:
    return entry["question_id"], entry["turn"], entry["method"]
