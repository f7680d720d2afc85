"""The user's model is the same before, during and after; so is the global random state."""

import copy

import pytest
import torch

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.testing.families import tiny_model

FAMILIES = ("llama", "gemma3_text", "gpt2", "bloom")
# Where something goes wrong the structure of a layer does not matter; that of the cache does.
TWO = pytest.mark.parametrize("model", ["llama", "gemma3_text"], indirect=True)
GREEDY = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 20}


class Snapshot:
    """Everything about a model that a patch could change, by identity where that is stricter."""

    def __init__(self, model) -> None:
        self.keeps = model  # so that ids stay taken
        self.modules = {name: id(module) for name, module in model.named_modules()}
        self.children = {name: dict(m._modules) for name, m in model.named_modules()}
        self.attributes = {}
        self.hooks = {}
        for name, module in model.named_modules():
            values = vars(module)
            self.attributes[name] = {key: id(value) for key, value in values.items()}
            self.hooks[name] = {k: list(v) for k, v in values.items() if k.endswith("_hooks")}
        self.classes = {name: type(module) for name, module in model.named_modules()}
        self.tensors = {
            name: (id(tensor), tensor.data_ptr(), tensor._version, tensor.clone())
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        }
        self.forward = model.forward.__func__
        self.config = copy.deepcopy(model.config.to_dict())
        self.generation_config = copy.deepcopy(model.generation_config.to_dict())

    def assert_unchanged(self) -> None:
        now = Snapshot(self.keeps)
        assert self.tensors.keys() == now.tensors.keys()
        for name, (identity, address, version, numbers) in self.tensors.items():
            assert now.tensors[name][:3] == (identity, address, version), name
            assert torch.equal(now.tensors[name][3], numbers), name
        for what in vars(self):
            if what not in ("keeps", "tensors"):
                assert getattr(now, what) == getattr(self, what), what


@pytest.fixture(params=FAMILIES)
def model(request):
    model = tiny_model(request.param)
    model.generate(torch.tensor([[5]]), max_new_tokens=2)  # whatever transformers sets up lazily
    return model


@pytest.fixture
def kept(model, prompt):
    """Fails the test if the model is not afterwards what it was before."""
    expected = model.generate(prompt(), **GREEDY)
    snapshot = Snapshot(model)
    yield expected
    snapshot.assert_unchanged()
    assert torch.equal(model.generate(prompt(), **GREEDY), expected)


def test_the_snapshot_notices_a_patch(prompt):
    model = tiny_model("llama")
    for patch in (
        lambda: setattr(model.model, "forward", model.model.forward),
        lambda: model.model.layers[1].register_forward_hook(print),
        lambda: model.lm_head.weight.data.mul_(2),
        lambda: setattr(model.config, "use_cache", False),
        lambda: setattr(model.model.layers, "2", torch.nn.Identity()),
    ):
        snapshot = Snapshot(model)
        patch()
        with pytest.raises(AssertionError):
            snapshot.assert_unchanged()


@pytest.mark.usefixtures("kept")
def test_building_leaves_no_trace(model):
    Swift(model)
    Swift(model, config=SwiftConfig(layer_set=LayerSet.every(5)))


@pytest.mark.parametrize("skip", ["none", "unified", "every"])
def test_generating_leaves_no_trace(model, swift_of, prompt, kept, skip):
    swift = swift_of(model, skip)
    assert torch.equal(swift.generate(prompt(), **GREEDY), kept)
    swift.generate(prompt(), do_sample=True, max_new_tokens=9, return_dict_in_generate=True)
    model.generate(prompt(), custom_generate=swift, **GREEDY)


@pytest.mark.usefixtures("kept")
def test_measuring_costs_leaves_no_trace(model, swift_of):
    swift_of(model).costs(context=4)


@TWO
@pytest.mark.parametrize("calls", [1, 4])
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_a_users_processor_leaves_no_trace(model, swift_of, prompt, kept, calls, kind):
    seen = []

    def failing(ids, scores):
        seen.append(ids.shape[1])
        if len(seen) == calls:
            raise kind("stop here")
        return scores

    swift = swift_of(model)
    with pytest.raises(kind, match="stop here"):
        swift.generate(prompt(), logits_processor=[failing], **GREEDY)
    assert torch.equal(swift.generate(prompt(), **GREEDY), kept)


@TWO
@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_an_iterator_closed_half_way_leaves_no_trace(model, swift_of, prompt, kept, rounds):
    swift = swift_of(model)
    steps = swift.steps(prompt(), **GREEDY)
    for _ in range(rounds):
        next(steps)
    steps.close()
    assert torch.equal(swift.generate(prompt(), **GREEDY), kept)


@TWO
def test_an_interrupt_between_rounds_leaves_no_trace(model, swift_of, prompt, kept):
    swift = swift_of(model)
    steps = swift.steps(prompt(), **GREEDY)
    next(steps)
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt())
    assert torch.equal(swift.generate(prompt(), **GREEDY), kept)


@pytest.mark.parametrize("calls", [1, 2, 3, 8])
def test_an_interrupt_inside_the_model_leaves_no_trace(prompt, swift_of, calls):
    """In the prefill, in a draft, in a verification: wherever the key is pressed."""
    model = tiny_model("llama")
    swift = swift_of(model)
    expected = model.generate(prompt(), **GREEDY)
    seen = []

    def pressed(module, args):
        seen.append(1)
        if len(seen) == calls:
            raise KeyboardInterrupt

    handle = model.model.layers[2].self_attn.register_forward_pre_hook(pressed)
    with pytest.raises(KeyboardInterrupt):
        swift.generate(prompt(), return_dict_in_generate=True, **GREEDY)
    handle.remove()
    assert torch.equal(swift.generate(prompt(), **GREEDY), expected)
    assert torch.equal(model.generate(prompt(), **GREEDY), expected)


@TWO
def test_a_streamer_that_fails_leaves_no_trace(model, swift_of, prompt, kept):
    class Broken:
        heard = 0

        def put(self, value):
            self.heard += 1
            if self.heard == 3:
                raise BrokenPipeError

        def end(self):
            pass

    swift = swift_of(model)
    with pytest.raises(BrokenPipeError):
        swift.generate(prompt(), streamer=Broken(), **GREEDY)
    assert torch.equal(swift.generate(prompt(), **GREEDY), kept)


def test_building_and_greedy_decoding_take_no_random_numbers(model, swift_of, prompt):
    before = torch.get_rng_state()
    swift = swift_of(model)
    swift.generate(prompt(), **GREEDY)
    swift.generate(prompt(), repetition_penalty=1.2, **GREEDY)
    list(swift.steps(prompt(), **GREEDY))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("family", "setting"),
    [("llama", "output_hidden_states"), ("mixtral", "output_router_logits")],
)
def test_no_hooks_are_put_into_a_model_that_tells_of_its_inside(family, setting):
    """transformers puts them in with the first forward, of a copy too, where they are shared."""
    model, ids = tiny_model(family), torch.tensor([[5, 6, 7, 8]])
    setattr(model.config, setting, True)
    expected = {name: len(value) for name, value in model(ids).items() if isinstance(value, tuple)}
    fresh = tiny_model(family)
    setattr(fresh.config, setting, True)
    hooks = [len(module._forward_hooks) for module in fresh.modules()]
    swift = Swift(fresh)
    quiet = {setting: False} if setting == "output_hidden_states" else {}  # `generate` refuses it
    for _ in swift.steps(ids, attention_mask=torch.ones_like(ids), **quiet, **GREEDY):
        pass
    assert [len(module._forward_hooks) for module in fresh.modules()] == hooks
    found = fresh(ids)
    assert {name: len(found[name]) for name in expected} == expected
