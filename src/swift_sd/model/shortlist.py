"""Tokens that drafts choose among, so that they need not read the whole language model head."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import torch
from torch import Tensor

FREQUENT = 4  # of so many tokens of the vocabulary one belongs to it from the start
LEAST = 4096  # tokens; a smaller vocabulary is not worth the trouble
FULL = 0.5  # of the vocabulary, or twice what it began with: then what was learned is forgotten
ENOUGH = 0.95  # share of the target's tokens below which the whole head is read
FADE = 0.99  # weight of the tokens before


class Shortlist:
    """The most frequent tokens of the vocabulary and those of the texts so far.

    What the target says is added to them, and how much of it was listed before tells whether the
    list serves. Verification reads the whole head: the output cannot change.

    Args:
        vocabulary: number of tokens.
        ranking: token ids, the most frequent first, see `ranked_tokens`; None for the order of the
            ids, which is that of the merges in most vocabularies of merged pairs.
    """

    def __init__(self, vocabulary: int, ranking: Sequence[int] | None = None) -> None:
        first = max(LEAST, vocabulary // FREQUENT)
        known = [token for token in ranking or range(vocabulary) if token < vocabulary]
        self._frequent = torch.tensor(known[:first], dtype=torch.long, device="cpu")
        self._most = max(2 * first, FULL * vocabulary)
        with torch.inference_mode(False):  # it is written to in and outside of that mode
            self._is_listed = torch.zeros(vocabulary, dtype=torch.bool, device="cpu")
        self._tokens: Tensor | None = None
        self._coverage = 1.0
        self._changing = Lock()  # responses on several threads share it
        self._start()

    def add(self, tokens: Sequence[int]) -> None:
        """List these too."""
        with self._changing:
            self._add(tokens)

    def _add(self, tokens: Sequence[int]) -> None:
        tokens = [token for token in set(tokens) if 0 <= token < len(self._is_listed)]
        listed = self._is_listed[tokens].tolist()
        new = [token for token, known in zip(tokens, listed, strict=True) if not known]
        if not new:
            return
        if self._is_listed.sum() + len(new) > self._most:
            self._start()
            new = tokens
        self._is_listed[new] = True
        self._tokens = None

    def judge(self, tokens: Sequence[int]) -> None:
        """The target said these: would a draft have known them?"""
        with self._changing:
            for known in self._is_listed[list(tokens)].tolist():
                self._coverage = FADE * self._coverage + (1 - FADE) * known
            self._add(tokens)

    @property
    def tokens(self) -> Tensor | None:
        """The listed ones, ascending, int32; None where the whole head is better."""
        if self._coverage < ENOUGH:
            return None
        with self._changing:
            if self._tokens is None:
                self._tokens = self._is_listed.nonzero()[:, 0].int()
            return self._tokens

    def _start(self) -> None:
        self._is_listed[:] = False
        self._is_listed[self._frequent] = True
        self._tokens = None
