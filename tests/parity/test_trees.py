"""Trees over many families: a node sees its ancestors only, and the output never changes."""

import random
import warnings

import pytest
import torch

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.decoding.loop import decode
from swift_sd.decoding.request import Request
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.sublayers import find_sublayers
from swift_sd.model.target import Target
from swift_sd.model.tree_check import why_no_trees
from swift_sd.testing.families import FAMILIES, SPECIAL_FAMILIES, STRUCTURES, tiny_model
from swift_sd.testing.scripted import ScriptedDrafter

CHAINS_ONLY = {"bloom"}
SUPPORTED = [family for family in (*FAMILIES, *SPECIAL_FAMILIES) if family != "minimax"]
SHAPES = {
    "leaves": [-1, 0, 1, -1, -1, 0, 0, 1],
    "bushy": [-1, -1, 0, 0, 1, 2, 2, 4, 4, 7],
    "two chains": [-1, -1, 0, 1, 2, 3, 4, 5],
    "star": [-1] * 6,
}
NEW = 14


def reads_trees(model):
    return why_no_trees(model, find_sublayers(model)) is None


def prompt(length, seed=1):
    return torch.randint(3, 100, (1, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", SUPPORTED)
def test_every_family_reads_trees_or_is_known_not_to(family):
    """Behind more tokens than the sliding windows of 8 hold."""
    model = tiny_model(family)
    assert reads_trees(model) == (family not in CHAINS_ONLY)
    if reads_trees(model):
        check_logits(model, a_tree("bushy"), prompt(21))
        check_random_trees(model, prompt(9), seeds=(0,))


def test_a_model_that_reads_no_trees_says_so_once_and_drafts_chains():
    model = tiny_model("bloom")
    with pytest.warns(UserWarning, match="BloomForCausalLM verifies chains"):
        swift = Swift(model, config=SwiftConfig(LayerSet.none(5), 4, early_stop=0))
    ids = prompt(9)
    asked = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 8}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output = swift.generate(ids, **asked)
    assert swift.trace.summary()["verified_tokens"] == swift.trace.summary()["drafted_tokens"] > 0
    assert torch.equal(output, model.generate(ids, **asked))


def a_tree(shape):
    parents = SHAPES[shape]
    return DraftTree(prompt(len(parents), seed=7)[0].tolist(), parents)


@pytest.fixture(
    params=[family for family in STRUCTURES if family not in CHAINS_ONLY], scope="module"
)
def model(request):
    return tiny_model(request.param)


@pytest.mark.parametrize("length", [1, 5, 21])
def test_tree_logits_are_the_sequential_ones(model, length):
    for shape in SHAPES:
        check_logits(model, a_tree(shape), prompt(length))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3_text", "gpt_oss", "gpt2"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_both_attention_implementations_read_trees(family, implementation):
    if family in ("gpt_oss", "gemma2") and implementation == "sdpa":
        pytest.skip("transformers has no sdpa for it")
    model = tiny_model(family, attn_implementation=implementation)
    check_logits(model, a_tree("bushy"), prompt(21))


def test_a_tree_deeper_than_the_window():
    model = tiny_model("mistral")
    parents = [-1, *range(11), 3, 4]
    tokens = prompt(len(parents), seed=7)[0].tolist()
    check_logits(model, DraftTree(tokens, parents), prompt(21))


@torch.no_grad()
def check_logits(model, tree, ids):
    target, cache = Target(model), KVCache(attention_windows(model.config))
    target.prefill(ids, cache)
    root = torch.tensor([[50]])
    rows = torch.cat([root, torch.tensor([list(tree.tokens)])], dim=1)
    logits = target.verify(rows, cache, tree.ancestry)[0]
    for row in range(len(tree) + 1):
        path = rows[:, tree.ancestry[row]]
        expected = model(torch.cat([ids, path], dim=1)).logits[0, -1]
        torch.testing.assert_close(logits[row], expected, atol=1e-4, rtol=1e-4)


class RandomTrees:
    """Proposes random trees in which what will come is hidden, up to a random depth."""

    def __init__(self, continuation, start, seed):
        self.continuation, self.start = continuation, start
        self.draw = random.Random(seed)

    def __call__(self, tokens, budget):
        coming = self.continuation[len(tokens) - self.start :][:budget]
        right = self.draw.randint(0, len(coming))
        parents, ids, tip, known = [], [], -1, 0
        for node in range(self.draw.randint(1, 12)):
            if known < right and self.draw.random() < 0.5:
                parents.append(tip)
                ids.append(coming[known])
                tip, known = node, known + 1
            else:
                depth_left = [n for n in range(-1, node) if self.depth(parents, n) < budget]
                parents.append(self.draw.choice(depth_left))
                ids.append(self.draw.randint(3, 99))
        return DraftTree(ids, parents)

    @staticmethod
    def depth(parents, node):
        depth = 0
        while node >= 0:
            node, depth = parents[node], depth + 1
        return depth


class Decoding:
    """The loop with a drafter, as a `custom_generate` callable."""

    def __init__(self, drafter):
        self.drafter, self.accepted = drafter, 0

    def __call__(
        self, model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs
    ):
        request = Request.checked(
            model, input_ids, logits_processor, stopping_criteria, generation_config, kwargs
        )
        state = request.start()
        for step in decode(Target(model), self.drafter, state, request.unread, 6):
            self.accepted += step.accepted
        return state.tokens.clone()


@pytest.mark.parametrize("arguments", [{}, {"do_sample": True, "temperature": 1.3, "top_k": 20}])
@pytest.mark.parametrize("length", [1, 21])
def test_random_trees_change_nothing(model, length, arguments):
    check_random_trees(model, prompt(length), seeds=range(3), **arguments)


def check_random_trees(model, ids, seeds, **arguments):
    asked = {
        **{"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None},
        **{"attention_mask": torch.ones_like(ids), **arguments},
    }
    torch.manual_seed(3)
    expected = model.generate(ids, **asked)
    state_after = torch.get_rng_state()
    for seed in seeds:
        script = RandomTrees(expected[0, ids.shape[1] :].tolist(), ids.shape[1], seed)
        run = Decoding(ScriptedDrafter(script))
        torch.manual_seed(3)
        output = model.generate(ids, custom_generate=run, **asked)
        assert torch.equal(output, expected)
        assert run.accepted > 0
        assert torch.equal(torch.get_rng_state(), state_after)
