"""The paper's search while responses are decoded, as published (SWIFT, sections 4.1 and 5.1)."""

from __future__ import annotations

from threading import Lock

from torch import nn

from swift_sd.adapting.allowance import WINDOW
from swift_sd.adapting.matchness import Window
from swift_sd.adapting.paper_search import PaperSearch
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step
from swift_sd.model.draft_weights import AnyDraft
from swift_sd.model.layer_set import LayerSet


class PaperAdaptation:
    """Two phases: as long as the search lasts each round scores a candidate; then it only drafts.

    Args:
        search: over all responses of a `Swift` object.
    """

    def __init__(self, search: PaperSearch) -> None:
        self.search = search
        self._searching = Lock()

    @property
    def best(self) -> LayerSet:
        """The set with the best score; at first every second sublayer."""
        return self.search.best

    def begin(self, view: AnyDraft) -> PaperAdapting:
        """What improves `view` during one response."""
        return PaperAdapting(self, view)

    def score(self, state: DecodingState, view: AnyDraft) -> None:
        """Score a candidate on the latest generated tokens; `view` then skips the best set."""
        search = self.search
        known = state.length - state.prompt_length
        ready = known >= WINDOW and state.cache.can_rewind(WINDOW)
        if ready and not search.is_finished and self._searching.acquire(blocking=False):
            try:
                candidate = search.ask()
                view.use(candidate)
                matchness = Window(None, state, WINDOW).matchness(view)
                search.tell(candidate, matchness, WINDOW)
            finally:
                view.use(search.best)
                self._searching.release()
        elif view.layer_set != search.best:  # another response has found it
            view.use(search.best)


class PaperAdapting:
    """`PaperAdaptation` for one response, whose draft view it sets."""

    def __init__(self, adaptation: PaperAdaptation, view: AnyDraft) -> None:
        self._adaptation, self._view = adaptation, view

    def reader(self, module: nn.Module) -> None:
        """None: the prompt does not matter to it."""

    @property
    def layer_set(self) -> LayerSet:
        """See `decoding.drafter.Adapter`."""
        return self._view.layer_set

    def adapt(self, state: DecodingState, step: Step) -> None:
        """See `decoding.drafter.Adapter`."""
        self._adaptation.score(state, self._view)
