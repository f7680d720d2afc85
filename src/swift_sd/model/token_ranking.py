"""Which tokens of a vocabulary are frequent, as far as its tokenizer's making tells."""

from __future__ import annotations

import json
from typing import Any

from transformers import PreTrainedTokenizerBase


def ranked_tokens(tokenizer: PreTrainedTokenizerBase | None) -> list[int] | None:
    """Token ids, those likely to be frequent first; None if the tokenizer does not tell.

    A vocabulary of merged pairs (BPE) has merged the most frequent pairs first: before them stand
    its characters, of which everything else is made. One that was pruned (unigram) keeps the
    logarithm of each token's chance.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    model: dict[str, Any] = json.loads(backend.to_str())["model"]
    if model.get("type") == "BPE":
        ids: dict[str, int] = model["vocab"]
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        merged = dict.fromkeys(ids[token] for pair in pairs if (token := "".join(pair)) in ids)
        characters = sorted(set(ids.values()) - merged.keys())
        return [*characters, *merged]
    if model.get("type") == "Unigram":
        scores = [score for _, score in model["vocab"]]
        return sorted(range(len(scores)), key=lambda token: -scores[token])
    return None
