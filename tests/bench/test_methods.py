import copy
import subprocess
import sys

import pytest

from swift_sd.bench.catalogue import DEFAULT_METHODS, METHODS, checked_names
from swift_sd.bench.method import Subject
from swift_sd.config import SwiftConfig
from swift_sd.errors import ConfigError, UnsupportedModel
from swift_sd.model import sublayers
from swift_sd.model.layer_set import LayerSet
from swift_sd.testing.families import tiny_model

NAMES = ["hf", "hf-lookup", "hf-assisted", "hf-early-exit", "plain", "swift", "swift-paper"]


def test_these_methods_can_be_asked_for():
    assert list(METHODS)[: len(NAMES) + 1] == [*NAMES, "swift-fixed"]
    assert checked_names(DEFAULT_METHODS) == DEFAULT_METHODS
    assert all(method.about for method in METHODS.values())


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'swfit'") as caught:
        checked_names(["hf", "swfit"])
    assert all(name in str(caught.value) for name in METHODS)


def test_no_method_and_the_same_twice_are_refused():
    with pytest.raises(ConfigError, match="no method"):
        checked_names([])
    with pytest.raises(ConfigError, match="twice"):
        checked_names(["hf", "swift", "hf"])


@pytest.mark.parametrize(
    ("name", "option"), [("hf-assisted", "--draft-model"), ("swift-fixed", "--layer-set")]
)
def test_what_a_method_needs_is_asked_for(name, option):
    with pytest.raises(ConfigError, match=option):
        checked_names(["hf", name])
    field = option.strip("-").replace("-", "_")
    assert checked_names([name], [field]) == (name,)


def test_our_methods_differ_in_their_settings(subject):
    chosen = LayerSet(5, [2], [1])
    given = Subject(subject.model, subject.tokenizer, layer_set=chosen)
    assert METHODS["plain"](given).config() == SwiftConfig.plain()
    assert METHODS["swift"](given).config() == SwiftConfig()
    assert METHODS["swift-paper"](given).config() == SwiftConfig.paper()
    assert METHODS["swift-fixed"](given).config().layer_set == chosen


ABLATIONS = list(METHODS)[len(NAMES) + 1 :]
SETTINGS = {
    "only-copying": {"drafters": ("copying",)},
    "only-recycling": {"drafters": ("recycling",)},
    "only-model": {"drafters": ("model",)},
    "only-skipping": {"drafters": ("model",), "draft_bits": 16},
    "no-copying": {"drafters": ("recycling", "model")},
    "no-recycling": {"drafters": ("copying", "model")},
    "no-model": {"drafters": ("copying", "recycling")},
    "no-rounding": {"draft_bits": 16},
    "no-cascade": {"cascade": False},
    "no-short-head": {"short_head": False},
    "no-compiled-code": {"compiled": False},
    "no-tree": {"tree": False},
    "no-skipping": {"layer_set": LayerSet.none(5)},
    "draft-8-bits": {"draft_bits": 8},
    "draft-4-bits": {"draft_bits": 4},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_is_the_default_but_for_its_settings(subject, name):
    assert METHODS[name](subject).config() == SwiftConfig(**SETTINGS[name])
    assert METHODS[name].about.startswith("swift-sd ")


@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.usefixtures("drafting")
def test_ablations_give_the_tokens_of_hf(model_of, tokenizer, prompt, name):
    given = Subject(model_of("llama"), tokenizer, 256)
    arguments = {"do_sample": False, "max_new_tokens": 24}
    expected, found = (
        METHODS[which](given).start()({"input_ids": prompt()}, arguments) for which in ("hf", name)
    )
    assert found.token_ids == expected.token_ids
    assert found.figures["drafted_tokens"] > 0


def test_assisted_and_fixed_give_the_tokens_of_hf(model_of, tokenizer, prompt):
    chosen = LayerSet(5, [2], [1])
    given = Subject(model_of("llama"), tokenizer, 256, model_of("llama"), tokenizer, chosen)
    arguments = {"do_sample": False, "max_new_tokens": 8}
    inputs = {"input_ids": prompt()}
    said = {
        name: METHODS[name](given).start()(inputs, arguments).token_ids
        for name in ("hf", "hf-assisted", "swift-fixed")
    }
    assert said["hf-assisted"] == said["swift-fixed"] == said["hf"]
    assert len(said["hf"]) <= 8


def test_two_vocabularies_are_bridged_if_transformers_can(model_of, tokenizer, prompt):
    larger = tiny_model("llama", vocab_size=109)
    given = Subject(model_of("llama"), tokenizer, 256, larger, tokenizer)
    assisted = METHODS["hf-assisted"](given)
    assert assisted.unavailable() is None
    arguments = {"do_sample": False, "max_new_tokens": 8}
    said = assisted.start()({"input_ids": prompt()}, arguments).token_ids
    assert said == METHODS["hf"](given).start()({"input_ids": prompt()}, arguments).token_ids

    other = copy.deepcopy(tokenizer)
    other.add_tokens(["another"])
    given = Subject(model_of("llama"), tokenizer, 256, model_of("llama"), other)
    assert "same size" in METHODS["hf-assisted"](given).unavailable()


def test_forwards_are_counted_of_the_whole_model_only(model_of, tokenizer, prompt):
    given = Subject(model_of("llama"), tokenizer, 256)
    arguments = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}
    for name in ("hf", "hf-lookup", "hf-early-exit"):
        answer = METHODS[name](given).start()
        figure = answer({"input_ids": prompt()}, arguments).figures["tokens_per_forward"]
        assert figure == 1 if name == "hf" else figure >= 1
    assert not given.model._forward_hooks


def test_early_exit_that_breaks_leaves_all_layers(model_of, tokenizer, prompt):
    model = model_of("llama")
    method = METHODS["hf-early-exit"](Subject(model, tokenizer))
    depth = model.config.num_hidden_layers

    def breaks(*_):
        if model.config.num_hidden_layers < depth:
            raise RuntimeError("in a draft")

    watch = model.model.layers[0].register_forward_pre_hook(breaks)
    try:
        with pytest.raises(RuntimeError, match="in a draft"):
            method.start()({"input_ids": prompt()}, {"do_sample": False, "max_new_tokens": 8})
    finally:
        watch.remove()
    assert model.config.num_hidden_layers == depth
    assert model.generation_config.num_assistant_tokens is None


def test_early_exit_drafts_a_few_tokens(model_of, tokenizer, prompt, monkeypatch):
    model = model_of("llama")
    depth, drafts, longest = model.config.num_hidden_layers, 0, 0

    def counts(*_):
        nonlocal drafts, longest
        drafts = drafts + 1 if model.config.num_hidden_layers < depth else 0
        longest = max(longest, drafts)

    # Only the number ends a draft.
    monkeypatch.setattr(model.generation_config, "assistant_confidence_threshold", 0.0)
    answer = METHODS["hf-early-exit"](Subject(model, tokenizer)).start()
    watch = model.register_forward_pre_hook(counts)
    try:
        answer({"input_ids": prompt()}, {"do_sample": False, "max_new_tokens": 24})
    finally:
        watch.remove()
    assert longest == 5


def test_early_exit_is_refused_where_no_layers_are_found(model_of, tokenizer, monkeypatch):
    def none(model):
        raise UnsupportedModel("no layers")

    monkeypatch.setattr(sublayers, "find_sublayers", none)
    reason = METHODS["hf-early-exit"](Subject(model_of("llama"), tokenizer)).unavailable()
    assert "UnsupportedModel" in reason


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_early_exit_leaves_the_model_as_it_was(model_of, tokenizer, family):
    model = model_of(family)
    before = model.config.to_dict()
    reason = METHODS["hf-early-exit"](Subject(model, tokenizer)).unavailable()
    assert model.config.to_dict() == before
    assert (reason is None) == (family in ("llama", "qwen2"))


def test_importing_the_library_does_not_import_the_benchmark():
    code = "import sys, swift_sd; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not [name for name in done.stdout.split() if "bench" in name and "swift" in name]
