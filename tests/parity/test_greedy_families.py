"""Greedy float32 output equals `model.generate`, whatever is skipped and wherever it ends."""

import itertools
import random

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.testing.families import FAMILIES, SPECIAL_FAMILIES, tiny_model

LAYERS = 5
SUPPORTED = [family for family in (*FAMILIES, *SPECIAL_FAMILIES) if family != "minimax"]
# Where a response ends is the business of the loop and of the cache: all text in view, windows in
# some layers, in all, and a model that reads chains only.
ENDING = ["llama", "gemma3_text", "mistral", "bloom"]
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
DRAFTS = [*itertools.product(list(LAYER_SETS)[1:], LENGTHS)]


def drafts(turn):
    """Two layer sets with chain lengths, over nine turns each with each; and nothing skipped.

    That keeps to four tokens at a time, so that it is known where drafts begin and end.
    """
    return [("none", 4), *(DRAFTS[(2 * turn + place) % len(DRAFTS)] for place in range(2))]


class Subject:
    """A model, and a `Swift` for each layer set and chain length; drafting never stops early."""

    def __init__(self, family):
        self.model = tiny_model(family, layers=LAYERS)
        self.made = {}

    def swift(self, draft):
        if draft not in self.made:
            name, length = draft
            config = SwiftConfig(LAYER_SETS[name], max_draft_tokens=length, early_stop=0.0)
            self.made[draft] = Swift(self.model, config=config)
        return self.made[draft]

    def assert_same(self, ids, turn, **arguments):
        """Ours equal theirs with each draft of this turn; returns theirs."""
        theirs = generate(self.model.generate, ids, **arguments)
        for draft in drafts(turn):
            assert generate(self.swift(draft).generate, ids, **arguments) == theirs, draft
        return theirs


def prompt(length, seed=1):
    noise = torch.Generator().manual_seed(seed)
    return torch.randint(3, 100, (1, length), generator=noise)


def generate(method, ids, **arguments):
    """Greedy token ids of `model.generate` or `swift.generate` as a list."""
    arguments = {"max_new_tokens": NEW, **arguments}
    output = method(ids, attention_mask=torch.ones_like(ids), do_sample=False, **arguments)
    return output[0].tolist()


@pytest.mark.parametrize(("turn", "family"), list(enumerate(SUPPORTED)), ids=SUPPORTED)
def test_every_family_gives_the_targets_tokens(turn, family):
    subject = Subject(family)
    # Sliding windows are of 8 tokens: before them, across their end, and far beyond it.
    for length in (1, 13, 40):
        subject.assert_same(prompt(length, seed=length), turn, eos_token_id=None)
        summary = subject.swift(("none", 4)).trace.summary()
        assert summary["accepted_tokens"] == summary["drafted_tokens"] > 0


@pytest.fixture(params=ENDING, scope="module")
def subject(request):
    return Subject(request.param)


@pytest.fixture(scope="module")
def free(subject):
    """A prompt of nine tokens and what follows it."""
    return generate(subject.model.generate, prompt(9))


@pytest.mark.parametrize("length", [1, 25])
def test_nothing_skipped_in_the_shortest_and_in_the_longest_chains(subject, length):
    expected = generate(subject.model.generate, prompt(13))
    assert generate(subject.swift(("none", length)).generate, prompt(13)) == expected


def test_early_stop_changes_nothing(subject):
    swift = Swift(subject.model, config=SwiftConfig(LAYER_SETS["random0"], 6, early_stop=0.3))
    assert generate(swift.generate, prompt(13)) == generate(subject.model.generate, prompt(13))


@pytest.mark.parametrize("limit", [1, 3, 5, 6])
def test_the_length_limit_may_fall_anywhere_in_a_draft(subject, limit):
    tokens = subject.assert_same(prompt(9), limit % 3, max_new_tokens=limit)
    assert len(tokens) == 9 + limit


# The first step gives one token; then, with nothing skipped, each gives four drafted and a bonus.
@pytest.mark.parametrize("place", [0, 1, 3, 4, 5], ids=lambda place: f"token{place}")
def test_end_of_sequence_may_fall_anywhere_in_a_draft(subject, free, place):
    end = free[9 + place]
    tokens = subject.assert_same(prompt(9), place % 3, eos_token_id=end)
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
def test_stopping_criteria_see_every_token_once(subject, free, place):
    ids = prompt(9)
    pair = free[9 + place - 1 : 9 + place + 1]
    theirs = StopsAfter(pair)
    expected = generate(subject.model.generate, ids, stopping_criteria=[theirs])
    for draft in drafts(place % 3):
        ours = StopsAfter(pair)
        swift = subject.swift(draft)
        assert generate(swift.generate, ids, stopping_criteria=[ours]) == expected, draft
        assert ours.lengths == theirs.lengths


@pytest.mark.parametrize(
    ("turn", "arguments"),
    [
        (0, {"repetition_penalty": 1.4}),
        (1, {"no_repeat_ngram_size": 2}),
        (2, {"min_new_tokens": 9, "eos_token_id": list(range(3, 60))}),
    ],
    ids=["repetition_penalty", "no_repeat_ngram_size", "min_new_tokens"],
)
def test_logits_processors_act_at_every_place(subject, turn, arguments):
    subject.assert_same(prompt(13), turn, **arguments)


class Remembers(LogitsProcessor):
    """Depends on how often it was called, and writes into what it is given."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append(input_ids[0].tolist())
        scores[:, (7 * len(self.seen)) % scores.shape[1]] += 5.0
        return scores


def test_a_stateful_processor_is_called_as_in_plain_decoding(subject):
    theirs = Remembers()
    processors = LogitsProcessorList([theirs])
    expected = generate(subject.model.generate, prompt(6), logits_processor=processors)
    for draft in drafts(1):
        ours = Remembers()
        processors = LogitsProcessorList([ours])
        swift = subject.swift(draft)
        assert generate(swift.generate, prompt(6), logits_processor=processors) == expected
        assert ours.seen == theirs.seen
