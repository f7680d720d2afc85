"""Finds a better layer set while responses are decoded, in time that is bounded by what it wins."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from threading import Lock
from time import perf_counter
from typing import Any

from torch import nn

from swift_sd.adapting.allowance import CHEAP, WINDOW, Allowance
from swift_sd.adapting.basis import draft_costs, measured_influence, seconds_to_measure
from swift_sd.adapting.costs import Costs
from swift_sd.adapting.kinds import Kind, Kinds, Met
from swift_sd.adapting.matchness import Window
from swift_sd.adapting.objective import Array
from swift_sd.adapting.rate_search import RateSearch
from swift_sd.adapting.response_adapter import ResponseAdapter
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step
from swift_sd.drafting.layer_skip import AGREED, OWN
from swift_sd.drafting.pace import Pace
from swift_sd.errors import LayerSetError
from swift_sd.model.draft_weights import AnyDraft
from swift_sd.model.layer_set import LayerSet
from swift_sd.model.sublayers import Sublayers
from swift_sd.model.view import View

LOOKED_AT = 8  # tokens on which influence is measured
FEWEST = 12  # tokens below which a score says nothing
DIFFERENT = 0.1  # of all sublayers
COSTS_LAST = 4096  # rounds after which a search that has ended looks again what sublayers cost
AT_ONCE = 32  # plain rounds for one look: where a step takes a millisecond, it is no trifle


class Adaptation:
    """Searches for the sublayers to skip, over all responses of a `Swift` object.

    One forward over the latest text measures how much each sublayer adds to the residual stream,
    one step what each costs. Where that promises a gain, candidates are scored. Kinds of input have
    searches of their own: see `Kinds`. On a prompt unlike those before, the set in use is scored as
    soon as time allows; where it is of no use, another kind is founded at once.

    Of several responses at once, one looks for better sets at a time, and all use what it finds.

    Args:
        sublayers: what `find_sublayers` found in the target.
        pace: what rounds cost.
        max_draft: longest draft.
        forget: called when drafts have become so different that what is known of them is void.
        reading: gives what reads prompts as the target does, as quickly as can be.
        eager: whether to score a candidate in every round until nothing more is to be found.
        bits: of the weights that drafts read.
        clock: tells the seconds that the search takes.
    """

    def __init__(
        self,
        sublayers: Sublayers,
        pace: Pace,
        max_draft: int,
        forget: Callable[[], None],
        reading: Callable[[], nn.Module],
        *,
        eager: bool = False,
        bits: int = 16,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._sublayers, self._reading, self._clock = sublayers, reading, clock
        self._pace, self._max_draft, self._forget = pace, max_draft, forget
        self._eager, self._bits = eager, bits
        self.at_once = 1 if eager else AT_ONCE  # plain rounds for one attempt to improve
        self._allowance = Allowance(pace, eager=eager)
        self._costs: Costs | None = None
        self._timed = -math.inf  # the round in which they were measured
        self._searching = Lock()
        self.kinds = Kinds()
        self.told = 0  # scores, by this object

    @property
    def best(self) -> LayerSet | None:
        """The best set known for the latest kind of input; None before anything is."""
        kind = self.kinds.latest
        return kind.best if kind is not None else None

    def begin(self, view: AnyDraft) -> ResponseAdapter:
        """What improves `view` during one response."""
        return ResponseAdapter(self, view, self._sublayers)

    def read(self, vector: Array, view: AnyDraft) -> Met:
        """A prompt, for whose kind `view` is set; see `Kinds.of`."""
        met = self.kinds.of(vector)
        self._use(met.kind, view)
        return met

    def has_changed(self, kind: Kind, step: Step) -> bool:
        """Count a round; whether drafts are accepted more or less often than they used to be."""
        self._allowance.elapse(step)
        if step.drafter not in (OWN, AGREED) or not step.drafted:
            return False
        right = step.accepted_on_chain
        return kind.changes.saw(right, min(right + 1, step.drafted))

    def follow(self, met: Met) -> None:
        """After such a change: search on from what is known, for another kind if need be."""
        kind = met.kind
        with self._searching:
            self._split(met)
            if met.kind is kind and kind.search is not None:
                kind.search.resume()

    def improve(self, met: Met, state: DecodingState, view: AnyDraft) -> None:
        """Spend a little of what may be spent; `view` then skips the best set known."""
        if self._searching.acquire(blocking=False):
            try:
                self._look(met, state, view)
            finally:
                self._searching.release()
        if self._use(met.kind, view) > DIFFERENT * 2 * self._sublayers.depth:
            self._forget()

    def _look(self, met: Met, state: DecodingState, view: AnyDraft) -> None:
        search, may = met.kind.search, self._may_search(met.kind)
        is_doubtful = met.in_doubt and search is not None
        if not may and not (is_doubtful and self._allowance.affords_doubt):
            return
        if not (tokens := self._window(state)):
            return
        begin, told = self._clock(), self.told
        is_probe = search is not None and search.is_finished
        if is_doubtful:
            self._doubt(met, state, tokens, view)
        elif is_probe and self._pace.rounds - self._timed > COSTS_LAST:
            self._measure_costs(state, view)
        else:
            self._search(met.kind, state, tokens, view)
        seconds = self._clock() - begin
        is_score = self.told > told or is_probe
        self._allowance.spend(seconds, scored=is_score, doubted=not may)

    def _window(self, state: DecodingState) -> int:
        """Tokens to score on, the prompt's too if it is cheap to ask the target about those.

        What it chose of a greedy response's own tokens is known. 0 if so few would say nothing, or
        the cache cannot go back.
        """
        tokens = min(WINDOW, state.cache.committed - 1, state.length - 1)
        step, reading = self._pace.step, self._pace.verify(WINDOW)
        is_cheap = self._eager or (step and reading and reading <= CHEAP * step)
        if not is_cheap and state.warping.is_argmax:
            tokens = min(tokens, state.length - state.prompt_length)
        return tokens if tokens >= FEWEST and state.cache.can_rewind(tokens) else 0

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form of all that was learned."""
        with self._searching:
            return {
                "bits": self._bits,
                "costs": self._costs.to_dict() if self._costs is not None else None,
                "kinds": [kind.to_dict() for kind in self.kinds],
            }

    def restore(self, data: Any, *, same_machine: bool) -> None:
        """Go on from what `to_dict` wrote instead of what is known.

        Costs of another machine are measured anew, and so is everything but the kinds of input and
        the influence of sublayers where drafts have read weights of other bits.

        Raises:
            LayerSetError: the data is damaged, or for a model of another depth.
        """
        depth = self._sublayers.depth
        try:
            kinds = [Kind.from_dict(entry, depth) for entry in data["kinds"]]
            same_drafts = data["bits"] == self._bits
            costs = Costs.from_dict(data["costs"], depth) if data["costs"] is not None else None
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise LayerSetError(f"what was learned is damaged: {error}") from None
        restored = Kinds()
        for kind in kinds:
            restored.add(kind if same_drafts else replace(kind, saved=None))
        with self._searching:
            self.kinds = restored
            self._costs = costs if same_machine and same_drafts else None

    def _use(self, kind: Kind, view: AnyDraft) -> int:
        """Skip the best set of the kind; in how many sublayers that is another one."""
        before = view.layer_set
        best = kind.best or LayerSet.none(before.depth)
        if best != before:
            view.use(best)
        return before.distance(best)

    def _may_search(self, kind: Kind) -> bool:
        search = kind.search
        if search is None:
            needed = seconds_to_measure(self._pace, LOOKED_AT, kind.influence, self._costs)
            return self._allowance.affords_start(kind.promise, needed)
        if search.is_finished:
            return self._sublayers.depth > 2 and self._allowance.affords_probe
        return self._allowance.affords_score(search.hope / search.gain)

    def _doubt(self, met: Met, state: DecodingState, tokens: int, view: AnyDraft) -> None:
        """See whether the set of the kind is of use for a prompt unlike those before."""
        kind, met.in_doubt = met.kind, False
        assert kind.search is not None
        if not (best := kind.search.best).skip_ratio:
            return
        score = self._matchness(best, state, tokens, view)
        if not kind.search.is_of_use(score, tokens):
            self._split(met, knows_nothing=True)
        if met.kind is kind:
            self._tell(kind, best, score, tokens)

    def _split(self, met: Met, *, knows_nothing: bool = False) -> None:
        if met.kind in self.kinds:  # else another process knows better by now
            self.kinds.split(met, knows_nothing=knows_nothing)

    def _search(self, kind: Kind, state: DecodingState, tokens: int, view: AnyDraft) -> None:
        if kind.search is None:
            kind.search, kind.saved = self._started(kind, state, view), None
            return
        candidate = kind.search.ask()
        self._tell(kind, candidate, self._matchness(candidate, state, tokens, view), tokens)

    def _measure_costs(self, state: DecodingState, view: AnyDraft) -> Costs:
        """Of sublayers, now; whatever was found so far goes by them."""
        costs = self._costs = draft_costs(view, state, self._pace, self._clock)
        self._timed = self._pace.rounds
        for kind in self.kinds:
            if kind.search is None:
                continue
            before = kind.search.best
            kind.search.take_costs(costs)
            if kind.search.best != before:
                kind.changes.restart()
        return costs

    def _matchness(
        self, candidate: LayerSet, state: DecodingState, tokens: int, view: AnyDraft
    ) -> float:
        window = Window(lambda: View(self._reading()), state, tokens)
        before = view.layer_set
        view.use(candidate)
        try:
            return window.matchness(view)
        finally:
            view.use(before)

    def _tell(self, kind: Kind, candidate: LayerSet, score: float, tokens: int) -> None:
        assert kind.search is not None
        before = kind.search.best
        kind.search.tell(candidate, score, tokens)
        self.told += 1
        if kind.search.best != before:  # another acceptance is to be expected from here on
            kind.changes.restart()

    def _started(self, kind: Kind, state: DecodingState, view: AnyDraft) -> RateSearch:
        """A search for a kind, from what is known and, where need be, measured now."""
        if kind.influence is None:
            kind.influence = measured_influence(self._reading(), self._sublayers, state, LOOKED_AT)
        costs = self._costs or self._measure_costs(state, view)

        def verify(rows: int) -> float:
            return self._pace.verify(rows) or costs.step

        search = RateSearch(
            costs,
            verify,
            max_draft=self._max_draft,
            hints=kind.influence,
            rounded=self._bits < 16,
        )
        if kind.saved is not None:
            search.restore(kind.saved)
        return search
