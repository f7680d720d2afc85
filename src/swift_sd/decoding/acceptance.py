"""Which drafted tokens the target accepts. Plain maths over small tensors: no model in sight.

The two acceptors are lazy: they ask for the target's choice at a place only after every token
before it has been taken by the caller. So whatever turns logits into that choice (logits
processors, with state or without) sees exactly the prefixes, in the order, that it would see in
plain decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


def accept_greedy(drafted: Sequence[int], best: Callable[[int], int]) -> Iterator[int]:
    """Yield the target's own tokens for as long as the draft foresaw them, and one more.

    Args:
        drafted: proposed tokens d₀ … dₙ₋₁.
        best: the target's token at place i, given that d₀ … dᵢ₋₁ were right; i ≤ n.
    """
    for place, token in enumerate(drafted):
        chosen = best(place)
        yield chosen
        if chosen != token:
            return
    yield best(len(drafted))


def accept_sampled(
    drafted: Sequence[int],
    q: Sequence[Tensor],
    p: Callable[[int], Tensor],
    uniform: Callable[[], float],
    draw: Callable[[Tensor], int],
) -> Iterator[int]:
    """Yield tokens distributed exactly as if each were drawn from the target.

    Speculative sampling: Leviathan et al. 2023, section 2.3 and appendix A.1.

    Args:
        drafted: proposed tokens; token i was drawn from `q[i]`.
        q: the draft's distributions, `[vocabulary]` each.
        p: the target's distribution at place i, `[vocabulary]`; i ≤ number drafted.
        uniform: a random number in [0, 1).
        draw: a random token from a distribution.
    """
    for place, token in enumerate(drafted):
        target = p(place)
        if not uniform() < acceptance_probability(target, q[place], token):  # nor if that is NaN
            yield draw(residual(target, q[place]))
            return
        yield token
    yield draw(p(len(drafted)))


def acceptance_probability(p: Tensor, q: Tensor, token: int) -> float:
    """min(1, p(token) / q(token)), for a token drawn from q."""
    target, draft = torch.stack([p[token], q[token]]).tolist()  # one transfer from the device
    ratio: float = 1.0 if target >= draft else target / draft
    return ratio


def residual(p: Tensor, q: Tensor) -> Tensor:
    """What to draw from when a draft from q was refused: max(p - q, 0), normalised; `[vocabulary]`.

    Where p and q agree in every bit nothing is ever refused; should rounding have it otherwise, the
    target's own distribution is the answer.
    """
    rest = torch.clamp(p - q, min=0)
    total = rest.sum()
    return torch.where(total > 0, rest / total.clamp(min=torch.finfo(p.dtype).tiny), p)
