"""Acceptance gives exactly the target's distribution: enumeration on small vocabularies."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from swift_sd.decoding.acceptance import (
    accept_greedy,
    accept_sampled,
    acceptance_probability,
    residual,
)


@st.composite
def distributions(draw, size):
    """Distributions with zeros, ties and point masses among them; float64."""
    weights = draw(st.lists(st.sampled_from([0, 0, 1, 1, 2, 3, 7]), min_size=size, max_size=size))
    if not any(weights):
        weights[draw(st.integers(0, size - 1))] = 1
    tensor = torch.tensor(weights, dtype=torch.float64)
    return tensor / tensor.sum()


@st.composite
def pairs(draw):
    size = draw(st.integers(3, 6))
    p = draw(distributions(size))
    return p, draw(st.one_of(st.just(p.clone()), distributions(size)))


def one_place(p, q):
    """The distribution of the token that comes out where a draft from q meets the target's p."""
    out = torch.zeros_like(p)
    refused = 0.0
    for token in range(len(q)):
        if q[token] > 0:
            chance = acceptance_probability(p, q, token)
            out[token] += q[token] * chance
            refused += float(q[token]) * (1 - chance)
    return out + refused * residual(p, q)


@given(pairs())
@settings(max_examples=400, deadline=None)
def test_one_place_has_the_targets_distribution(pair):
    p, q = pair
    torch.testing.assert_close(one_place(p, q), p, rtol=0, atol=1e-12)


@given(pairs())
@settings(max_examples=200, deadline=None)
def test_the_residual_is_a_distribution_that_never_repeats_the_refused_token(pair):
    p, q = pair
    rest = residual(p, q)
    assert float(rest.sum()) == pytest.approx(1)
    assert (rest >= 0).all()
    for token in range(len(q)):
        if q[token] > 0 and acceptance_probability(p, q, token) < 1:
            assert rest[token] == 0


def test_equal_distributions_never_refuse_and_have_no_residual():
    p = torch.tensor([0.2, 0.3, 0.5])
    assert [acceptance_probability(p, p.clone(), token) for token in range(3)] == [1.0, 1.0, 1.0]
    assert torch.equal(residual(p, p.clone()), p)


def test_disjoint_supports_always_refuse():
    p, q = torch.tensor([0.0, 0.4, 0.6]), torch.tensor([1.0, 0.0, 0.0])
    assert acceptance_probability(p, q, 0) == 0.0
    assert torch.equal(residual(p, q), p)


class EveryBranch:
    """Runs a random program once for each path through its random choices.

    `draw` and `uniform` return the choices of the present path and multiply up its probability. The
    threshold that `uniform` is compared with is told by the program's own probabilities: both sides
    of it are taken.
    """

    def __init__(self):
        self.choices = []
        self.position = 0
        self.probability = 1.0

    def begin(self):
        self.position, self.probability = 0, 1.0

    def choose(self, weights):
        if self.position == len(self.choices):
            self.choices.append((0, weights))
        index, _ = self.choices[self.position]
        self.choices[self.position] = (index, weights)
        self.position += 1
        self.probability *= weights[index]
        return index

    def advance(self):
        while self.choices:
            index, weights = self.choices.pop()
            if index + 1 < len(weights):
                self.choices.append((index + 1, weights))
                return True
        return False


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_chain_has_the_targets_joint_distribution(data):
    """Two drafted tokens and what comes after them, over random conditional distributions."""
    size, drafted_tokens = 3, 2
    prefixes = [prefix for n in range(3) for prefix in itertools.product(range(size), repeat=n)]
    p = {prefix: data.draw(distributions(size)) for prefix in prefixes}
    q = {prefix: data.draw(distributions(size)) for prefix in prefixes}
    joint = {}
    branch = EveryBranch()
    while True:
        branch.begin()
        drafted = []
        for _ in range(drafted_tokens):
            drafted.append(branch.choose(q[tuple(drafted)].tolist()))
        tokens = []

        def target(place, tokens=tokens):
            assert place == len(tokens), "asked for a place before its prefix was taken"
            return p[tuple(tokens)]

        def uniform(tokens=tokens, drafted=drafted):
            prefix, token = tuple(tokens), drafted[len(tokens)]
            if branch.probability == 0:  # a draft that cannot happen: any answer will do
                return 0.0
            chance = acceptance_probability(p[prefix], q[prefix], token)
            return (chance, 0.0)[branch.choose([1 - chance, chance])]

        def draw(distribution):
            return branch.choose(distribution.tolist())

        distributions_drafted = [q[tuple(drafted[:place])] for place in range(drafted_tokens)]
        for token in accept_sampled(drafted, distributions_drafted, target, uniform, draw):
            tokens.append(token)
        # Plain decoding goes on where this round ended.
        while len(tokens) < drafted_tokens + 1:
            tokens.append(draw(p[tuple(tokens)]))
        joint[tuple(tokens)] = joint.get(tuple(tokens), 0.0) + branch.probability
        if not branch.advance():
            break
    for outcome in itertools.product(range(size), repeat=drafted_tokens + 1):
        expected = 1.0
        for place, token in enumerate(outcome):
            expected *= float(p[outcome[:place]][token])
        assert joint.get(outcome, 0.0) == pytest.approx(expected, abs=1e-9)


def test_greedy_acceptance_is_lazy_and_stops_at_the_first_difference():
    asked = []

    def best(place):
        asked.append(place)
        return [5, 6, 9, 4][place]

    tokens = accept_greedy([5, 6, 7], best)
    assert (next(tokens), asked) == (5, [0])
    assert list(tokens) == [6, 9]
    assert asked == [0, 1, 2]


def test_greedy_acceptance_adds_a_bonus_token_to_a_right_draft():
    assert list(accept_greedy([1, 2], [1, 2, 3].__getitem__)) == [1, 2, 3]
    assert list(accept_greedy([], [8].__getitem__)) == [8]
