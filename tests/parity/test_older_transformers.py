"""What transformers 5.16 and 5.17 hand on to a method of decoding is understood too."""

import pytest
import torch
from transformers import DynamicCache
from transformers.generation import BaseStreamer

from swift_sd.decoding import request as requests
from swift_sd.decoding import state as states
from swift_sd.errors import UnsupportedArgument
from swift_sd.model.kv_cache import generate_cache_name

CACHE = generate_cache_name()
FIXED = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 9}


@pytest.fixture(params=["5.16", "5.17"])
def as_older(request, monkeypatch):
    """`as_older(swift)`: called by `generate` as this version of transformers would."""
    if request.param == "5.16":
        for module, name in ((requests, "CACHES_ARE_MARKED"), (states, "CRITERIA_COME_FIRST")):
            monkeypatch.setattr(module, name, False)

    def around(swift):
        def method(model, input_ids, generation_config, **kwargs):
            if request.param == "5.16":
                vars(kwargs[CACHE]).pop("_is_user_defined", None)
            if kwargs.get("attention_mask") is None:  # it was not dropped if it was of ones
                length = vars(generation_config).pop("_mask_length", input_ids.shape[1])
                kwargs["attention_mask"] = torch.ones(1, length, dtype=torch.long)
            return swift(model, input_ids, generation_config=generation_config, **kwargs)

        return method

    return around


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("only_new", [False, True], ids=["all ids", "new ids"])
def test_a_conversation_goes_on_over_a_callers_cache(
    model_of, swift_of, prompt, as_older, family, only_new
):
    model = model_of(family)
    method = as_older(swift_of(model))
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    ids = prompt(12)
    for turn in range(3):
        given = ids[:, caches[0].get_seq_length() :] if only_new else ids
        asked = {"attention_mask": torch.ones_like(ids), **FIXED}
        expected = model.generate(given, **asked, **{CACHE: caches[0]})
        found = model.generate(given, **asked, **{CACHE: caches[1]}, custom_generate=method)
        assert torch.equal(found, expected)
        for one, other in zip(*(cache.layers for cache in caches), strict=True):
            assert one.get_seq_length() == other.get_seq_length() > 0
            torch.testing.assert_close(one.keys, other.keys)
        ids = torch.cat([ids, expected[:, given.shape[1] :], prompt(4, seed=turn)], dim=1)


def test_padding_is_left_out_and_refused_beside_a_prefix(model_of, swift_of, prompt, as_older):
    model = model_of()
    method = as_older(swift_of(model))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), prompt(9)], dim=1)
    asked = {"attention_mask": (padded != 0).long(), **FIXED}
    found = model.generate(padded, **asked, custom_generate=method)
    assert torch.equal(found, model.generate(padded, **asked))
    held = DynamicCache(config=model.config)
    with torch.no_grad():
        model(prompt(5), **{CACHE: held})
    with pytest.raises(UnsupportedArgument, match="padding"):
        model.generate(padded, **asked, **{CACHE: held}, custom_generate=method)


@pytest.mark.parametrize("streamer_comes_first", [False, True])
def test_a_token_is_heard_when_transformers_tells_it(
    model_of, swift_of, prompt, monkeypatch, streamer_comes_first
):
    """5.16 tells a streamer before it asks whether the response ends."""
    monkeypatch.setattr(states, "CRITERIA_COME_FIRST", not streamer_comes_first)
    events = []

    class Heard(BaseStreamer):
        def put(self, value):
            events.append("heard")

        def end(self):
            events.append("end")

    def asked(ids, scores):
        events.append("asked")
        return False

    swift = swift_of(model_of())
    swift.generate(prompt(), streamer=Heard(), stopping_criteria=[asked], **FIXED)
    each = ["heard", "asked"] if streamer_comes_first else ["asked", "heard"]
    assert events == ["heard", *each * 9, "end"]  # the prompt first
