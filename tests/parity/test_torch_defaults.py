"""The default device and dtype of torch, set by somebody else, are not taken for ours."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from swift_sd import Swift, SwiftConfig
from swift_sd.testing.families import tiny_model

CONFIGS = {
    "default": SwiftConfig(),
    "4 bits": SwiftConfig(draft_bits=4, early_stop=0.0),
    "torch": SwiftConfig(draft_bits=8, early_stop=0.0, compiled=False),
    "near-ties": SwiftConfig(draft_bits=16, early_stop=0.0, exact="strict", compiled=False),
    "recall": SwiftConfig(drafters=("copying", "recycling")),
    "eager": SwiftConfig(eager_search=True),
    "paper": SwiftConfig.paper(),
    "plain": SwiftConfig.plain(),
}
WAYS = {"greedy": {"do_sample": False}, "sampling": {"do_sample": True, "top_p": 0.9}}
COMMON = {"max_new_tokens": 24, "eos_token_id": None, "repetition_penalty": 1.2}


@contextmanager
def defaults(name: str) -> Iterator[None]:
    try:
        if name == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(getattr(torch, name))
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


COMPILED = ("default", "4 bits", "eager", "plain")  # in bfloat16, others in float32
CASES = [
    *(("meta", name) for name in CONFIGS),
    *(("float16", name) for name in ("default", "torch", "paper")),
    ("float64", "default"),
]


@pytest.fixture(scope="module")
def expected():
    """By dtype a model, a prompt, and what it makes of it."""
    ids = torch.tensor([[*range(5, 17), *range(5, 12)]])
    made = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model("llama", hidden_size=64, intermediate_size=128).to(dtype)
        tokens = {way: seeded(model.generate, ids, given) for way, given in WAYS.items()}
        made[dtype] = model, ids, tokens
    return made


def seeded(generate, ids, given):
    torch.manual_seed(1)
    return generate(ids, **COMMON, **given)


@pytest.mark.parametrize(("default", "name"), CASES)
def test_the_tokens_are_the_same_under_other_defaults(request, expected, default, name):
    if name in COMPILED:
        request.getfixturevalue("whole_trial")
    model, ids, tokens = expected[torch.bfloat16 if name in COMPILED else torch.float32]
    with defaults(default):
        swift = Swift(model, config=CONFIGS[name])
        found = {way: seeded(swift.generate, ids, given) for way, given in WAYS.items()}
        swift.report()
    for way in WAYS:
        assert torch.equal(found[way], tokens[way]), way


def test_text_is_read_under_other_defaults(model_of, swift_of, tokenizer):
    swift = swift_of(model_of(), tokenizer=tokenizer)
    asked = {"max_new_tokens": 12, "do_sample": False}
    plain = "".join(swift.stream("abc", **asked))
    with defaults("float64"):
        assert "".join(swift.stream("abc", **asked)) == plain
