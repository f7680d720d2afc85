"""Running a causal language model on our cache."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swift_sd.model.kv_cache import KVCache, cache_name
from swift_sd.model.rope import changes_with_length
from swift_sd.model.tree_mask import TreeMask

INSIDES = ("output_attentions", "output_hidden_states", "output_router_logits")


def spread_tokens(model: PreTrainedModel, count: int) -> Tensor:
    """Ids from all over the vocabulary, for trials, `[1, count]`, int64, on the model's device.

    Special tokens are often at its ends, which are left out. A mixture of experts reads several.
    """
    embedding: Any = model.get_input_embeddings()
    weight: Tensor = embedding.weight
    spread = torch.linspace(
        0, len(weight) - 1, count + 2, dtype=torch.float64, device="cpu"
    ).long()[1:-1]
    return spread.unsqueeze(0).to(model.device)


class View:
    """A causal language model, or a cheaper copy that shares its tensors, over a `KVCache`.

    Args:
        module: a transformers `…ForCausalLM`, or a copy of one; it is only called.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.tree_mask = TreeMask(module)
        parameter = next(module.parameters(), torch.empty(0, dtype=torch.float32, device="cpu"))
        self.device, self.dtype = parameter.device, parameter.dtype
        # Inference mode is faster, but what a module keeps from it could never be trained again.
        config = getattr(module, "config", None)
        self._leaves_no_trace = config is None or not changes_with_length(config)
        accepted = inspect.signature(type(module).forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._takes_keep = "logits_to_keep" in accepted
        self._cache_name = cache_name(accepted)
        # Where the configuration asks for these, a copy would put hooks into what it shares.
        asked = [name for name in INSIDES if getattr(config, name, False)]
        self._quiet = dict.fromkeys(asked, False)

    def wait(self) -> None:
        """Return when the device has done all that was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def forward(
        self, tokens: Tensor, cache: KVCache, *, keep: int = 0, ancestry: Tensor | None = None
    ) -> Tensor:
        """Run `tokens` behind everything that `cache` holds, and write their keys and values there.

        Args:
            tokens: `[batch, new]`, int64.
            cache: advanced by `new` positions.
            keep: how many of the last positions to compute logits for; 0 for all.
            ancestry: for a tree which of `tokens` each one follows, `[new, new]`, bool, itself
                included, on the CPU; None for a chain.

        Returns:
            Logits `[batch, new or keep, vocabulary]` in the model's dtype.
        """
        count = tokens.shape[1]
        options: dict[str, Any] = {self._cache_name: cache}
        if self._takes_positions:
            if ancestry is None:
                places = torch.arange(cache.cursor, cache.cursor + count, device=tokens.device)
            else:
                places = (cache.cursor - 1 + ancestry.sum(dim=1)).to(tokens.device)
            options["position_ids"] = places.unsqueeze(0)
        if ancestry is not None:
            options["attention_mask"] = self.tree_mask(ancestry, cache, self.dtype, tokens.device)
        if self._takes_keep:
            options["logits_to_keep"] = keep
        options |= self._quiet
        # In this order: inference_mode(False) would switch gradients on again.
        with torch.inference_mode(self._leaves_no_trace), torch.no_grad():
            output = self.module(input_ids=tokens, use_cache=True, return_dict=True, **options)
        cache.advance(count)
        logits: Tensor = output.logits
        return logits[:, -keep:] if keep and not self._takes_keep else logits
