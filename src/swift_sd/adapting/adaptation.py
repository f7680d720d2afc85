"""Finds a better layer set while responses are decoded, in time that is bounded by what it wins."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

from transformers import PreTrainedModel

from swift_sd.adapting.costs import TimedView
from swift_sd.adapting.influence import InfluenceView
from swift_sd.adapting.matchness import Window
from swift_sd.adapting.rate_search import RateSearch
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step
from swift_sd.drafting.pace import Pace
from swift_sd.model.draft_weights import AnyDraft
from swift_sd.model.layer_set import LayerSet
from swift_sd.model.sublayers import Sublayers
from swift_sd.model.view import View

WINDOW = 32  # latest tokens to score on (SWIFT, section 5.1)
FEWEST = 12  # tokens below which a score says nothing
CREDIT = 2.5  # plain steps that looking for a gain may take before anything is known
SHARE = 0.005  # of all time, what it may take as long as no gain is in sight
MOST = 0.2  # of all time, what it may take however much it promises
DIFFERENT = 0.1  # of all sublayers
WORTH = 1.05  # times plain decoding's speed: from here on a gain is in sight


class Adaptation:
    """Searches for the sublayers to skip, over all responses of a `Swift` object.

    One forward over the latest text measures how much each sublayer adds to the residual stream,
    one step what each costs. Where that promises a gain, one candidate a round is scored.

    Args:
        model: the target; it is not changed.
        sublayers: what `find_sublayers(model)` found.
        pace: what rounds cost.
        max_draft: longest draft.
        forget: called when drafts have become so different that what is known of them is void.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sublayers: Sublayers,
        pace: Pace,
        max_draft: int,
        forget: Callable[[], None],
    ) -> None:
        self._model, self._sublayers = model, sublayers
        self._pace, self._max_draft, self._forget = pace, max_draft, forget
        self._elapsed = self._spent = 0.0
        self.search: RateSearch | None = None

    @property
    def best(self) -> LayerSet | None:
        """The best set known; None before anything is."""
        return self.search.best if self.search is not None else None

    def adapt(self, state: DecodingState, step: Step, view: AnyDraft) -> None:
        """Spend a little of what may be spent; `view` then skips the best set known."""
        self._elapsed += step.seconds
        tokens = min(WINDOW, state.cache.committed - 1)
        if not self._may_spend or tokens < FEWEST or not state.cache.can_rewind(tokens):
            return
        begin, before = perf_counter(), view.layer_set
        if self.search is None:
            self.search = self._started(state, tokens)
        elif not self.search.is_settled:
            self._score(state, tokens, view)
        view.use(self.search.best)
        if before.distance(self.search.best) > DIFFERENT * 2 * before.depth:
            self._forget()
        self._spent += perf_counter() - begin

    @property
    def _may_spend(self) -> bool:
        step = self._pace.step
        if step is None:
            return False
        gain = self.search.gain if self.search is not None else 1.0
        share = MOST if gain > WORTH else SHARE
        return self._spent <= CREDIT * step + share * self._elapsed

    def _score(self, state: DecodingState, tokens: int, view: AnyDraft) -> None:
        assert self.search is not None
        window = Window(View(self._model), state, tokens)
        candidate = self.search.ask()
        view.use(candidate)
        self.search.tell(candidate, window.matchness(view), tokens)

    def _started(self, state: DecodingState, tokens: int) -> RateSearch:
        """A search that knows what sublayers cost, and from their influence what to expect."""
        view = InfluenceView(self._model, self._sublayers)
        Window(view, state, tokens).matchness(view)
        timed = TimedView(self._model, self._sublayers)
        with state.cache.rewound(1):
            lap = timed.step(state.tokens[:, -2:-1].to(state.device), state.cache, view)
        inner = range(1, self._sublayers.depth - 1)
        # Layers are alike, and one lap is noisy: the median stands for each.
        typical = {
            kind: median(lap.parts[layer, kind] for layer in inner) for kind in ("attention", "mlp")
        }
        influence = view.influence
        plain = self._pace.step
        assert plain is not None
        whole = sum(lap.parts.values()) + lap.head
        # As shares of that step: the machine may be faster or slower now than it usually is.
        scale = plain / max(lap.step, whole)
        return RateSearch(
            self._sublayers.depth,
            [scale * typical[kind] for kind in ("attention", "mlp") for _ in inner],
            [*influence.attention[1:-1], *influence.mlp[1:-1]],
            plain,
            lambda rows: self._pace.verify(rows) or plain,
            self._max_draft,
        )


class Adapting:
    """`Adaptation` for one response, whose draft view it sets.

    Args:
        adaptation: what is learned over all responses.
        view: the sub-network of this response.
    """

    def __init__(self, adaptation: Adaptation, view: AnyDraft) -> None:
        self._adaptation, self._view = adaptation, view

    def adapt(self, state: DecodingState, step: Step) -> None:
        """See `decoding.drafter.Adapter`."""
        self._adaptation.adapt(state, step, self._view)
