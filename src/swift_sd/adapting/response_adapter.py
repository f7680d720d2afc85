"""What improves the drafts of one response, with what is learned over all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from swift_sd.adapting.kinds import Met
from swift_sd.adapting.prompt_view import PromptView
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step
from swift_sd.model.draft_weights import AnyDraft
from swift_sd.model.layer_set import LayerSet
from swift_sd.model.sublayers import Sublayers

if TYPE_CHECKING:
    from swift_sd.adapting.adaptation import Adaptation


class ResponseAdapter:
    """`Adaptation` for one response, whose draft view it sets.

    Args:
        adaptation: what is learned over all responses.
        view: the sub-network of this response.
        sublayers: what `find_sublayers(model)` found.
    """

    def __init__(self, adaptation: Adaptation, view: AnyDraft, sublayers: Sublayers) -> None:
        self._adaptation, self._view, self._sublayers = adaptation, view, sublayers
        self._prompt: PromptView | None = None
        self._met: Met | None = None
        self._waiting = 0  # plain rounds behind which nothing was improved

    def reader(self, module: nn.Module) -> PromptView:
        """See `decoding.drafter.Adapter`."""
        self._prompt = PromptView(module, self._sublayers)
        return self._prompt

    @property
    def layer_set(self) -> LayerSet:
        """See `decoding.drafter.Adapter`."""
        return self._view.layer_set

    def adapt(self, state: DecodingState, step: Step) -> None:
        """See `decoding.drafter.Adapter`."""
        if self._met is None:
            assert self._prompt is not None
            self._met = self._adaptation.read(self._prompt.mean, self._view)
        if self._adaptation.has_changed(self._met.kind, step):
            self._adaptation.follow(self._met)
        self._waiting += 1
        if self._waiting < self._adaptation.at_once and not (step.prefill or step.drafter):
            return
        self._waiting = 0
        self._adaptation.improve(self._met, state, self._view)
