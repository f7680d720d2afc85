"""Rows verified together come out, to the bit, as plain decoding computes them one by one."""

import pytest
import torch
from torch import nn
from transformers import Phi4MultimodalConfig

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.adapting.experience import Experience
from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.drafting.growth import MAX_NODES
from swift_sd.model import exact_linear
from swift_sd.model.exact_linear import (
    EVERY,
    MOST,
    ColumnMajor,
    InPieces,
    as_it_is,
    exact_forms,
    put_around,
    row_by_row,
)
from swift_sd.model.exact_rows import ExactRows, copied_config, is_exact
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.sublayers import find_sublayers
from swift_sd.model.view import View
from swift_sd.testing.families import tiny_model

pytestmark = pytest.mark.usefixtures("whole_trial")

TREE = DraftTree([11, 12, 13, 14, 15, 16, 17], [-1, 0, 1, -1, 0, 4, 3])


@pytest.fixture(scope="module", params=["llama", "qwen2", "mistral", "gemma3_text", "gpt2", "phi"])
def model(request):
    """In bfloat16, where the order of a sum shows."""
    return tiny_model(request.param, attn_implementation="sdpa").to(torch.bfloat16)


def exact(model):
    forms = exact_forms(model, 1.0)
    return ExactRows(model, find_sublayers(model), forms)


@pytest.mark.parametrize(
    ("tree", "length"),
    [(TREE, 1), (DraftTree.chain([11, 12, 13, 14]), 6), (TREE, 30)],
    ids=["tree-1", "chain-6", "tree-30"],
)
def test_each_row_is_what_it_is_alone(model, tree, length):
    view, plain = exact(model), View(model)
    prompt = torch.randint(3, 100, (1, length), generator=torch.Generator().manual_seed(1))
    rows = torch.tensor([[9, *tree.tokens]])
    cache = KVCache(attention_windows(model.config))
    plain.forward(prompt, cache)
    cache.commit(length)
    ancestry = None if tree.is_chain else tree.ancestry
    logits = view.forward(rows, cache, ancestry=ancestry)[0]
    written = [buffer.keys.clone() for buffer in cache.buffers]
    for row in range(len(tree) + 1):
        alone = KVCache(attention_windows(model.config))
        plain.forward(prompt, alone)
        path = rows[0, tree.ancestry[row]].tolist()
        for token in path:
            expected = plain.forward(torch.tensor([[token]]), alone)[0, -1]
        assert torch.equal(logits[row], expected)
        for keys, buffer, its in zip(written, cache.buffers, alone.buffers, strict=True):
            newest = its.tail(alone.cursor)[0][:, :, -1]
            assert torch.equal(keys[:, :, length + row - buffer.origin], newest)


def test_linear_layers_of_an_unknown_kind_go_row_by_row():
    """Their weights may be packed, and then have another shape than the layer."""

    class Packed(nn.Linear):
        pass

    model = tiny_model("llama").to(torch.bfloat16)
    plain = model.lm_head
    packed = Packed(plain.in_features, plain.out_features, bias=False, dtype=torch.bfloat16)
    packed.weight = nn.Parameter(torch.zeros(7, 1, dtype=torch.uint8), requires_grad=False)
    model.lm_head = packed
    assert exact_forms(model, 1.0)["lm_head"] is row_by_row


def test_more_rows_than_were_tried_are_computed_in_pieces():
    seen = []
    linear = nn.Linear(40, 24)
    linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-2]))
    rows = torch.randn(1, 2 * MOST + 3, 40)
    for form in (as_it_is, ColumnMajor):
        torch.testing.assert_close(
            put_around(linear, form)(rows), nn.functional.linear(rows, linear.weight, linear.bias)
        )
    assert seen == [MOST, MOST, 3] * 2


def test_on_a_gpu_every_number_of_rows_that_a_tree_may_have_is_tried():
    assert set(EVERY) == set(range(2, MAX_NODES + 2))


def test_the_check_sees_what_is_not_exact(model):
    assert is_exact(exact(model), model)
    wrong = exact(model)
    wrong.module = View(tiny_model(model.config.model_type, seed=1).to(torch.bfloat16)).module
    assert not is_exact(wrong, model)


def test_forms_compute_what_the_layer_computes():
    linear = nn.Linear(40, 24)
    rows = torch.randn(1, 5, 40)
    for form in (ColumnMajor, row_by_row):
        torch.testing.assert_close(form(linear)(rows), linear(rows))
        assert torch.equal(form(linear)(rows[:, :1]), linear(rows[:, :1]))


def test_the_share_of_rows_computed_alone_is_limited(monkeypatch):
    model = tiny_model("llama")
    alone = model.lm_head.weight.numel() / sum(
        module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear)
    )

    def form(linear, kernels):
        return row_by_row if linear is model.lm_head else as_it_is

    monkeypatch.setattr(exact_linear, "_exact_form", form)
    assert exact_forms(model, alone - 0.01) is None
    assert exact_forms(model, alone + 0.01)["lm_head"] is row_by_row


@pytest.mark.parametrize("form", [as_it_is, ColumnMajor, row_by_row])
def test_models_may_flatten_rows_before(form):
    linear = nn.Linear(2 * MOST, 24)
    rows = torch.randn(1, 3, 2 * MOST)
    around = put_around(linear, form)
    torch.testing.assert_close(around(rows[0]), linear(rows)[0])
    torch.testing.assert_close(around(rows), linear(rows))


@pytest.mark.parametrize("form", [as_it_is, ColumnMajor])
def test_what_has_become_another_layer_goes_row_by_row(form):
    class Adapted(nn.Linear):
        pass

    around = put_around(Adapted(40, 24), form)
    assert (type(around), around.most) == (InPieces, 1)


def test_a_wide_model_that_flattens_rows_is_served():
    model = tiny_model("opt", hidden_size=128, word_embed_proj_dim=128, ffn_dim=256)
    ids = torch.randint(3, 90, (1, 9), generator=torch.Generator().manual_seed(0))
    arguments = {"do_sample": False, "max_new_tokens": 24, "eos_token_id": None}
    assert torch.equal(Swift(model).generate(ids, **arguments), model.generate(ids, **arguments))


def test_the_model_is_not_touched(model):
    before = model.config.to_dict(), [id(module) for module in model.modules()]
    view = exact(model)
    view.forward(torch.tensor([[5, 6, 7]]), KVCache(attention_windows(model.config)))
    assert (model.config.to_dict(), [id(module) for module in model.modules()]) == before
    assert {id(p) for p in view.module.parameters()} == {id(p) for p in model.parameters()}


def test_the_parts_of_a_configuration_are_not_touched():
    """As those of images and sound, of a model whose text has no part of its own."""
    config = Phi4MultimodalConfig(attn_implementation="sdpa")
    copied_config(config)._attn_implementation = "another"
    assert config._attn_implementation == "sdpa"
    assert config.vision_config._attn_implementation == "sdpa"
    assert config.audio_config._attn_implementation == "sdpa"


def test_where_nothing_is_exact_near_ties_are_decided_again():
    model = tiny_model("llama", attn_implementation="eager")
    sublayers = find_sublayers(model)
    auto = Experience(model, sublayers, SwiftConfig())
    assert auto.tolerance > 0
    strict = Experience(model, sublayers, SwiftConfig(exact="strict"))
    assert strict.tolerance > auto.tolerance
    assert Experience(model, sublayers, SwiftConfig(exact="off")).tolerance == 0
    assert not auto.new_trace(prompt_tokens=1).exact
    assert Experience(model, sublayers, SwiftConfig.plain()).new_trace(prompt_tokens=1).exact


@pytest.mark.parametrize("seed", range(2))
def test_bfloat16_answers_are_the_plain_ones(model, seed):
    ids = torch.randint(3, 100, (1, 9), generator=torch.Generator().manual_seed(seed))
    config = SwiftConfig(LayerSet(5, [2], [3]), 5, early_stop=0.0, exact="strict")
    swift = Swift(model, config=config)
    for sampling in ({"do_sample": False}, {"do_sample": True, "top_k": 0}):
        asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 40, **sampling}
        torch.manual_seed(seed)
        expected = model.generate(ids, **asked)
        torch.manual_seed(seed)
        assert torch.equal(swift.generate(ids, **asked), expected)
        assert swift.trace.exact
