"""Near-ties are decided by a forward of their own, and the cache stays right."""

import pytest
import torch
from transformers import LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList
from transformers.generation.logits_process import TemperatureLogitsWarper

from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.decoding.loop import decode
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.stopping import Stopping
from swift_sd.decoding.warping import Warping
from swift_sd.model.kv_cache import KVCache
from swift_sd.model.target import Target
from swift_sd.testing.scripted import ScriptedDrafter, ScriptedModel

VOCABULARY, NEW = 11, 12
EPS = torch.finfo(torch.float32).eps


def best_two(prefix):
    first = sum((place + 1) * token for place, token in enumerate(prefix)) % VOCABULARY
    return first, (first + 3) % VOCABULARY


def tied(prefix):
    """Every third place is nearly tied."""
    return len(prefix) % 3 == 0


def logits(prefix):
    out = torch.zeros(VOCABULARY)
    first, second = best_two(prefix)
    out[first], out[second] = 4.0, 4.0 - 4 * EPS if tied(prefix) else 2.0
    return out


class Rounding(ScriptedModel):
    """Over several rows the second of two nearly tied tokens seems the better one."""

    def forward(self, input_ids, cache, **kwargs):
        output = super().forward(input_ids, cache, **kwargs)
        if input_ids.shape[1] > 1:
            for row in output.logits[0]:
                top = row.topk(2)
                if top.values[0] - top.values[1] < 1e-3:
                    row[top.indices] = row[top.indices].flip(0)
        return output


def continuation(prefix, count):
    tokens = list(prefix)
    for _ in range(count):
        tokens.append(best_two(tokens)[0])
    return tokens[len(prefix) :]


def bushy(tokens, budget):
    """The coming tokens hidden behind wrong siblings, so that the path is not contiguous."""
    coming = continuation(tokens, budget)
    ids, parents, tip = [], [], -1
    for token in coming:
        ids += [(token + 1) % VOCABULARY, token]
        parents += [tip, tip]
        tip = len(ids) - 1
    return DraftTree(ids, parents)


def run(script, tolerance, processors=(), do_sample=False, model=None):
    prompt = [3, 1, 4, 1]
    criteria = StoppingCriteriaList([MaxLengthCriteria(len(prompt) + NEW)])
    warping = Warping(LogitsProcessorList(processors), do_sample)
    state = DecodingState(torch.tensor([prompt]), KVCache([None]), warping, Stopping(criteria))
    drafter = ScriptedDrafter(script)
    rounds = decode(
        Target(model or Rounding(logits)), drafter, state, state.tokens, 5, tolerance=tolerance
    )
    steps = list(rounds)
    assert state.cache.committed == state.length - 1
    held = state.cache.buffers[0].tail(state.cache.committed)[0].flatten().int().tolist()
    assert held == state.tokens[0, :-1].tolist()
    return state.tokens[0, 4:].tolist(), steps


@pytest.mark.parametrize("script", [continuation, bushy])
@pytest.mark.parametrize("processors", [(), (TemperatureLogitsWarper(0.5),)])
def test_near_ties_decided_alone_are_what_plain_decoding_takes(script, processors):
    plain = continuation([3, 1, 4, 1], NEW)
    assert run(script, 0.0, processors)[0] != plain
    tokens, steps = run(script, 2.0, processors)
    assert tokens == plain
    assert 0 < sum(step.decided_again for step in steps) <= 4
    assert sum(step.accepted for step in steps) > 6  # what was right behind a tie still counts


def test_clear_choices_are_not_decided_again():
    _, steps = run(continuation, 0.5)
    assert sum(step.decided_again for step in steps) == 0


def test_a_place_that_was_verified_alone_is_not_decided_again():
    _, steps = run(lambda tokens, budget: [], 1e6)
    assert sum(step.decided_again for step in steps) == 0


def test_when_sampling_the_noise_decides_what_is_close():
    """With a huge tolerance every place is decided again, and the tokens are the plain ones."""
    torch.manual_seed(1)
    again, steps = run(continuation, 1e9, do_sample=True)
    torch.manual_seed(1)
    plain, _ = run(lambda tokens, budget: [], 0.0, do_sample=True)
    assert again == plain
    assert sum(step.decided_again for step in steps) > 3


class Forbids:
    """A user's own, with a state: the favourite of all places may never come."""

    def __init__(self):
        self.asked = []

    def __call__(self, ids, scores):
        self.asked.append(ids.shape[1])
        scores[0, favourite(ids[0].tolist())] = -torch.inf
        return scores


def favourite(prefix):
    return (best_two(prefix)[0] + 5) % VOCABULARY


def with_favourite(prefix):
    out = logits(prefix)
    out[favourite(prefix)] = 8.0
    return out


class RoundingBelow(Rounding):
    """The same of the two behind the favourite."""

    def forward(self, input_ids, cache, **kwargs):
        output = ScriptedModel.forward(self, input_ids, cache, **kwargs)
        if input_ids.shape[1] > 1:
            for row in output.logits[0]:
                top = row.topk(3)
                if top.values[1] - top.values[2] < 1e-3:
                    row[top.indices[1:]] = row[top.indices[1:]].flip(0)
        return output


@pytest.mark.parametrize("warpers", [[], [TemperatureLogitsWarper(0.7)]])
def test_near_ties_that_a_users_processor_makes_are_decided_alone(warpers):
    forbids = Forbids()
    model = RoundingBelow(with_favourite)
    tokens, steps = run(bushy, 8.0, [forbids, *warpers], model=model)
    assert tokens == continuation([3, 1, 4, 1], NEW)
    assert sum(step.decided_again for step in steps) >= 2
    assert forbids.asked == list(range(4, 4 + NEW))  # once for each token, with those before it
    careless, _ = run(bushy, 0.0, [Forbids(), *warpers], model=RoundingBelow(with_favourite))
    assert careless != tokens
