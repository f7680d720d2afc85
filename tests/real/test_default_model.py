"""The default model, its real weights and tokenizer."""

import pytest
import torch

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.loading import load

pytestmark = pytest.mark.real

PROMPTS = {
    "question": "Why do leaves turn red in autumn?",
    "translation": "Translate to French: The train leaves at seven in the morning.",
    "summary": (
        "Summarise in one sentence: The town council met on Monday to discuss the old bridge. "
        "Engineers had found cracks in two of its pillars. Repairs would take a year and cost more "
        "than a new one, but many residents want to keep it. A vote is planned for next month."
    ),
    "code": "Write a Python function that returns the sum of the squares of a list of numbers.",
    "arithmetic": "A box holds 12 eggs. How many eggs are in 7 boxes? Think step by step.",
    "story": "Tell the beginning of a story about a lighthouse keeper and a lost whale.",
}
NEW = 24


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def loaded(request):
    return request.param, *load(dtype=request.param)


@pytest.mark.parametrize("kind", PROMPTS)
def test_it_answers(loaded, kind):
    dtype, model, tokenizer = loaded
    # Few sublayers, so that drafts are accepted as well as refused.
    layer_set = LayerSet(model.config.num_hidden_layers, attention=[8, 15, 21], mlp=[12])
    config = SwiftConfig(layer_set=layer_set, max_draft_tokens=6, early_stop=0.5)
    swift = Swift(model, tokenizer, config)
    inputs = swift.encode([{"role": "user", "content": PROMPTS[kind]}])
    request = {**inputs, "do_sample": False, "max_new_tokens": NEW}
    expected = model.generate(**request)[0].tolist()
    output = swift.generate(**request)[0].tolist()
    prompt = inputs["input_ids"].shape[1]
    if dtype == "float32":
        assert output == expected
    else:  # rounding may decide a near-tie otherwise, but not before the first draft
        assert output[: prompt + 1] == expected[: prompt + 1]
    assert tokenizer.decode(output[prompt:], skip_special_tokens=True).strip()
    summary = swift.trace.summary()
    assert summary["new_tokens"] == len(output) - prompt
    assert summary["accepted_tokens"] > 0


def test_streamed_text_is_the_decoded_answer(loaded):
    _, model, tokenizer = loaded
    swift = Swift(model, tokenizer)
    messages = [{"role": "user", "content": PROMPTS["story"]}]
    text = "".join(swift.stream(messages, do_sample=False, max_new_tokens=NEW))
    assert text == tokenizer.decode(swift.trace.token_ids, skip_special_tokens=True)
    assert "plain" in swift.report()


def test_the_weights_are_shared_not_copied(loaded):
    _, model, _ = loaded
    before = {name: tensor.data_ptr() for name, tensor in model.named_parameters()}
    swift = Swift(model, config=SwiftConfig(layer_set=LayerSet.every(30)))
    swift.generate(torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=4)
    assert {name: tensor.data_ptr() for name, tensor in model.named_parameters()} == before


@pytest.mark.parametrize(("bits", "least", "most"), [(4, 0.2, 0.3), (8, 0.4, 0.55), (16, 0, 0)])
def test_drafts_take_the_memory_that_is_said(loaded, bits, least, most):
    _, model, _ = loaded
    swift = Swift(model, config=SwiftConfig(draft_bits=bits))
    swift.generate(torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=2)
    assert least <= swift.trace.draft_view["bytes"] / (2 * model.num_parameters()) <= most
