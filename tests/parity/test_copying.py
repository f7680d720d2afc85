"""The default: copying beside the sub-network, only while it pays. Never another token."""

import pytest
import torch

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.testing.families import tiny_model

FAMILIES = ["llama", "mistral", "gemma3_text", "gpt2", "qwen3_moe", "bloom", "olmo2"]


@pytest.fixture(params=FAMILIES, scope="module")
def model(request):
    return tiny_model(request.param)


def prompts():
    noise = torch.Generator().manual_seed(3)
    phrase = torch.randint(3, 100, (1, 6), generator=noise)
    yield torch.randint(3, 100, (1, 1), generator=noise)
    yield phrase.repeat(1, 6)
    yield torch.cat([torch.randint(3, 100, (1, 30), generator=noise), phrase, phrase[:, :3]], dim=1)
    yield torch.full((1, 20), 7)


@pytest.mark.parametrize("arguments", [{"do_sample": False}, {"do_sample": True, "top_k": 4}])
def test_the_tokens_are_those_of_plain_decoding(model, arguments):
    swift = Swift(model, config=SwiftConfig(LayerSet.none(5)))
    used = set()
    for ids in prompts():
        asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 40, **arguments}
        torch.manual_seed(5)
        expected = model.generate(ids, **asked)
        state = torch.get_rng_state()
        torch.manual_seed(5)
        assert torch.equal(swift.generate(ids, **asked), expected)
        assert torch.equal(torch.get_rng_state(), state)
        used |= set(swift.trace.summary()["drafters"])
    assert used  # by measured time; which of them is not for a test to say


def test_text_that_repeats_is_copied():
    """A target that goes on as before accepts nearly all of it."""
    model = tiny_model("llama")
    swift = Swift(model, config=SwiftConfig(LayerSet.every(5)))
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    steady = [
        lambda tokens, scores: scores.index_fill(
            -1, (tokens[0, -6:-5] if tokens.shape[1] > 5 else tokens[0, :1]), 1e3
        )
    ]
    out = swift.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        logits_processor=steady,
        max_new_tokens=96,
        do_sample=False,
        eos_token_id=None,
    )
    assert out[0].tolist() == [5, 6, 7, 8, 9, 10] * 17
    figures = swift.trace.summary()
    assert figures["drafters"]["copying"] >= 3
    assert figures["acceptance_rate"] > 0.9
    assert figures["tokens_per_forward"] > 3
