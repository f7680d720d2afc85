"""Who drafts, if anyone: never slower than plain decoding, but for what finding out costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from torch import Tensor

from swift_sd.adapting.ledger import PAYS, Ledger, Purse
from swift_sd.decoding.draft_tree import NOTHING, DraftTree
from swift_sd.decoding.drafter import Drafter
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step
from swift_sd.drafting.pace import Pace

SUPPOSED = 0.75  # share of right tokens of a drafter that was never tried
DEEPEST = 8  # tokens of a draft that such expectations look at
# Rounds after which a plain one shows again what plain decoding costs: so many for each such round
# that there was, and at last at most so many.
PLAIN_SOON, PLAIN_EVERY = 12, 64
PLAIN_FIRST = 2  # such measurements before anything is drafted
# Where a step takes less seconds than that, they are taken behind so many others: behind a draft,
# so small a model has lost its weights from the processor's cache, and a plain step seems dear.
SHORT, WARM = 0.004, 3
AT_ONCE = 32  # plain rounds accounted for together: where a step takes a millisecond, it matters


def supposed(pace: Pace) -> float:
    """Speed as a multiple of plain decoding's that the costs of drafting let expect.

    The best depth d for Σ aⁱ tokens, i = 0 … d, in d draft steps and a verification, a the share of
    right tokens. 1 if nothing is known of what a draft costs.
    """
    plain, draft = pace.verify(1), pace.draft_step
    if not plain or not draft:
        return 1.0
    best, tokens = 0.0, 1.0
    for depth in range(1, DEEPEST + 1):
        tokens += SUPPOSED**depth
        seconds = depth * draft + (pace.verify(1 + depth) or plain)
        best = max(best, tokens * plain / seconds)
    return best


class TriableDrafter(Drafter, Protocol):
    """One that can be told to propose something even if its costs seem too high."""

    def propose(self, state: DecodingState, budget: int, *, is_trial: bool = False) -> DraftTree:
        """See `Drafter.propose`.

        Args:
            is_trial: whether to find out what drafts cost and gain, whatever is believed of it.
        """
        ...


@dataclass(frozen=True)
class Governed:
    """A drafter and its account.

    Attributes:
        drafter: who proposes when chosen.
        ledger: what came of it before.
        promise: the speed to expect of it in the next round, as a multiple of plain decoding's; 0
            if it has nothing to propose. It is asked before a round, where that is affordable.
        foresees: whether that says something of this very round, so that less than 1 need not be
            tried; and whether it learns from rounds in which others proposed.
        has_draft: whether it has something to propose, whatever its promise.
        forget: called when the drafter is tried for the first time in long: what else is known of
            how its drafts are accepted is old, too.
    """

    drafter: TriableDrafter
    ledger: Ledger
    promise: Callable[[DecodingState, int], float]
    foresees: bool
    has_draft: Callable[[], bool] = lambda: True
    forget: Callable[[], None] = lambda: None


class Governor:
    """Before each round: who drafts, if anyone.

    Whoever is expected to be fastest proposes, plain decoding being one of them. Where nobody is
    expected to be faster than that, one may try now and then, for what the purse affords, as long
    as there are rounds: no verdict is final.

    Args:
        drafters: in the order in which they try.
        pace: what rounds cost.
        purse: what finding out may cost.
        clock: tells the seconds that asking and learning take.
    """

    def __init__(
        self,
        drafters: Sequence[Governed],
        pace: Pace,
        purse: Purse,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._all, self._pace, self._purse, self._clock = drafters, pace, purse, clock
        self._chosen: Governed | None = None
        self._promise = 0.0  # of the one chosen
        self._asking: float | None = None  # seconds, in this round; None where nobody was asked
        self._pays = False  # to draft, as far as was known when drafters were last asked
        self._unpaid = 0.0  # seconds behind the last draft, of keeping accounts

    @property
    def name(self) -> str:
        """Of the drafter that was asked last."""
        return self._chosen.drafter.name if self._chosen else "none"

    def propose(self, state: DecodingState, budget: int) -> DraftTree:
        """What the chosen drafter proposes; nothing in a plain round."""
        if self._is_plain_due or not (self._pays or self._purse.may_ask):
            return NOTHING
        begin = self._clock()
        promises = [one.promise(state, budget) for one in self._all]
        choice = self._choice(promises)
        self._asking = self._clock() - begin
        if choice is None:
            return NOTHING
        self._chosen, self._promise = self._all[choice], promises[choice]
        is_trial = not self._pays
        if is_trial and self._chosen.ledger.renew():
            self._chosen.forget()
        return self._chosen.drafter.propose(
            state, budget, is_trial=is_trial and self._pace.is_doubtful
        )

    def learn(self, tree: DraftTree, path: Sequence[int], step: Step, logits: Tensor) -> None:
        """See `Drafter.learn`."""
        begin = self._clock()
        pace, chosen = self._pace, self._chosen
        pace.elapse()
        behind = pace.since_draft
        pace.since_draft = behind + 1 if chosen is None else 0
        rounds = self._purse.elapse(step.seconds)
        was_asked = self._asking is not None
        if not (was_asked or self._is_plain_due) and rounds < AT_ONCE:
            return
        tells = chosen is None and (behind >= WARM or (pace.step or SHORT) >= SHORT)
        pace.saw_round(step, is_usual=tells or step.verified > 0)
        if tells:
            pace.saw_plain(step)
        for one in self._all if was_asked else ():
            if one is chosen or one.foresees:
                one.drafter.learn(tree, path, step, logits)
        learning = self._clock() - begin
        if chosen is not None:
            chosen.ledger.record(step, self._promise, learning + self._unpaid)
        self._account(step, learning)
        # The loop asks nobody where there is no room for a draft.
        self._chosen, self._asking = None, None
        self._unpaid = self._clock() - begin - learning if chosen is not None else 0.0

    def _account(self, step: Step, learning: float) -> None:
        if not (plain := self._pace.step):
            return
        self._purse.account(plain)
        if self._chosen is not None:
            self._purse.ask(min((step.seconds + learning) / plain - len(step.tokens), 0.0))
        elif self._asking is not None:
            self._purse.ask((self._asking + learning) / plain)

    @property
    def _is_plain_due(self) -> bool:
        """Whether a plain round is to show what plain decoding takes, for want of such rounds."""
        plain, since = self._pace.plain_rounds, self._pace.since_plain
        return plain < PLAIN_FIRST or (self._pays and since >= min(PLAIN_SOON * plain, PLAIN_EVERY))

    def _choice(self, promises: Sequence[float]) -> int | None:
        """Which of all drafters proposes; None for a plain round."""
        all_of_them = range(len(self._all))
        expected = [
            one.ledger.expected(promise) for one, promise in zip(self._all, promises, strict=True)
        ]
        best = max(all_of_them, key=expected.__getitem__)
        self._pays = expected[best] > PAYS
        if self._pays:
            return best
        # What several rows cost is found out by whoever has something to propose.
        doubtful = self._pace.is_doubtful
        for one, promise in enumerate(promises):
            drafter = self._all[one]
            in_doubt = promise > 1 or (doubtful and drafter.has_draft()) or not drafter.foresees
            if in_doubt and drafter.ledger.may_try:
                return one
        return None
