"""SWIFT's drafter: the target with some of its sublayers left out (SWIFT, section 4.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from swift_sd.decoding.draft import Draft
from swift_sd.decoding.state import DecodingState
from swift_sd.model.draft_view import DraftView


class LayerSkipDrafter:
    """Decodes with the sub-network until it is unsure.

    Args:
        view: the sub-network.
        early_stop: draft no further behind a token whose distribution peaks below this probability.
            That token itself is kept: it is drawn already, and verifying one more row costs little.
    """

    name = "layer_skip"

    def __init__(self, view: DraftView, early_stop: float) -> None:
        self.view = view
        self.early_stop = early_stop

    def propose(self, state: DecodingState, budget: int) -> Draft:
        """Draft up to `budget` tokens behind `state`."""
        draft = Draft()
        token = state.last_token
        while len(draft) < budget:
            logits = self.view.forward(token, state.cache)[:, -1]  # [1, vocabulary]
            chosen = self._choose(state, draft, logits)
            if chosen is None:
                break
            token, confidence = chosen
            if confidence < self.early_stop or draft.tokens[-1] in state.stopping.eos:
                break
        state.cache.rollback()
        return draft

    def _choose(
        self, state: DecodingState, draft: Draft, logits: Tensor
    ) -> tuple[Tensor, float] | None:
        """Add a token to `draft`; return it as `[1, 1]` with the probability of the likeliest.

        None if the sub-network computed no distribution: it may overflow where the target does not.
        """
        prefix = state.tokens
        if state.warping.draft_needs_prefix:
            prefix = state.tokens_with(draft.tokens)
        scores = state.warping.draft_scores(prefix, logits)[0]
        distribution = scores.softmax(dim=-1)
        peak = distribution.max()
        if state.warping.do_sample:
            # multinomial fails on NaN; a token drawn in spite of it is not proposed, see below.
            token = torch.multinomial(distribution.nan_to_num(nan=1.0), 1)
        else:
            token = scores.argmax(dim=-1, keepdim=True)
        chosen, confidence = torch.stack([token[0].double(), peak.double()]).tolist()
        if math.isnan(confidence):
            return None
        draft.tokens.append(int(chosen))
        if state.warping.do_sample:
            draft.distributions.append(distribution)
        return token.view(1, 1).to(state.device), confidence
