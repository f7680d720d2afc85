"""Stop strings end a response at the same token as in plain decoding, also inside a draft."""

import pytest
import torch

from swift_sd import Swift
from swift_sd.config import SwiftConfig
from swift_sd.model.layer_set import LayerSet

FREE = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 30}


@pytest.fixture
def answer(model_of, tokenizer, prompt) -> str:
    return tokenizer.decode(model_of().generate(prompt(), **FREE)[0, 12:])


@pytest.fixture(params=["none", "unified"])
def config(request) -> SwiftConfig:
    layer_set = getattr(LayerSet, request.param)(5)
    return SwiftConfig(layer_set=layer_set, max_draft_tokens=6, early_stop=0)


@pytest.mark.parametrize("begin", [0, 1, 5, 9, 20])
@pytest.mark.parametrize("length", [1, 3])
def test_it_ends_behind_the_stop_string(model_of, tokenizer, prompt, answer, config, begin, length):
    model = model_of()
    stop = answer[begin : begin + length]
    expected = model.generate(prompt(), stop_strings=[stop], tokenizer=tokenizer, **FREE)
    swift = Swift(model, config=config)
    actual = swift.generate(prompt(), stop_strings=[stop], tokenizer=tokenizer, **FREE)
    assert torch.equal(actual, expected)
    assert tokenizer.decode(actual[0, 12:]).endswith(stop)


def test_the_objects_own_tokenizer_serves_too(model_of, tokenizer, prompt, answer, config):
    model = model_of()
    swift = Swift(model, tokenizer, config)
    for stop in (answer[4:6], [answer[9:12], "never there"]):
        expected = model.generate(prompt(), stop_strings=stop, tokenizer=tokenizer, **FREE)
        assert torch.equal(swift.generate(prompt(), stop_strings=stop, **FREE), expected)


def test_the_users_own_criteria_are_kept_beside_it_and_not_added_to(
    model_of, tokenizer, prompt, answer, config
):
    seen = []

    def criterion(ids, scores):
        seen.append(ids.shape[1])
        return torch.tensor([False])

    criteria = [criterion]
    swift = Swift(model_of(), tokenizer, config)
    out = swift.generate(prompt(), stop_strings=answer[6:9], stopping_criteria=criteria, **FREE)
    assert seen == list(range(13, out.shape[1] + 1))
    assert criteria == [criterion]


def test_a_stream_ends_there_as_well(model_of, tokenizer, config):
    swift = Swift(model_of(), tokenizer, config)
    kwargs = {**FREE, "max_new_tokens": 60}
    whole = "".join(swift.stream("hello there", **kwargs))
    stop = whole[10:13]
    stopped = "".join(swift.stream("hello there", stop_strings=stop, **kwargs))
    assert stopped == whole[: whole.index(stop) + 3]
