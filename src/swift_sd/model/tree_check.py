"""Whether a model reads trees rightly: found by trying, not by its name."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from swift_sd.model.draft_view import DraftView
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.layer_set import LayerSet
from swift_sd.model.sublayers import Sublayers
from swift_sd.model.view import View, spread_tokens

PREFIX = 4
FAITHFUL = 0.1  # of what a wrong mask changes


def why_no_trees(model: PreTrainedModel, sublayers: Sublayers) -> str | None:
    """The reason why `model` can verify chains only; None if it reads trees.

    A node behind a sibling of its parent must not see that sibling: its logits have to be those
    that it has in a chain. How far they may be off is measured against how far they are when the
    sibling is seen. One layer of each kind and the first and the last one take part.
    """
    view = DraftView(model, sublayers, LayerSet.none(sublayers.depth))
    if not view.tree_mask.is_supported:
        kind = model.config.get_text_config(decoder=True)._attn_implementation
        return f"its {kind} attention takes no masks of other forms"
    for layer_set in (_most(model, sublayers.depth), view.layer_set):
        view.use(layer_set)
        try:
            with_tree, right, wrong = _leaf_logits(view, model)
        except (TypeError, ValueError, RuntimeError, KeyError) as error:
            return f"it cannot be given a mask of another form ({type(error).__name__}: {error})"
        if bool(right.isfinite().all()):  # a model that lacks most of its layers may overflow
            break
    if (with_tree - right).norm() <= FAITHFUL * (wrong - right).norm():
        return None
    return "it does not follow a mask of another form"


def _leaf_logits(view: View, model: PreTrainedModel) -> tuple[Tensor, Tensor, Tensor]:
    """A leaf's logits in a tree with a sibling of its parent, without that, and behind it."""
    cache = KVCache(attention_windows(model.config))
    tokens = spread_tokens(model, PREFIX + 4)
    view.forward(tokens[:, :PREFIX], cache)
    cache.commit(PREFIX)
    root, node, sibling, leaf = (tokens[:, PREFIX + row, None] for row in range(4))

    def last(*rows: Tensor, ancestry: Tensor | None = None) -> Tensor:
        logits = view.forward(torch.cat(rows, dim=1), cache, ancestry=ancestry)
        cache.rollback()
        return logits[0, -1].float()

    ancestry = torch.eye(4, dtype=torch.bool, device="cpu")
    ancestry[:, 0] = ancestry[3, 1] = True
    with_tree = last(root, node, sibling, leaf, ancestry=ancestry)
    return with_tree, last(root, node, leaf), last(root, node, sibling, leaf)


def _most(model: PreTrainedModel, depth: int) -> LayerSet:
    """Everything that may be skipped but one layer of each kind of attention."""
    config = model.config.get_text_config(decoder=True)
    kinds = list(
        zip(
            getattr(config, "layer_types", None) or [None] * depth,
            attention_windows(model.config),
            strict=True,
        )
    )
    keep = {kinds.index(kind) for kind in kinds}
    skipped = frozenset(range(1, depth - 1)) - keep
    return LayerSet(depth, skipped, skipped)
