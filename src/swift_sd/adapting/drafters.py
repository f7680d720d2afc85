"""The drafters of a model that ours chooses among, and what is known of how they fare."""

from __future__ import annotations

from collections.abc import Callable

import torch

from swift_sd.adapting.governor import Governed, Governor, supposed
from swift_sd.adapting.ledger import FORESIGHT, TRUST, Ledger, Purse
from swift_sd.config import SwiftConfig
from swift_sd.drafting.calibration import Calibrations
from swift_sd.drafting.growth import CostGrowth
from swift_sd.drafting.layer_skip import AGREED, OWN, LayerSkipDrafter
from swift_sd.drafting.memory import Memory
from swift_sd.drafting.pace import Pace, Prior
from swift_sd.drafting.recall import COPYING, RECYCLING, RecallDrafter
from swift_sd.model.draft_weights import AnyDraft

MODEL = "model"  # among the drafters; the others are called what their tokens are


class Drafters:
    """Lasts for all responses: each adds to what is known of costs, acceptance and speed.

    Args:
        config: which of them there are.
        device: of the model.
        prior: costs measured beforehand.
        clock: tells the seconds.
    """

    def __init__(
        self, config: SwiftConfig, device: torch.device, prior: Prior, clock: Callable[[], float]
    ) -> None:
        self._config, self._clock = config, clock
        self.pace, self._purse = Pace(device, prior), Purse()
        self._calibrations = Calibrations()
        self._ledger = Ledger(self.pace, self._purse, TRUST)
        self._recall_ledger = Ledger(self.pace, self._purse, FORESIGHT)

    def governor(self, view: AnyDraft, memory: Memory, *, reads_trees: bool) -> Governor:
        """Who drafts in one response.

        Args:
            view: the draft of the model.
            memory: tokens of earlier texts.
            reads_trees: whether the target can verify alternatives.
        """
        growth = CostGrowth(self._calibrations, self.pace, reads_trees)
        names, drafters, recall = self._config.drafters, [], None
        if names != (MODEL,):
            recycled = memory.successors if RECYCLING in names else None
            recall = RecallDrafter(growth, recycled, copies=COPYING in names)
            drafters.append(
                Governed(
                    recall,
                    self._recall_ledger,
                    recall.promise,
                    foresees=True,
                    has_draft=recall.has_draft,
                )
            )
        if MODEL in names:
            ahead = recall if self._config.cascade else None
            own = LayerSkipDrafter(view, growth, ahead, view.shortlist, self._clock)
            drafters.append(
                Governed(
                    own,
                    self._ledger,
                    lambda state, budget: supposed(self.pace),
                    foresees=False,
                    forget=self._forget_acceptance,
                )
            )
        return Governor(drafters, self.pace, self._purse, self._clock)

    def forget(self) -> None:
        """Drafts of the model are others now: how they were accepted says nothing."""
        self._forget_acceptance()
        self._ledger.forget()

    def _forget_acceptance(self) -> None:
        for source in (OWN, AGREED):
            self._calibrations[source].forget()
