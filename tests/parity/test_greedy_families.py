"""Greedy float32 output equals `model.generate`, whatever is skipped and wherever it ends."""

import random

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.testing.families import FAMILIES, SPECIAL_FAMILIES, tiny_model

LAYERS = 5
SUPPORTED = [family for family in (*FAMILIES, *SPECIAL_FAMILIES) if family != "minimax"]
NEW = 12
LENGTHS = (1, 4, 25)


def random_set(seed):
    draw = random.Random(seed)
    inner = range(1, LAYERS - 1)
    return LayerSet(
        LAYERS,
        [layer for layer in inner if draw.random() < 0.5],
        [layer for layer in inner if draw.random() < 0.5],
    )


LAYER_SETS = {
    "none": LayerSet.none(LAYERS),
    "every": LayerSet.every(LAYERS),
    **{f"random{seed}": random_set(seed) for seed in range(5)},
}


@pytest.fixture(params=SUPPORTED, scope="module")
def model(request):
    return tiny_model(request.param, layers=LAYERS)


@pytest.fixture(scope="module")
def swifts(model):
    """One Swift for each layer set and chain length; drafting never stops early."""
    return {
        (name, length): Swift(
            model,
            config=SwiftConfig(layer_set=layer_set, max_draft_tokens=length, early_stop=0.0),
        )
        for name, layer_set in LAYER_SETS.items()
        for length in LENGTHS
    }


def mixed(turn):
    """Every layer set with a chain length; over three turns all of them. `none` keeps to 4, so that
    it is known where drafts begin and end."""
    names = list(LAYER_SETS)
    cycled = {name: LENGTHS[(turn + place) % 3] for place, name in enumerate(names)}
    return list({**cycled, "none": 4}.items())


@pytest.fixture(scope="module")
def free(model):
    """A prompt of nine tokens and what follows it."""
    return generate(model.generate, prompt(9))


def prompt(length, seed=1):
    noise = torch.Generator().manual_seed(seed)
    return torch.randint(3, 100, (1, length), generator=noise)


def generate(method, ids, **arguments):
    """Greedy token ids of `model.generate` or `swift.generate` as a list."""
    arguments = {"max_new_tokens": NEW, **arguments}
    output = method(ids, attention_mask=torch.ones_like(ids), do_sample=False, **arguments)
    return output[0].tolist()


def assert_same(model, swifts, ids, turn, **arguments):
    """Ours equal theirs with each layer set; returns theirs."""
    theirs = generate(model.generate, ids, **arguments)
    for kind in mixed(turn):
        assert generate(swifts[kind].generate, ids, **arguments) == theirs, kind
    return theirs


@pytest.mark.parametrize("length", LENGTHS)
def test_every_layer_set_gives_the_targets_tokens(model, swifts, length):
    # 13 tokens are more than the tiny models' sliding window of 8.
    ids = prompt(13)
    expected = generate(model.generate, ids)
    for name in LAYER_SETS:
        assert generate(swifts[name, length].generate, ids) == expected, name


def test_a_draft_that_skips_nothing_is_always_accepted(model, swifts):
    swift = swifts["none", 4]
    generate(swift.generate, prompt(13))
    summary = swift.trace.summary()
    assert summary["accepted_tokens"] == summary["drafted_tokens"] > 0


def test_early_stop_changes_nothing(model):
    swift = Swift(model, config=SwiftConfig(LAYER_SETS["random0"], 6, early_stop=0.3))
    assert generate(swift.generate, prompt(13)) == generate(model.generate, prompt(13))


@pytest.mark.parametrize("length", [1, 2, 40])
def test_prompts_of_one_token_and_far_beyond_the_window(model, swifts, length):
    assert_same(model, swifts, prompt(length, seed=5), length)


@pytest.mark.parametrize("limit", [1, 3, 5, 6])
def test_the_length_limit_may_fall_anywhere_in_a_draft(model, swifts, limit):
    tokens = assert_same(model, swifts, prompt(9), limit, max_new_tokens=limit)
    assert len(tokens) == 9 + limit


# The first step gives one token; then, with nothing skipped, each gives four drafted and a bonus.
@pytest.mark.parametrize("place", [0, 1, 3, 4, 5], ids=lambda place: f"token{place}")
def test_end_of_sequence_may_fall_anywhere_in_a_draft(model, swifts, free, place):
    ids = prompt(9)
    end = free[9 + place]
    tokens = assert_same(model, swifts, ids, place, eos_token_id=end)
    assert tokens[-1] == end


class StopsAfter(StoppingCriteria):
    """Stops behind a given pair of tokens, as a stop string of two tokens does."""

    def __init__(self, pair):
        self.pair = pair
        self.lengths = []

    def __call__(self, input_ids, scores, **kwargs):
        self.lengths.append(input_ids.shape[1])
        return torch.tensor([input_ids[0, -2:].tolist() == self.pair])


@pytest.mark.parametrize("place", [2, 4, 5])
def test_stopping_criteria_see_every_token_once(model, swifts, free, place):
    ids = prompt(9)
    pair = free[9 + place - 1 : 9 + place + 1]
    theirs = StopsAfter(pair)
    expected = generate(model.generate, ids, stopping_criteria=[theirs])
    for kind in mixed(place):
        ours = StopsAfter(pair)
        assert generate(swifts[kind].generate, ids, stopping_criteria=[ours]) == expected, kind
        assert ours.lengths == theirs.lengths


@pytest.mark.parametrize(
    "arguments",
    [
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 9, "eos_token_id": list(range(3, 60))},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_logits_processors_act_at_every_place(model, swifts, arguments):
    assert_same(model, swifts, prompt(13), len(arguments), **arguments)


class Remembers(LogitsProcessor):
    """Depends on how often it was called, and writes into what it is given."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append(input_ids[0].tolist())
        scores[:, (7 * len(self.seen)) % scores.shape[1]] += 5.0
        return scores


def test_a_stateful_processor_is_called_as_in_plain_decoding(model, swifts):
    theirs = Remembers()
    expected = generate(model.generate, prompt(6), logits_processor=LogitsProcessorList([theirs]))
    for kind in mixed(1):
        ours = Remembers()
        processors = LogitsProcessorList([ours])
        assert generate(swifts[kind].generate, prompt(6), logits_processor=processors) == expected
        assert ours.seen == theirs.seen
