"""What the text and the target said before, foreseen in one tree."""

import math

import pytest
import torch
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria

from swift_sd.decoding.noise import wins
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.stopping import Stopping
from swift_sd.decoding.trace import Step
from swift_sd.decoding.warping import Warping
from swift_sd.drafting.calibration import Calibrations
from swift_sd.drafting.copying import Copies, confidence
from swift_sd.drafting.growth import CostGrowth
from swift_sd.drafting.pace import Pace, Prior
from swift_sd.drafting.recall import RecallDrafter
from swift_sd.drafting.recycling import BLOCK, KEPT, Successors, likeliest
from swift_sd.model.kv_cache import KVCache

VOCABULARY = 50


def state_of(*tokens, end=()):
    criteria = StoppingCriteriaList([EosTokenCriteria(one) for one in end])
    warping = Warping(LogitsProcessorList(), do_sample=False)
    return DecodingState(torch.tensor([tokens]), KVCache([None]), warping, Stopping(criteria))


def recall_of(successors=None, row=0.01, is_tree=True):
    """Verifying a row more costs so much of a plain step."""
    pace = Pace(torch.device("cpu"), Prior({1: 1.0, 101: 1.0 + 100 * row}))
    return RecallDrafter(CostGrowth(Calibrations(), pace, is_tree), successors or Successors())


def logits_of(*rows):
    """Logits with the given scores by token, one dictionary a row."""
    logits = torch.full((len(rows), VOCABULARY), -20.0)
    for row, scores in zip(logits, rows, strict=True):
        for token, score in scores.items():
            row[token] = score
    return logits


def paths(tree):
    """Each node as the tokens that lead to it."""
    found = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


def test_either_source_can_be_left_out():
    state = state_of(1, 2, 3, 1, 2)
    growth = recall_of()._growth
    known = Successors()
    known.learn([1, 2, 9], logits_of({9: 5.0}, {4: 5.0}))
    sources = {}
    for copies, successors in [(True, None), (False, known), (True, known)]:
        recall = RecallDrafter(growth, successors, copies=copies)
        sources[copies, successors is not None] = set(propose(recall, state).sources)
    assert sources[True, False] == {"copying"}
    assert sources[False, True] == {"recycling"}
    assert sources[True, True] == {"copying", "recycling"}


def propose(recall, state, budget=8):
    promise = recall.promise(state, budget)
    tree = recall.propose(state, budget)
    assert (promise > 0) == (len(tree) > 0)
    return tree


@pytest.mark.parametrize("size", [3, KEPT, 100, 2 * KEPT * BLOCK, 2 * KEPT * BLOCK + 37, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_likeliest_are_those_of_topk(size, dtype):
    logits = torch.randn(3, size).to(dtype)
    indices, values = likeliest(logits, KEPT)
    expected = logits.float().topk(min(KEPT, size)).values
    assert torch.equal(values, expected)
    assert torch.equal(logits.float().gather(1, indices), expected)


def test_two_tokens_tell_more_than_one():
    successors = Successors()
    successors.learn([1, 2, 2], logits_of({5: 3.0, 6: 2.0}, {7: 3.0}))
    assert successors.behind(1, 2)[0][0] == 5
    assert successors.behind(2, 2)[0][0] == 7
    assert successors.behind(9, 2)[0][0] == 7  # the latest behind 2 alone
    assert successors.behind(2, 1) == []
    assert successors.behind(1, 2)[0][1] > successors.behind(1, 2)[1][1] > 0


def test_rows_without_numbers_are_not_learned():
    successors = Successors()
    successors.learn([1, 2, 3], torch.stack([torch.full((9,), math.nan), torch.arange(9.0)]))
    assert successors.behind(1, 2) == []
    assert [token for token, _ in successors.behind(2, 3)] == [8, 7, 6, 5]


def test_what_was_noted_first_is_forgotten_first(monkeypatch):
    monkeypatch.setattr("swift_sd.drafting.recycling.MOST", 4)
    successors = Successors()
    for token in range(20):
        successors.learn([token, token], logits_of({5: 1.0}))
    assert [token for token in range(20) if successors.behind(token, token)] == [18, 19]


def test_longer_endings_and_fewer_ways_are_trusted_more():
    by_length = [confidence(length, 1) for length in (1, 2, 4, 10)]
    assert by_length == sorted(by_length)
    assert confidence(3, 1) > confidence(3, 2) > confidence(3, 5)
    copies = Copies()
    copies.extend([1, 2, 3, 9, 1, 2, 4, 9, 8, 1, 2])
    (latest, first), (before, second) = copies.continuations(copies.ending)
    assert (latest, before) == (4, 3)
    assert first + second < 1
    assert first > second > 0


def test_text_that_repeats_is_foreseen_beyond_its_end():
    tree = propose(recall_of(), state_of(*[1, 2, 3] * 4))
    assert paths(tree)[-1] == (1, 2, 3, 1, 2, 3, 1, 2)
    assert set(tree.sources) == {"copying"}


def test_copies_and_runner_ups_make_one_tree():
    successors = Successors()
    successors.learn([2, 3, 8], logits_of({8: 3.0, 4: 2.9}, {6: 5.0}))
    recall = recall_of(successors)
    tree = propose(recall, state_of(2, 3, 4, 5, 1, 2, 3))
    assert (4, 5) in paths(tree)
    assert (8, 6) in paths(tree)
    sources = dict(zip(paths(tree), tree.sources, strict=True))
    assert (sources[4,], sources[8,]) == ("copying", "recycling")
    assert recall.name == "copying+recycling"
    assert len(set(paths(tree))) == len(tree)  # nothing twice


def test_nothing_is_foreseen_where_nothing_was_seen():
    assert len(propose(recall_of(), state_of(1, 2, 3))) == 0
    assert len(propose(recall_of(), state_of(1))) == 0


def test_rows_that_cost_much_are_kept_for_what_is_likely():
    text = [*range(2, 12), 1, 2, 20, *range(2, 12)]
    cheap = propose(recall_of(row=0.01), state_of(*text))
    dear = propose(recall_of(row=0.6), state_of(*text))
    assert len(cheap) > len(dear) > 0
    assert len(propose(recall_of(row=0.95), state_of(*text))) == 0


def test_nothing_comes_behind_an_end_or_beyond_the_budget():
    tree = propose(recall_of(), state_of(*[1, 2, 3, 4] * 3, end=[2]))
    assert max(paths(tree), key=len) == (1, 2)
    tree = propose(recall_of(), state_of(*[1, 2, 3, 4] * 3), budget=3)
    assert int(tree.ancestry.sum(dim=1).max()) == 1 + 3


def test_a_target_that_reads_no_trees_is_offered_chains():
    successors = Successors()
    successors.learn([2, 3, 8], logits_of({8: 3.0, 4: 2.9}, {6: 5.0}))
    assert propose(recall_of(successors, is_tree=False), state_of(2, 3, 4, 5, 1, 2, 3)).is_chain


def test_each_source_is_judged_by_what_came_whoever_proposed():
    recall = recall_of()
    state = state_of(1, 2, 3, 1, 2, 3, 1, 2)
    recall.promise(state, 4)
    growth = recall._growth
    before = growth.calibrations["copying"].chance(confidence(5, 1))
    # 3 was foreseen, 1 behind it too; 9 was not.
    recall.learn(None, [0, 1, 2], Step((3, 1, 9)), logits_of({3: 1.0}, {1: 1.0}, {9: 1.0}))
    counts = growth.calibrations["copying"]
    assert sum(counts.accepted) == 2
    assert sum(counts.offered) >= 3
    assert growth.calibrations["copying"].chance(confidence(5, 1)) != before


def test_what_the_target_said_on_the_path_is_learned():
    successors = Successors()
    recall = recall_of(successors)
    recall.promise(state_of(1, 2), 4)
    logits = logits_of({3: 5.0, 4: 4.0}, {9: 1.0}, {5: 5.0})
    recall.learn(None, [0, 2], Step((3, 5)), logits)
    assert [successors.behind(*pair)[0][0] for pair in ((1, 2), (2, 3))] == [3, 5]
    recall.learn(None, [0], Step((7,)), logits)  # a round in which nobody was asked
    assert successors.behind(3, 5) == []


def test_a_token_wins_as_often_as_its_numbers_say():
    generator = torch.Generator().manual_seed(0)
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05])
    numbers = torch.empty(40_000, 4).exponential_(1, generator=generator)
    won = (chances / numbers).argmax(dim=1)
    for token, chance in enumerate(chances.tolist()):
        foreseen = torch.tensor([wins(chance, n) for n in numbers[:, token].tolist()])
        assert foreseen.mean() == pytest.approx(chance, abs=0.01)
        for low, high in ((0.0, 0.2), (0.4, 0.6), (0.8, 1.0)):
            inside = (foreseen >= low) & (foreseen < high)
            if inside.sum() > 300:
                assert (won[inside] == token).float().mean() == pytest.approx(
                    float(foreseen[inside].mean()), abs=0.06
                )
    assert (wins(0.0, 1.0), wins(1.0, 5.0)) == (0.0, 1.0)


def test_what_is_never_drawn_never_wins():
    assert wins(0.5, float("inf")) == wins(1.0, float("inf")) == 0.0
