"""Whatever tree is proposed, what comes out has the target's distribution: by enumeration."""

import itertools
import random

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from scipy.stats import chisquare

from swift_sd.decoding.acceptance import accept
from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.decoding.noise import Noise
from swift_sd.decoding.warping import leads, race, winner

VOCABULARY, PLACES, ATOMS = 3, 3, 4


@st.composite
def trees(draw, size=VOCABULARY, most=9):
    """Any tree, with siblings that repeat each other among them."""
    count = draw(st.integers(0, most))
    tokens = draw(st.lists(st.integers(0, size - 1), min_size=count, max_size=count))
    return DraftTree(tokens, [draw(st.integers(-1, node - 1)) for node in range(count)])


@st.composite
def quarters(draw):
    """A distribution in steps of 1 / ATOMS, with zeros, ties and point masses among them."""
    cuts = sorted(draw(st.lists(st.integers(0, ATOMS), min_size=2, max_size=2)))
    return (cuts[0], cuts[1] - cuts[0], ATOMS - cuts[1])


def chosen(distribution, atom):
    """The token that a random number out of ATOMS equally likely ones stands for."""
    return next(t for t in range(VOCABULARY) if atom < sum(distribution[: t + 1]))


def path_tokens(tree, row):
    tokens = []
    while row > 0:
        tokens.append(tree.tokens[row - 1])
        row = tree.parents[row - 1] + 1
    return tuple(reversed(tokens))


@given(st.data())
@settings(max_examples=150)
def test_every_noise_enumerated_the_joint_distribution_is_the_targets(data):
    """The tree may be any function of the noise to come: a drafter looks at it."""
    prefixes = [p for n in range(PLACES) for p in itertools.product(range(VOCABULARY), repeat=n)]
    target = {prefix: data.draw(quarters()) for prefix in prefixes}
    some_trees = data.draw(st.lists(trees(), min_size=1, max_size=5))
    joint = dict.fromkeys(itertools.product(range(VOCABULARY), repeat=PLACES), 0.0)
    for noise in itertools.product(range(ATOMS), repeat=PLACES):
        tree = some_trees[hash(noise) % len(some_trees)]
        tokens = ()
        while len(tokens) < PLACES:  # further rounds decode plainly

            def choose(row, tree=tree, start=tokens, noise=noise):
                prefix = start + path_tokens(tree, row)
                assert prefix == tokens, "asked for too early"  # noqa: B023
                return chosen(target[prefix], noise[len(prefix)])

            for _, token in accept(tree, choose):
                tokens += (token,)
                if len(tokens) == PLACES:
                    break
            tree = DraftTree()
        joint[tokens] += ATOMS**-PLACES
    for outcome, probability in joint.items():
        expected = 1.0
        for place, token in enumerate(outcome):
            expected *= target[outcome[:place]][token] / ATOMS
        assert probability == pytest.approx(expected, abs=1e-9)


@given(trees(size=4, most=14), st.integers(0, 10**6))
@settings(max_examples=200)
def test_the_path_is_what_the_target_says(tree, seed):
    """Against a walk written in the plainest way."""
    says = [random.Random(seed + row).randrange(4) for row in range(len(tree) + 1)]
    asked = []
    walked = [*accept(tree, lambda row: asked.append(row) or says[row])]
    assert asked == [row for row, _ in walked]
    row = 0
    for place, (visited, token) in enumerate(walked):
        assert (visited, token) == (row, says[row])
        behind = [
            node + 1
            for node in range(len(tree))
            if tree.parents[node] == row - 1 and tree.tokens[node] == token
        ]
        assert bool(behind) == (place < len(walked) - 1)
        row = behind[0] if behind else row


def test_acceptance_is_lazy():
    asked = []

    def choose(row):
        asked.append(row)
        return [5, 6, 9, 4][row]

    tokens = accept(DraftTree.chain([5, 6, 7]), choose)
    assert (next(tokens), asked) == ((0, 5), [0])
    assert list(tokens) == [(1, 6), (2, 9)]
    assert asked == [0, 1, 2]


def test_a_right_draft_brings_a_bonus_token():
    assert [t for _, t in accept(DraftTree.chain([1, 2]), [1, 2, 3].__getitem__)] == [1, 2, 3]
    assert [*accept(DraftTree(), [8].__getitem__)] == [(0, 8)]


SCORES = {
    "spread": torch.randn(1, 50, generator=torch.Generator().manual_seed(1)) * 3,
    "flat": torch.zeros(1, 50),
    "filtered": torch.tensor([[-torch.inf, 1.0, -torch.inf, 0.5, 1.0]]),
    "one left": torch.tensor([[-torch.inf, 1.0, -torch.inf]]),
}


@pytest.mark.parametrize("name", SCORES)
def test_the_winner_is_the_token_that_multinomial_draws(name):
    scores = SCORES[name]
    for seed in range(200):
        torch.manual_seed(seed)
        drawn = int(torch.multinomial(scores.softmax(dim=-1), 1))
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        assert winner(scores, Noise().take(scores)) == drawn
        assert torch.equal(torch.get_rng_state(), state)


def test_the_winner_is_distributed_as_the_scores_say():
    scores, noise = torch.tensor([[0.0, 1.0, -torch.inf, 2.0, 0.5]]), Noise()
    counts = torch.zeros(5)
    for _ in range(20_000):
        counts[winner(scores, noise.take(scores))] += 1
    assert counts[2] == 0
    possible = [0, 1, 3, 4]
    expected = scores.double().softmax(dim=-1)[0, possible] * 20_000
    assert chisquare(counts[possible].double(), expected).pvalue > 1e-3


def test_a_close_draft_is_accepted_as_often_as_the_theorem_says():
    """At least (1 - d) / (1 + d), d the distance of the two distributions in total variation."""
    p = torch.tensor([[1.0, 0.6, 0.2, -0.4, 0.0]])
    q = p + torch.tensor([[0.3, -0.3, 0.1, 0.2, 0.0]])
    distance = float((p.softmax(-1) - q.softmax(-1)).abs().sum() / 2)
    noise, same = Noise(), 0
    for _ in range(5_000):
        guess = int(race(q, noise.ahead(0, q)).argmax())
        same += guess == winner(p, noise.take(p))
    assert same / 5_000 > (1 - distance) / (1 + distance) - 0.02
    assert same / 5_000 < 1


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_scores_without_a_distribution_are_refused(broken):
    scores = torch.tensor([[0.0, broken, 1.0]])
    with pytest.raises(RuntimeError, match="NaN or infinity"):
        winner(scores, Noise().take(scores))


def test_noise_looked_at_ahead_is_used_in_order_and_moves_nothing():
    like = torch.zeros(1, 4)
    plain = [torch.empty(1, 4).exponential_(1) for _ in range(4)]
    torch.manual_seed(0)
    noise = Noise()
    before = torch.get_rng_state()
    assert torch.equal(noise.ahead(2, like), plain[2])
    assert torch.equal(torch.get_rng_state(), before)
    assert [torch.equal(noise.take(like), one) for one in plain] == [True] * 4


def test_noise_is_drawn_anew_when_somebody_used_the_generator():
    like, noise = torch.zeros(1, 4), Noise()
    noise.ahead(1, like)
    torch.rand(3)
    state = torch.get_rng_state()
    taken = noise.take(like)
    torch.set_rng_state(state)
    assert torch.equal(taken, torch.empty(1, 4).exponential_(1))


def test_leads():
    tokens, lead, score = leads(torch.tensor([[1.0, 4.0, 3.0], [2.0, 2.0, -5.0]]))
    assert tokens.tolist() == [1, 0]
    assert lead.tolist() == [1.0, 0.0]
    assert score.tolist() == [4.0, 2.0]
    _, lead, _ = leads(torch.tensor([[-torch.inf, 1.0]]))
    assert lead.tolist() == [torch.inf]
