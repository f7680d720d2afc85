"""Exactness where a short trial cannot see it: far positions, full windows, other threads."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache, Ministral3Config, Ministral3ForCausalLM

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.adapting.experiences import Experiences
from swift_sd.model import exact_target
from swift_sd.model.exact_rows import is_exact
from swift_sd.model.exact_target import ExactTarget, UpTo
from swift_sd.model.kv_cache import KVCache, generate_cache_name
from swift_sd.model.sublayers import find_sublayers
from swift_sd.model.view import View
from swift_sd.testing.families import tiny_model

pytestmark = pytest.mark.usefixtures("whole_trial")

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "head_dim": 32,
}
ASKED = {
    "do_sample": False,
    "eos_token_id": None,
    "output_logits": True,
    "return_dict_in_generate": True,
}
DRAFTING = SwiftConfig(LayerSet(3, [1], []), 5, early_stop=0.0, exact="strict")
CONFIGS = {
    "drafting": DRAFTING,
    "not compiled": replace(DRAFTING, compiled=False),
    "plain": SwiftConfig.plain(),
}


def some_tokens(count):
    return torch.randint(3, 90, (1, count), generator=torch.Generator().manual_seed(2))


def assert_the_same_bits(model, swift, ids, new_tokens, caches=({}, {})):
    asked = {**ASKED, "attention_mask": torch.ones_like(ids), "max_new_tokens": new_tokens}
    expected = model.generate(ids, **asked, **caches[0])
    found = swift.generate(ids, **asked, **caches[1])
    assert swift.trace.exact
    assert torch.equal(found.sequences, expected.sequences)
    for one, other in zip(found.logits, expected.logits, strict=True):
        assert torch.equal(one, other)
    assert not swift.config.max_draft_tokens or swift.trace.summary()["accepted_tokens"]


@pytest.mark.parametrize("others", [[True, True], [True, False], [False, True]])
def test_processes_that_share_a_model_read_and_verify_alike(monkeypatch, others):
    def together(_, own):
        return [one and other for one, other in zip(own, others, strict=True)]

    model = tiny_model("llama", **SHAPE, num_key_value_heads=4).to(torch.bfloat16)
    sublayers = find_sublayers(model)
    alone = ExactTarget(model, sublayers, "auto", several_rows=True)
    monkeypatch.setattr(exact_target, "hold_everywhere", together)
    found = ExactTarget(model, sublayers, "auto", several_rows=True)
    assert found.is_compiled == (alone.is_compiled and others[1])
    assert (found.reading_model() is not model) == (
        alone.reading_model() is not model and others[0]
    )


# Every number of heads in every way to compute one row and several; every way with both caches.
WINDOWS = [
    *(("drafting", heads, keeps_all) for heads, keeps_all in [(1, 0), (2, 1), (4, 0), (8, 1)]),
    *(("plain", heads, keeps_all) for heads, keeps_all in [(1, 1), (2, 0), (4, 1), (8, 0)]),
    *(("not compiled", heads, keeps_all) for heads, keeps_all in [(1, 0), (4, 1)]),
]


@pytest.mark.parametrize(("config", "heads_to_a_key", "keeps_all"), WINDOWS)
def test_logits_stay_the_same_when_a_window_fills(config, heads_to_a_key, keeps_all):
    """From there on transformers masks, and lays the heads that share a key together.

    A cache that was made without a configuration keeps what is in front of the window too.
    """
    model = tiny_model(
        "mistral", **SHAPE, num_key_value_heads=8 // heads_to_a_key, sliding_window=40
    ).to(torch.bfloat16)
    caches = [{generate_cache_name(): DynamicCache()} if keeps_all else {} for _ in range(2)]
    assert_the_same_bits(model, Swift(model, config=CONFIGS[config]), some_tokens(20), 90, caches)


class Noted:
    """A verifier that only says that it was asked."""

    def __init__(self, asked):
        self.asked = asked

    def forward(self, tokens, cache, *, ancestry=None):
        self.asked.append(self)


@pytest.mark.parametrize(("slides", "limit"), [(True, 30), (False, 20)])
def test_compiled_code_is_used_up_to_a_length(slides, limit):
    asked = []
    compiled, otherwise = Noted(asked), Noted(asked)
    verifier = UpTo(compiled, lambda: otherwise, 30, 20)
    cache = KVCache([20 if slides else None])
    for length, expected in ((limit - 1, compiled), (limit, otherwise)):
        cache.cursor = length - 4
        verifier.forward(some_tokens(4), cache)
        assert asked.pop() is expected


@pytest.mark.parametrize("config", CONFIGS)
def test_queries_that_grow_with_the_position_are_seen(config):
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "llama_4_scaling_beta": 2.0,
    }
    torch.manual_seed(0)
    made = Ministral3Config(
        vocab_size=100,
        num_key_value_heads=4,
        max_position_embeddings=64,
        rope_parameters=rope,
        pad_token_id=0,
        **SHAPE,
    )
    model = Ministral3ForCausalLM(made).to(torch.bfloat16).eval()
    assert_the_same_bits(model, Swift(model, config=CONFIGS[config]), some_tokens(30), 20)


def test_it_is_found_anew_under_other_conditions(monkeypatch):
    seen = []
    found = exact_target.exact_forms

    def noted(model, *rest):
        config = model.config
        seen.append((torch.get_num_threads(), model.dtype, config._experts_implementation))
        return found(model, *rest)

    monkeypatch.setattr(exact_target, "exact_forms", noted)
    model = tiny_model("mixtral", layers=2, experts_implementation="grouped_mm").bfloat16()
    experiences = Experiences(model, SwiftConfig(drafters=("copying",)), None, None)
    threads = torch.get_num_threads()
    try:
        experiences.now()
        torch.set_num_threads(threads + 1)
        experiences.now()
        experiences.now()
        torch.set_num_threads(threads)
        experiences.now()
        model.set_experts_implementation("eager")
        experiences.now()
        model.float()
        experiences.now()
    finally:
        torch.set_num_threads(threads)
    assert seen == [
        (threads, torch.bfloat16, "grouped_mm"),
        (threads + 1, torch.bfloat16, "grouped_mm"),
        (threads, torch.bfloat16, "eager"),
        (threads, torch.float32, "eager"),
    ]


class OneByOne(View):
    """Exact, as each row is read alone."""

    def forward(self, tokens, cache, **_):
        rows = [super(OneByOne, self).forward(row, cache) for row in tokens.split(1, dim=1)]
        return torch.cat(rows, dim=1)


class Mixing(OneByOne):
    """As fused experts may do: adds up otherwise where several tokens choose the same one."""

    def forward(self, tokens, cache, **_):
        is_mixed = tokens.unique().numel() < tokens.numel()
        return super().forward(tokens, cache) + float(is_mixed)


def test_experts_are_tried_with_tokens_that_choose_the_same():
    model = tiny_model("mixtral")
    assert is_exact(OneByOne(model), model)
    assert not is_exact(Mixing(model), model)
