"""A model that is changed after the object was made: what it gives now, not what it gave then."""

import copy
import gc
import types
import weakref
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.utils import parametrizations, prune
from transformers import AttentionInterface, GenerationConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama import modeling_llama

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.adapting import experiences
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
CONFIGS = {
    "drafting": SwiftConfig(
        LayerSet(LAYERS, [1], []), max_draft_tokens=5, early_stop=0.0, draft_bits=8
    ),
    "learning": SwiftConfig(eager_search=True),
    "plain": SwiftConfig.plain(),
}
IDS = torch.tensor([[5, 17, 33, 9, 70, 21, 8, 44, 90, 12, 61]])
GREEDY = {
    "attention_mask": torch.ones_like(IDS),
    "do_sample": False,
    "eos_token_id": None,
    "max_new_tokens": 16,
}


class Wrapper(nn.Module):
    """Steers what a layer hands on, as packages for control vectors do."""

    def __init__(self, block, strength):
        super().__init__()
        self.block, self.strength = block, strength

    def forward(self, *args, **kwargs):
        return self.block(*args, **kwargs) + self.strength


@contextmanager
def attribute(owner, name, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    yield
    setattr(owner, name, before)


@contextmanager
def class_forward(model):
    """As Liger and Unsloth patch transformers."""

    def forward(self, x):
        return self.down_proj(1.5 * self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    with attribute(modeling_llama.LlamaMLP, "forward", forward):
        yield


@contextmanager
def function_of_a_module(model):
    def rotated(q, k, cos, sin, unsqueeze_dim=1):
        return q, k

    with attribute(modeling_llama, "apply_rotary_pos_emb", rotated):
        yield


@contextmanager
def code_of_a_forward(model):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))

    with attribute(modeling_llama.LlamaMLP.forward, "__code__", forward.__code__):
        yield


@contextmanager
def registered_attention(model):
    def attention(module, query, key, value, mask, **options):
        return sdpa_attention_forward(module, 3 * query, key, value, mask, **options)

    AttentionInterface.register("sdpa", attention)
    yield
    AttentionInterface.register("sdpa", sdpa_attention_forward)


@contextmanager
def wrapped_layer(model):
    layers, before = model.model.layers, model.model.layers[1]
    layers[1] = Wrapper(before, torch.arange(128) % 3)
    yield
    layers[1] = before


@contextmanager
def wrapped_mlp(model):
    layer = model.model.layers[1]
    with attribute(layer, "mlp", Wrapper(layer.mlp, 1.5)):
        yield


@contextmanager
def other_layers(model):
    with attribute(model.model, "layers", tiny_like(model, 3).model.layers):
        yield


@contextmanager
def fewer_layers(model):
    with (
        attribute(model.model, "layers", nn.ModuleList(list(model.model.layers)[:-1])),
        attribute(model.config, "num_hidden_layers", LAYERS - 1),
    ):
        yield


@contextmanager
def global_hook(model):
    def steer(module, args, output):
        if isinstance(module, modeling_llama.LlamaMLP):
            return output * 1.5
        return None

    handle = register_module_forward_hook(steer)
    yield
    handle.remove()


@contextmanager
def global_hook_on_one_module(model):
    chosen = model.model.layers[LAYERS - 1]

    def steer(module, args, output):
        return output.flip(-1) if module is chosen else None

    handle = register_module_forward_hook(steer)
    yield
    handle.remove()


@contextmanager
def global_pre_hook(model):
    def steer(module, args):
        return (args[0] * 1.5,) if isinstance(module, modeling_llama.LlamaMLP) else None

    handle = register_module_forward_pre_hook(steer)
    yield
    handle.remove()


@contextmanager
def hook(model):
    handle = model.model.layers[1].register_forward_hook(lambda _, args, output: output.flip(-1))
    yield
    handle.remove()


@contextmanager
def hook_on_the_last_position(model):
    """Which sees one row in plain decoding, and several where drafts are verified."""

    def steer(_, args, output):
        output = output.clone()
        output[:, -1] = output[:, -1].flip(-1)
        return output

    handle = model.model.layers[1].register_forward_hook(steer)
    yield
    handle.remove()


@contextmanager
def hook_inside(model):
    layer = model.model.layers[1].self_attn.o_proj
    handle = layer.register_forward_pre_hook(lambda _, args: (args[0] * 1.5,))
    yield
    handle.remove()


@contextmanager
def own_forward(model, place):
    module = model.get_submodule(place)
    inner = module.forward

    def forward(self, *args, **kwargs):
        output = inner(*args, **kwargs)
        return output * 1.5

    module.forward = types.MethodType(forward, module)
    yield
    del module.forward


@contextmanager
def attention_with_its_own_forward(model):
    """One that is bound to the original, where copies are made."""
    module = model.model.layers[1].self_attn

    def forward(self, *args, **kwargs):
        output, weights = type(self).forward(self, *args, **kwargs)
        return output * 2, weights

    module.forward = types.MethodType(forward, module)
    yield
    del module.forward


@contextmanager
def every_epsilon(model):
    norms = [m for m in model.modules() if hasattr(m, "variance_epsilon")]
    before = [norm.variance_epsilon for norm in norms]
    for norm in norms:
        norm.variance_epsilon = 0.5
    yield
    for norm, one in zip(norms, before, strict=True):
        norm.variance_epsilon = one


@contextmanager
def exchanged_weight(model):
    linear = model.model.layers[0].mlp.up_proj
    with attribute(linear, "weight", nn.Parameter(linear.weight.detach().flip(0).clone())):
        yield


@contextmanager
def exchanged_data(model):
    linear = model.model.layers[1].self_attn.q_proj
    before = linear.weight.data
    linear.weight.data = before.flip(0).clone()
    yield
    linear.weight.data = before


@contextmanager
def transposed_data(model):
    """The same numbers in another order in memory: what reads them by address would be wrong."""
    linear = model.model.layers[1].self_attn.o_proj
    before = linear.weight.data
    linear.weight.data = before.t().contiguous().t()
    yield
    linear.weight.data = before


@contextmanager
def changed_in_place(model):
    weight = model.model.layers[1].input_layernorm.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(torch.linspace(-2, 2, len(weight)))
    yield
    with torch.no_grad():
        weight.copy_(before)


@contextmanager
def parametrized(model):
    mlp = model.model.layers[1].mlp
    with attribute(mlp, "gate_proj", copy.deepcopy(mlp.gate_proj)):
        parametrizations.weight_norm(mlp.gate_proj)
        with torch.no_grad():
            mlp.gate_proj.parametrizations.weight.original0.mul_(2)
        yield


@contextmanager
def pruned(model):
    linear = model.model.layers[1].mlp.gate_proj
    before = linear.weight.detach().clone()
    prune.l1_unstructured(linear, "weight", 0.7)
    yield
    prune.remove(linear, "weight")
    linear.weight.data.copy_(before)


@contextmanager
def another_linear(model):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    linear = model.model.layers[1].mlp.gate_proj
    with attribute(linear, "__class__", Doubled):
        yield


def tiny_like(model, seed):
    return tiny_model("llama", layers=LAYERS, seed=seed, **SHAPE).to(model.dtype)


CHANGES = {
    "class forward": class_forward,
    "function of a module": function_of_a_module,
    "code of a forward": code_of_a_forward,
    "registered attention": registered_attention,
    "wrapped layer": wrapped_layer,
    "wrapped mlp": wrapped_mlp,
    "other layers": other_layers,
    "fewer layers": fewer_layers,
    "global hook": global_hook,
    "global hook on one module": global_hook_on_one_module,
    "global pre-hook": global_pre_hook,
    "hook": hook,
    "hook on the last position": hook_on_the_last_position,
    "hook inside": hook_inside,
    "own forward": lambda model: own_forward(model, "model.layers.1"),
    "own forward of an mlp": lambda model: own_forward(model, "model.layers.1.mlp"),
    "own forward of an attention": attention_with_its_own_forward,
    "epsilon of one norm": lambda model: attribute(
        model.model.layers[1].post_attention_layernorm, "variance_epsilon", 1e4
    ),
    "every epsilon": every_epsilon,
    "scale of one attention": lambda model: attribute(
        model.model.layers[1].self_attn, "scaling", 1.0
    ),
    "activation": lambda model: attribute(model.model.layers[1].mlp, "act_fn", nn.ReLU()),
    "exchanged weight": exchanged_weight,
    "exchanged data": exchanged_data,
    "transposed data": transposed_data,
    "changed in place": changed_in_place,
    "parametrized": parametrized,
    "pruned": pruned,
    "another class of linear": another_linear,
    "configuration": lambda model: attribute(model.config, "_attn_implementation", "eager"),
}


# What shows in float32 already, in the search, or in the compiled forward alone.
SOME = {
    "drafting, float32": [
        *("class forward", "wrapped layer", "fewer layers", "own forward", "changed in place"),
        *("global hook on one module", "hook on the last position"),
    ],
    "learning": ["class forward", "wrapped layer", "fewer layers", "global hook on one module"],
    "plain": [
        *("class forward", "code of a forward", "registered attention", "global hook"),
        *("epsilon of one norm", "every epsilon", "scale of one attention", "activation"),
        *("transposed data", "exchanged weight", "parametrized"),
    ],
}
CASES = [
    *(("drafting", torch.bfloat16, change) for change in CHANGES),
    *(("drafting", torch.float32, change) for change in SOME["drafting, float32"]),
    *(("learning", torch.bfloat16, change) for change in SOME["learning"]),
    *(("plain", torch.bfloat16, change) for change in SOME["plain"]),
]


def assert_same(model, swift):
    expected = model.generate(IDS, **GREEDY)
    assert torch.equal(swift.generate(IDS, **GREEDY), expected)
    return expected


@pytest.mark.filterwarnings("ignore:.*without drafts:UserWarning")
@pytest.mark.parametrize(("config", "dtype", "change"), CASES)
def test_a_change_is_noticed_before_the_next_response_and_so_is_its_end(
    request, config, dtype, change
):
    if dtype is torch.bfloat16:
        request.getfixturevalue("whole_trial")
    model = tiny_model("llama", layers=LAYERS, **SHAPE).to(dtype)
    swift = Swift(model, config=CONFIGS[config])
    before = assert_same(model, swift)
    with CHANGES[change](model):
        changed = assert_same(model, swift)
    assert torch.equal(assert_same(model, swift), before)
    if change not in ("transposed data", "configuration"):  # which give the same tokens
        assert not torch.equal(changed, before)


@pytest.mark.usefixtures("whole_trial")
def test_what_was_found_out_is_kept_while_nothing_changes_and_for_when_it_changes_back():
    model = tiny_model("llama", layers=LAYERS, **SHAPE).to(torch.bfloat16)
    swift = Swift(model, config=CONFIGS["drafting"])
    first = swift._experience
    for _ in range(2):
        assert_same(model, swift)
        model.generate(IDS, do_sample=True, max_new_tokens=3)
        assert swift._experience is first
    with hook(model):
        assert_same(model, swift)
        assert swift._experience is not first
    assert_same(model, swift)
    assert swift._experience is first


def test_a_generation_config_is_no_part_of_what_forwards_go_through():
    model = tiny_model("llama", layers=LAYERS, **SHAPE)
    swift = Swift(model, config=CONFIGS["drafting"])
    first = swift._experience
    model.generation_config = GenerationConfig(top_k=7)
    assert_same(model, swift)
    assert swift._experience is first


@pytest.mark.parametrize(
    ("others", "is_first"), [([True, True], True), ([False, True], True), ([False, False], False)]
)
def test_processes_that_share_a_model_agree_on_what_has_changed(monkeypatch, others, is_first):
    model = tiny_model("llama", layers=LAYERS, **SHAPE)
    swift = Swift(model, config=CONFIGS["drafting"])
    first, copies = swift._experience, swift._experience.draft_weights

    def together(_, own):
        return [one and other for one, other in zip(own, others, strict=True)]

    monkeypatch.setattr(experiences, "hold_everywhere", together)
    assert_same(model, swift)
    assert (swift._experience is first) is is_first
    assert (swift._experience.draft_weights is copies) is others[0]


@pytest.mark.filterwarnings("ignore:.*without drafts:UserWarning")
def test_where_another_process_cannot_draft_none_does(monkeypatch):
    monkeypatch.setattr(experiences, "holds_everywhere", lambda *_: False)
    model = tiny_model("llama", layers=LAYERS, **SHAPE)
    swift = Swift(model, config=CONFIGS["drafting"])
    assert_same(model, swift)
    assert not swift.trace.summary()["drafted_tokens"]


class Counting(nn.Module):
    """Changes something of itself with every forward."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls, self.latest, self.strength = inner, 0, None, 1.0
        self.shapes, self.seen = [], {}
        self.register_buffer("rows", torch.zeros((), dtype=torch.long))

    def forward(self, rows):
        self.calls += 1
        self.shapes.append(rows.shape)
        self.seen.setdefault("sizes", set()).add(self.calls)
        self.rows += rows.shape[1]
        self.latest = self.inner(rows) * self.strength
        return self.latest


def test_what_forwards_change_themselves_is_no_change():
    model = tiny_model("llama", layers=LAYERS, **SHAPE)
    mlp = model.model.layers[1].mlp
    mlp.gate_proj = counting = Counting(mlp.gate_proj)
    swift = Swift(model, config=CONFIGS["drafting"])
    first, copies = swift._experience, swift._experience.draft_weights
    for _ in range(2):
        assert_same(model, swift)
        assert swift._experience is first
        assert first.draft_weights is copies
    with changed_in_place(model):
        assert_same(model, swift)
        copies = first.draft_weights
        assert_same(model, swift)
        assert swift._experience is first
        assert first.draft_weights is copies
    counting.strength = 2.0
    assert_same(model, swift)
    assert swift._experience is not first


@pytest.mark.usefixtures("whole_trial")
def test_of_changed_weights_drafts_are_made_anew():
    model = tiny_model("llama", layers=LAYERS, **SHAPE).to(torch.bfloat16)
    swift = Swift(model, config=SwiftConfig(LayerSet.none(LAYERS), 5, early_stop=0.0, draft_bits=8))
    model.load_state_dict(tiny_like(model, 5).state_dict())
    assert_same(model, swift)
    summary = swift.trace.summary()
    assert summary["draft_view"]["bits"] == 8
    assert summary["acceptance_rate"] > 0.5  # of stale copies nearly nothing is accepted


def test_layers_that_the_model_has_no_more_are_let_go():
    model = tiny_model("llama", layers=LAYERS, **SHAPE)
    swift = Swift(model, config=CONFIGS["drafting"])
    gone = weakref.ref(model.model.layers[1])
    model.model.layers = tiny_like(model, 3).model.layers
    assert_same(model, swift)
    gc.collect()
    assert gone() is None
