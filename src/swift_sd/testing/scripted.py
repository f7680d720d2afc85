"""Stand-ins for a target and a drafter whose every answer is known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step
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
        self,
        input_ids: Tensor,
        cache: KVCache,
        use_cache: bool,
        return_dict: bool,
        attention_mask: Tensor | None = None,
    ) -> CausalLMOutputWithPast:
        """Logits `[1, new, vocabulary]`; the ids are written into the cache's only layer."""
        self.forwards += 1
        rows = input_ids.float().view(1, 1, -1, 1)
        keys, _ = cache.update(rows, rows, 0)
        seen = keys.flatten()
        count = input_ids.shape[1]
        if attention_mask is None:
            rows_see = (
                torch.ones_like(seen, dtype=torch.bool).repeat(count, 1).tril(len(seen) - count)
            )
        else:
            rows_see = attention_mask[0, 0]
        prefixes = [tuple(map(int, seen[sees].tolist())) for sees in rows_see]
        logits: torch.Tensor = torch.stack([self.next_logits(prefix) for prefix in prefixes])
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

    def __init__(self, script: Callable[[list[int], int], Sequence[int] | DraftTree]) -> None:
        self.script = script
        self.seen: list[tuple[DraftTree, list[int], Step]] = []

    def propose(self, state: DecodingState, budget: int) -> DraftTree:
        """The script's tree as it is, or its tokens as a chain, `budget` at most."""
        drafted = self.script(state.tokens[0].tolist(), budget)
        return drafted if isinstance(drafted, DraftTree) else DraftTree.chain(drafted[:budget])

    def learn(self, tree: DraftTree, path: Sequence[int], step: Step, logits: Tensor) -> None:
        """Keep it, for tests to look at."""
        self.seen.append((tree, list(path), step))
