"""Which tokens of a vocabulary are frequent, as far as its tokenizer's making tells."""

from __future__ import annotations

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

CHARACTERS = 1024  # the first ones; a vocabulary for many scripts has thousands, most of them rare


def ranked_tokens(tokenizer: PreTrainedTokenizerBase | None) -> list[int] | None:
    """Token ids, those likely to be frequent first; None if the tokenizer does not tell.

    A vocabulary of merged pairs (BPE) has merged the most frequent pairs first: before them stand
    its characters, of which everything else is made. One that was pruned (unigram) keeps the
    logarithm of each token's chance. What was added to it, such as the end of an answer, is first.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    try:
        written: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
    except Exception:  # parts of it may be the user's own, which cannot be written down
        return None
    model = written.get("model", {})
    added = dict.fromkeys(token["id"] for token in written.get("added_tokens", ()))
    if model.get("type") == "BPE":
        ids: dict[str, int] = model["vocab"]
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        merged = dict.fromkeys(ids[token] for pair in pairs if (token := "".join(pair)) in ids)
        characters = sorted(set(ids.values()) - merged.keys())
        ranked = [*characters[:CHARACTERS], *merged, *characters[CHARACTERS:]]
    elif model.get("type") == "Unigram":
        scores = [score for _, score in model["vocab"]]
        ranked = sorted(range(len(scores)), key=lambda token: -scores[token])
    else:
        return None
    return list(added | dict.fromkeys(ranked))
