"""Stand-ins for a target and a drafter whose every answer is known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from swift_sd.decoding.draft import Draft
from swift_sd.decoding.state import DecodingState
from swift_sd.model.kv_cache import KVCache
from swift_sd.model.target import Target

Next = Callable[[tuple[int, ...]], Tensor]


class ScriptedModel(nn.Module):
    """A model without weights: the logits after each prefix are given by a function.

    It keeps its tokens where a model keeps keys: a loop that commits or rolls back wrongly makes it
    see a wrong prefix.

    Args:
        next_logits: from the ids so far to `[vocabulary]`.
    """

    def __init__(self, next_logits: Next) -> None:
        super().__init__()
        self.next_logits = next_logits
        self.forwards = 0

    def forward(
        self, input_ids: Tensor, past_key_values: KVCache, use_cache: bool, return_dict: bool
    ) -> CausalLMOutputWithPast:
        """Logits `[1, new, vocabulary]`; the ids are written into the cache's only layer."""
        self.forwards += 1
        rows = input_ids.float().view(1, 1, -1, 1)
        keys, _ = past_key_values.update(rows, rows, 0)
        seen = [int(key) for key in keys.flatten()]
        held = len(seen) - input_ids.shape[1]
        places = range(held + 1, len(seen) + 1)
        logits: torch.Tensor = torch.stack([self.next_logits(tuple(seen[:end])) for end in places])
        return CausalLMOutputWithPast(logits=logits.unsqueeze(0))


def scripted_target(next_logits: Next) -> Target:
    """A `Target` for the loop; use it with `KVCache([None])`."""
    return Target(ScriptedModel(next_logits))


class ScriptedDrafter:
    """Proposes what a function says, in greedy decoding.

    Args:
        script: from the ids so far and the budget to the tokens to propose.
    """

    name = "scripted"

    def __init__(self, script: Callable[[list[int], int], Sequence[int]]) -> None:
        self.script = script

    def propose(self, state: DecodingState, budget: int) -> Draft:
        """The script's tokens, `budget` at most."""
        return Draft(tokens=list(self.script(state.tokens[0].tolist(), budget))[:budget])
