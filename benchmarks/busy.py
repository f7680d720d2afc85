"""Objects made on a busy machine: how long that takes, and how fast they are when it is quiet.

    .venv/bin/python benchmarks/busy.py measure MODEL --questions FILE.jsonl --out busy.json

Processes make a `Swift` each, several at once or beside a load, and answer three questions. Then
each answers the next questions in turn with a process whose object was made alone on the quiet
machine, and is compared with it question by question; nothing else runs then. A load is two
processes that compute without end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

WARM = 3  # answers before anything is compared
SPIN = "while True: pass"
LOADS = 2  # processes
# By name: objects made at once, whether beside a load, and for each answer whether beside one.
SCENARIOS: dict[str, tuple[int, bool, tuple[bool, ...]]] = {
    "alone": (1, False, ()),
    "two at once": (2, False, ()),
    "four at once": (4, False, ()),
    "a load that stops after the object was made": (1, True, ()),
    "a load that starts later": (1, False, (False, True, True, True)),
    "a load that comes and goes": (1, False, (True, False, True, False, True, False, True)),
}


class Worker:
    """A process with a model, and with an object once `make` was called."""

    def __init__(self, model: str, questions: Path) -> None:
        command = [sys.executable, __file__, "worker", model, str(questions)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answered = 0
        self.reply()

    def ask(self, order: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()

    def reply(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a worker ended; its error is above")
        answer: dict[str, float] = json.loads(line)
        return answer

    def answer(self, number: int) -> dict[str, float]:
        self.ask(f"answer {number}")
        return self.reply()

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()


@contextmanager
def load(wanted: bool) -> Any:
    spinning = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(LOADS * wanted)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def run(name: str, model: str, questions: Path, reference: Worker, answers: int) -> dict[str, Any]:
    count, made_busy, busy = SCENARIOS[name]
    workers = [Worker(model, questions) for _ in range(count)]
    try:
        with load(made_busy):
            for worker in workers:
                worker.ask("make")
            made = [worker.reply()["seconds"] for worker in workers]
        for number, is_busy in enumerate(busy):
            with load(is_busy):
                for worker in workers:
                    worker.answer(number)
        for number in range(WARM):
            for worker in workers:
                worker.answer(len(busy) + number)
        shares: list[list[float]] = [[] for _ in workers]
        lengths: list[list[float]] = [[] for _ in workers]
        for number in range(answers):
            place = len(busy) + WARM + number
            for each, worker in enumerate(workers):
                turns = [reference, worker] if number % 2 else [worker, reference]
                found = {one: one.answer(place) for one in turns}
                shares[each].append(found[worker]["speed"] / found[reference]["speed"])
                lengths[each].append(found[worker]["tokens_per_forward"])
    finally:
        for worker in workers:
            worker.end()
    return {
        "made_seconds": made,
        "speed": [{"median": median(s), "min": min(s), "max": max(s)} for s in shares],
        "tokens_per_forward": [median(each) for each in lengths],
    }


app = typer.Typer(add_completion=False)


@app.command()
def measure(
    model: Annotated[str, typer.Argument(help="As for swift-sd.")],
    questions: Annotated[Path, typer.Option(help="As for `swift-sd bench`.")],
    out: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")],
    answers: Annotated[int, typer.Option(min=2, help="To compare, for each object.")] = 6,
    only: Annotated[list[str] | None, typer.Option(help="Scenarios.")] = None,
) -> None:
    """Speeds are multiples of those of an object that was made alone on the quiet machine."""
    results: dict[str, Any] = {}
    for name in only or SCENARIOS:
        # Anew each time: one that has answered the same questions before remembers their tokens.
        reference = Worker(model, questions)
        try:
            reference.ask("make")
            alone = reference.reply()["seconds"]
            for number in range(WARM):
                reference.answer(len(SCENARIOS[name][2]) + number)
            found = results[name] = run(name, model, questions, reference, answers)
        finally:
            reference.end()
        found |= {"alone_seconds": alone, "making": max(found["made_seconds"]) / alone}
        figures = ", ".join(f"{each['median']:.2f}" for each in found["speed"])
        print(f"{name}: made in {found['making']:.1f} times, then {figures}", flush=True)
        out.write_text(json.dumps(results, indent=1) + "\n")


@app.command(hidden=True)
def worker(model: str, questions: Path) -> None:
    """Take orders from standard input."""
    from swift_sd import Swift
    from swift_sd.bench.questions import read_questions
    from swift_sd.loading import load as load_model

    asked = [question.turns[0] for question in read_questions(questions)]
    loaded, tokenizer = load_model(model)
    swift: Any = None
    print("{}", flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        if line.strip() == "make":
            swift = Swift(loaded, tokenizer)
            found = {"seconds": time.perf_counter() - begin}
        else:
            text = asked[int(line.split()[1]) % len(asked)]
            ids = swift.encode([{"role": "user", "content": text}])
            swift.generate(**ids, do_sample=False, max_new_tokens=96)
            summary = swift.trace.summary()
            seconds = summary["seconds"] - summary["time_split"]["prefill"]
            found = {
                "speed": (summary["new_tokens"] - 1) / seconds,
                "tokens_per_forward": summary["tokens_per_forward"],
            }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    app()
