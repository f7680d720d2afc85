"""Questions behind thousands of tokens of text, for `swift-sd bench --questions`.

    .venv/bin/python benchmarks/long.py /tmp/long.jsonl --tokens 7900
    .venv/bin/swift-sd bench --questions /tmp/long.jsonl --methods plain,swift --out …

The text is the built-in suite's own, question after question, beginning with another one each time.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from swift_sd.bench.questions import suite
from swift_sd.loading import DEFAULT_MODEL, load

ASK = "Above are notes from a desk. Sum up in a few sentences what their writer is busy with."


def main(
    out: Annotated[Path, typer.Argument(help="The file of questions.")],
    model: Annotated[
        str, typer.Option(help="Whose tokens are counted, as for swift-sd.")
    ] = DEFAULT_MODEL,
    tokens: Annotated[int, typer.Option(min=100, help="Of each prompt, about.")] = 7900,
    count: Annotated[int, typer.Option(min=1, max=24, help="Questions.")] = 3,
) -> None:
    """Write COUNT questions of about TOKENS tokens."""
    _, tokenizer = load(model)
    texts = [turn for question in suite("builtin") for turn in question.turns]
    lines = []
    for number in range(count):
        words: list[str] = []
        begin = number * len(texts) // count
        while len(tokenizer("\n\n".join(words)).input_ids) < tokens - 60:
            words.append(texts[(begin + len(words)) % len(texts)])
        turn = "\n\n".join([*words, ASK])
        lines.append({"question_id": number, "group": "long", "turns": [turn]})
    out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
