"""A change is noticed, noise is not."""

import numpy as np
import pytest

from swift_sd.adapting.changes import FEWEST, Changes


def trials_until_noticed(changes, random, share, most, chain=4):
    """Chains of up to 4 tokens, each of them accepted with the same chance."""
    seen = 0
    while seen < most:
        right = int((random.random(chain) < share).cumprod().sum())
        of = min(right + 1, chain)
        seen += of
        if changes.saw(right, of):
            return seen
    return None


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_chance_alone_is_no_change(share):
    changes, random = Changes(), np.random.default_rng(1)
    assert trials_until_noticed(changes, random, share, 50_000) is None


@pytest.mark.parametrize(("before", "after"), [(0.9, 0.5), (0.6, 0.2), (0.4, 0.85)])
@pytest.mark.parametrize("seed", range(5))
def test_a_fall_and_a_rise_are_noticed_soon(before, after, seed):
    changes, random = Changes(), np.random.default_rng(seed)
    assert trials_until_noticed(changes, random, before, 1000) is None
    noticed = trials_until_noticed(changes, random, after, 1000)
    assert noticed is not None
    assert noticed <= 150


def test_once_noticed_the_new_share_is_the_usual_one():
    changes, random = Changes(), np.random.default_rng(0)
    trials_until_noticed(changes, random, 0.9, 1000)
    assert trials_until_noticed(changes, random, 0.4, 1000)
    assert trials_until_noticed(changes, random, 0.4, 20_000) is None


def test_a_slow_drift_is_no_change():
    changes, random = Changes(), np.random.default_rng(0)
    for share in np.linspace(0.8, 0.7, 40):
        assert trials_until_noticed(changes, random, share, 1000) is None


def test_at_first_there_is_nothing_to_compare_with():
    changes = Changes()
    assert not changes.saw(FEWEST - 1, FEWEST - 1)
    assert not changes.saw(0, FEWEST)


@pytest.mark.parametrize("share", [0, 1])
def test_certainties_are_shares_too(share):
    changes = Changes()
    for _ in range(500):
        assert not changes.saw(4 * share, 4)
    assert any(changes.saw(4 * (1 - share), 4) for _ in range(20))


@pytest.mark.parametrize(("right", "of"), [(-1, 2), (3, 2)])
def test_what_cannot_be_is_refused(right, of):
    with pytest.raises(ValueError, match="trials"):
        Changes().saw(right, of)
