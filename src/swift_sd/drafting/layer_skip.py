"""SWIFT's drafter: the target with some of its sublayers left out (SWIFT, section 4.2)."""

from __future__ import annotations

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
            token, confidence = self._choose(state, draft, logits)
            if confidence < self.early_stop or draft.tokens[-1] in state.stopping.eos:
                break
        state.cache.rollback()
        return draft

    def _choose(self, state: DecodingState, draft: Draft, logits: Tensor) -> tuple[Tensor, float]:
        """Add a token to `draft`; return it as `[1, 1]` with the probability of the likeliest."""
        prefix = state.tokens
        if state.warping.draft_needs_prefix:
            prefix = state.tokens_with(draft.tokens)
        scores = state.warping.draft_scores(prefix, logits)
        if state.warping.do_sample:
            distribution = scores[0].softmax(dim=-1)
            draft.distributions.append(distribution)
            token, peak = torch.multinomial(distribution, 1), distribution.max()
        else:
            best, token = scores[0].max(dim=-1, keepdim=True)
            peak = (best - scores[0].logsumexp(dim=-1)).exp()
        chosen, confidence = torch.stack(
            [token.squeeze().double(), peak.squeeze().double()]
        ).tolist()
        draft.tokens.append(int(chosen))
        return token.view(1, 1), confidence
