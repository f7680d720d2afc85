"""What a layer set is worth: tokens per second, from what it costs and how often it is right."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from swift_sd.adapting.costs import Costs
from swift_sd.errors import ConfigError
from swift_sd.model.layer_set import LayerSet

Array = NDArray[np.float64]


def expected_rates(acceptance: ArrayLike, draft_step: ArrayLike, verify: Array) -> Array:
    """What drafts yield with chains of the best length, not checked.

    A round with a chain of k drafted tokens brings (1 - a^(k+1)) / (1 - a) tokens on average
    (Leviathan et al. 2023, equation 1) in k · `draft_step` + `verify`[k] seconds. k = 0 is plain
    decoding.

    Args:
        acceptance: chance a that a drafted token is accepted, 0 to 1, `[...]`.
        draft_step: seconds of one forward of the draft, `[...]`.
        verify: seconds to verify chains of 0, 1, 2, … tokens; see `verify_seconds`.

    Returns:
        Tokens per second, `[...]`.
    """
    lengths = np.arange(len(verify))
    # The sum 1 + a + … + a^k rather than its closed form, which is 0 / 0 at a = 1.
    once = np.asarray(acceptance, dtype=np.float64)[..., None]
    chances = np.where(lengths, once, 1.0).cumprod(axis=-1)  # powers, without their price
    seconds = np.asarray(draft_step, dtype=np.float64)[..., None] * lengths + verify
    return np.asarray((np.cumsum(chances, axis=-1) / seconds).max(axis=-1), dtype=np.float64)


def verify_seconds(verify: Callable[[int], float], max_draft: int) -> Array:
    """Seconds to verify chains of 0 to `max_draft` tokens, `[max_draft + 1]`.

    Raises:
        ConfigError: `max_draft` is negative, or a time is not a positive number.
    """
    if max_draft < 0:
        raise ConfigError(f"max_draft is {max_draft}; it must be 0 or more")
    seconds = np.array([verify(length + 1) for length in range(max_draft + 1)], dtype=np.float64)
    if not (np.isfinite(seconds) & (seconds > 0)).all():
        raise ConfigError(f"verify gave {seconds.tolist()}; it must give positive seconds")
    return seconds


def sublayer_bits(layer_set: LayerSet) -> Array:
    """1 where a set skips: attention of layers 1 to depth - 2, then their MLPs."""
    inner = range(1, layer_set.depth - 1)
    parts = (layer_set.attention, layer_set.mlp)
    return np.array([float(layer in part) for part in parts for layer in inner])


def layer_set_of(depth: int, bits: Array) -> LayerSet:
    """The set that skips where `bits` is not 0; the inverse of `sublayer_bits`."""
    attention, mlp = (np.flatnonzero(part) + 1 for part in np.split(bits, 2))
    return LayerSet(depth, frozenset(attention.tolist()), frozenset(mlp.tolist()))


class Rates:
    """Tokens per second of layer sets, given as rows of `sublayer_bits`.

    Args:
        costs: seconds of a step and of its sublayers.
        verify: seconds of a forward of the target by its number of rows; see `refresh`.
        max_draft: longest chain.

    Raises:
        ConfigError: costs are not positive seconds, or what `verify` gives is not.
    """

    def __init__(self, costs: Costs, verify: Callable[[int], float], max_draft: int) -> None:
        self._ask, self._max_draft = verify, max_draft
        self.take(costs)

    def take(self, costs: Costs) -> None:
        """Go by these costs from now on; raises `ConfigError` as above."""
        self.saved: Array = np.array([*costs.attention[1:-1], *costs.mlp[1:-1]], dtype=np.float64)
        self._step, self._least = costs.step, costs.rest + costs.head
        if not (np.isfinite(self.saved).all() and (self.saved >= 0).all()):
            raise ConfigError("the costs of sublayers must be seconds, 0 or more; measure anew")
        if not (0 < self._step < math.inf and 0 <= self._least < math.inf):
            raise ConfigError(f"a step costs {self._step} s; it must be above 0; measure anew")
        self.refresh()

    def refresh(self) -> None:
        """Ask `verify` anew: it may have learned."""
        self._verify = verify_seconds(self._ask, self._max_draft)

    @property
    def plain(self) -> float:
        """Tokens per second without drafts."""
        return float(1 / self._verify[0])

    def of(self, sets: Array, acceptance: Array) -> Array:
        """Of sets `[..., sublayers]` with these acceptance rates `[...]`."""
        steps = np.maximum(self._step - sets @ self.saved, self._least)
        return expected_rates(acceptance, steps, self._verify)

    def beginnings(self, harms: Array) -> Array:
        """The sets of the 0, 1, 2, … sublayers with least harm per second saved.

        If the harms were true, the best of all sets would nearly be among them.

        Args:
            harms: `[..., sublayers]`.

        Returns:
            `[..., sublayers + 1, sublayers]`
        """
        order = np.argsort(harms / np.maximum(self.saved, 1e-12), axis=-1, kind="stable")
        rank = np.argsort(order, axis=-1, kind="stable")
        counts = np.arange(harms.shape[-1] + 1)[:, None]
        return np.asarray(rank[..., None, :] < counts, dtype=np.float64)

    def regret(self, layer_set: Array, draws: Array, always: Array) -> float:
        """What knowing the harms would win over `layer_set`, as a share of its rate, on average.

        Args:
            layer_set: `[sublayers]`.
            draws: of the harms, `[n, sublayers]`.
            always: of the harm that comes with any set, `[n]`.
        """
        order = np.argsort(draws / np.maximum(self.saved, 1e-12), axis=-1, kind="stable")
        # Along each order all beginnings at once: the same as `of(beginnings(draws), …)`.
        ordered = np.take_along_axis(draws, order, axis=-1)
        harm = np.concatenate([always[:, None], ordered], axis=-1).cumsum(axis=-1)
        saved = np.pad(self.saved[order].cumsum(axis=-1), ((0, 0), (1, 0)))
        steps = np.maximum(self._step - saved, self._least)
        rates = expected_rates(np.exp(-harm), steps, self._verify)
        best = rates.max(axis=-1, initial=self.plain)
        now = self.of(np.tile(layer_set, (len(draws), 1)), np.exp(-draws @ layer_set - always))
        return float((best / now).mean()) - 1
