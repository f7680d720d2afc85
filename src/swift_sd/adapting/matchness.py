"""How often a sub-network agrees with the target, on text that is there already (SWIFT, 4.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from swift_sd.decoding.state import DecodingState
from swift_sd.model.draft_weights import AnyDraft
from swift_sd.model.view import View


class Window:
    """The latest tokens of a response, and what the target would have chosen behind each of them.

    A candidate is scored in one forward over all of them; the cached prefix before is reused, and
    the cache is left as it was.

    Args:
        target: makes what says what the target would have chosen, where the response does not
            tell: it does where each of its tokens is the likeliest of unchanged logits. None takes
            the text for it (the paper's way), which is another thing when sampling.
        state: the response; the window is its end, and lasts until tokens are added.
        tokens: length of the window.

    Raises:
        ValueError: the cache does not reach back so far: see `KVCache.can_rewind`; or the tokens.
    """

    def __init__(
        self, target: Callable[[], View] | None, state: DecodingState, tokens: int
    ) -> None:
        if not state.cache.can_rewind(tokens) or state.length <= tokens:
            raise ValueError(f"the cache cannot go back by {tokens} tokens")
        self._cache = state.cache
        self.tokens = tokens
        # From the end: the cache may hold a prefix that the tokens lack, and lacks their padding.
        self._read = state.tokens[:, -tokens - 1 : -1].to(state.device)
        known = state.length - state.prompt_length
        it_chose = state.warping.is_argmax and known >= tokens
        if target is None or it_chose:
            self._choices = state.tokens[0, -tokens:].to(state.device)
        else:
            self._choices = self._best(target())

    def matchness(self, view: View | AnyDraft) -> float:
        """The fraction of the places at which `view` chooses what the target does."""
        return float((self._best(view) == self._choices).double().mean())

    def _best(self, view: View | AnyDraft) -> Tensor:
        with self._cache.rewound(self.tokens), torch.no_grad():
            logits = view.forward(self._read, self._cache)[0]
        return logits.argmax(dim=-1)
