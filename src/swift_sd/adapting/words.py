"""What a search is doing, for a person to read."""

from __future__ import annotations

from swift_sd.adapting.adaptation import Adaptation
from swift_sd.adapting.allowance import SHARE
from swift_sd.adapting.kinds import Kind
from swift_sd.adapting.paper_adaptation import PaperAdaptation

FOUND = 1.01  # times plain decoding's speed


def described(adaptation: Adaptation | PaperAdaptation) -> str:
    """The state of the search for a layer set, in a sentence or two."""
    if isinstance(adaptation, PaperAdaptation):
        search = adaptation.search
        state = "has ended" if search.is_finished else "goes on"
        return (
            f"the paper's search {state} after {_candidates(search.told)}: best matchness "
            f"{search.best_score:.2f}, with {search.best}"
        )
    kind = adaptation.kinds.latest
    if kind is not None and kind.search is None and kind.best is not None:
        return f"known from a profile: {kind.best}"
    if kind is None or kind.search is None:
        return (
            "nothing is known yet of what may be skipped: looking begins when drafts have won the "
            "time for it, or after some text"
        )
    several = len(adaptation.kinds)
    kinds = f"; {several} kinds of input are told apart, this is the latest" if several > 1 else ""
    return _one(kind) + kinds


def _one(kind: Kind) -> str:
    search = kind.search
    assert search is not None
    tried = _candidates(search.told)
    if search.best.skip_ratio and search.gain >= FOUND:
        found = f"{search.best}, which promises {search.gain:.2f}x plain decoding"
        if search.is_finished:
            return f"the search has ended after {tried}: {found}"
        return f"the search goes on after {tried}: so far {found}"
    if search.is_finished:
        return f"the search has ended after {tried}: no set of sublayers is worth skipping here"
    if search.hope > (1 + SHARE) * search.gain:
        return f"the search goes on after {tried}: no set has proved worth skipping so far"
    return f"the search goes on now and then after {tried}: little is to be hoped for"


def _candidates(told: int) -> str:
    return f"{told} candidate" if told == 1 else f"{told} candidates"
