"""Models whose weights or layers are of other packages: quantised ones, and with adapters."""

import pytest
import torch

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.testing.families import tiny_model

LAYERS = 3
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 128,
}
CONFIG = SwiftConfig(LayerSet(LAYERS, [1], []), 5, early_stop=0.0, draft_bits=8)
IDS = torch.tensor([[5, 17, 33, 9, 70, 21, 8, 44, 90, 12, 61]])
GREEDY = {
    "attention_mask": torch.ones_like(IDS),
    "do_sample": False,
    "eos_token_id": None,
    "max_new_tokens": 20,
}


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def model(request):
    if request.param is torch.bfloat16:
        request.getfixturevalue("whole_trial")
    return tiny_model("llama", layers=LAYERS, **SHAPE).to(request.param)


def assert_same(model, swift):
    expected = model.generate(IDS, **GREEDY)
    assert torch.equal(swift.generate(IDS, **GREEDY), expected)
    return expected


@pytest.mark.filterwarnings("ignore")  # torchao's own, when it is imported
@pytest.mark.parametrize("config", [CONFIG, SwiftConfig.plain()], ids=["drafting", "plain"])
def test_weights_that_are_quantised_already_give_the_models_tokens(model, config):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert type(model.model.layers[0].mlp.up_proj.weight) is not torch.nn.Parameter
    swift = Swift(model, config=config)
    assert_same(model, swift)
    if config.max_draft_tokens:
        view = swift.trace.summary()["draft_view"]
        assert view["bits"] == 16
        assert "no packed kernels" in view["why_not_rounded"]
        assert swift.trace.summary()["accepted_tokens"]


@pytest.mark.filterwarnings("ignore")
def test_adapters_may_be_switched_disabled_and_merged_between_responses(model):
    peft = pytest.importorskip("peft")

    def settings():
        modules = ["q_proj", "v_proj", "up_proj"]
        return peft.LoraConfig(r=8, target_modules=modules, init_lora_weights=False)

    adapted = peft.get_peft_model(model, settings(), "one")
    adapted.add_adapter("two", settings())
    adapted.set_adapter("one")
    model.eval()
    swift = Swift(model, config=CONFIG)
    one = assert_same(model, swift)
    adapted.set_adapter("two")
    two = assert_same(model, swift)
    with adapted.disable_adapter():
        none = assert_same(model, swift)
    adapted.set_adapter("one")
    assert torch.equal(assert_same(model, swift), one)
    adapted.merge_adapter()
    assert_same(model, swift)
    adapted.unmerge_adapter()
    assert_same(model, swift)
    adapted.merge_and_unload()
    assert_same(model, swift)
    assert len({str(each.tolist()) for each in (one, two, none)}) == 3
    assert model.dtype == torch.float32 or swift.trace.exact
