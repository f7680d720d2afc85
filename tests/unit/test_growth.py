"""How trees grow: the paper's table, and the shape that gives most tokens per second."""

import itertools

import pytest
import torch

from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.decoding.trace import Step
from swift_sd.drafting.calibration import EDGES, MEMORY, Calibration, Calibrations
from swift_sd.drafting.growth import CostGrowth, PaperGrowth
from swift_sd.drafting.pace import Curve, Pace, Prior


def test_the_papers_table():
    greedy = PaperGrowth(0.8, PaperGrowth.GREEDY)
    assert [greedy.width(p) for p in (0.99, 0.9, 0.6, 0.3, 0.0)] == [3, 5, 8, 10, 10]
    assert greedy.widest == 10
    sampling = PaperGrowth(0.8, PaperGrowth.SAMPLING)
    assert [sampling.width(p) for p in (0.99, 0.9, 0.6, 0.3)] == [1, 3, 5, 10]
    chain = PaperGrowth(0.8, PaperGrowth.CHAIN)
    assert (chain.widest, chain.width(0.1)) == (1, 1)


def test_the_papers_early_stop():
    growth = PaperGrowth(0.8, PaperGrowth.GREEDY)
    assert go_on(growth, 0.1, 0.8)
    assert not go_on(growth, 0.9, 0.79)
    tree = DraftTree.chain([1, 2], [0.9, 0.1])
    assert growth.pruned(tree) is tree


class Known(Pace):
    """Costs that are given: a draft step, and verifications by a function of the rows."""

    def __init__(self, step, rows, rate=0.0):
        super().__init__(torch.device("cpu"))
        self._step, self._rows, self._known_rate = step, rows, rate

    draft_step = property(lambda self: self._step)
    rate = property(lambda self: self._known_rate)

    def verify(self, rows):
        return self._rows(rows)


def go_on(growth, *confidences):
    return growth.goes_on(confidences, ["layer_skip"] * len(confidences))


def growth_of(step=0.5, rows=lambda n: 1.0, rate=0.0):
    return CostGrowth(Calibrations(), Known(step, rows, rate), is_tree=True)


def test_a_step_is_worth_it_while_what_it_brings_exceeds_its_time_at_the_best_rate():
    growth = growth_of(step=0.5)  # plain decoding gives a token a second
    assert go_on(growth, 0.9)  # another token with 0.81, for half a second
    assert not go_on(growth, 0.6)  # with 0.36
    assert go_on(growth, 0.9, 0.9, 0.9)  # 0.66
    assert not go_on(growth, 0.8, 0.8, 0.8)  # 0.41
    faster = growth_of(step=0.5, rate=2.0)  # two tokens a second are usual
    assert not go_on(faster, 0.9)


def test_rows_that_cost_are_verified_only_if_they_are_likely():
    tree = DraftTree([1, 2, 3, 4], [-1, 0, -1, -1], [0.7, 0.7, 0.2, 0.01])
    free = growth_of().pruned(tree)
    assert free is tree
    dear = growth_of(rows=lambda n: 0.7 + 0.3 * n).pruned(tree)
    assert list(dear.tokens) == [1, 2]
    steps = growth_of(rows=lambda n: 1.0 if n <= 4 else 2.0).pruned(tree)
    assert list(steps.tokens) == [1, 2, 3]
    hopeless = growth_of(rows=lambda n: float(n)).pruned(DraftTree.chain([1], [0.5]))
    assert len(hopeless) == 0


@pytest.mark.parametrize("seed", range(20))
def test_what_is_kept_is_the_best_of_all_parts(seed):
    generator = torch.Generator().manual_seed(seed)

    def pick(n):
        return int(torch.randint(n, (1,), generator=generator))

    size = 7
    parents = [pick(node + 1) - 1 for node in range(size)]
    chances = [float(torch.rand(1, generator=generator)) for _ in range(size)]
    tree = DraftTree(list(range(size)), parents, chances)
    costs = torch.rand(size + 2, generator=generator).cumsum(0).tolist()
    growth = growth_of(rows=lambda n: costs[n] / 3, rate=1.0)
    reaches = growth.reaches(tree)
    rate = max(1.0, 3 / costs[1])

    def value(nodes):
        return sum(reaches[n] for n in nodes) - rate * (costs[1 + len(nodes)] - costs[1]) / 3

    parts = (
        nodes
        for count in range(size + 1)
        for nodes in itertools.combinations(range(size), count)
        if all(parents[n] in (-1, *nodes) for n in nodes)
    )
    kept = [tree.tokens.index(token) for token in growth.pruned(tree).tokens]
    assert value(kept) == pytest.approx(max(value(nodes) for nodes in parts))


def test_before_anything_is_measured_likely_chains_go_on():
    growth = CostGrowth(Calibrations(), Pace(torch.device("cpu")), is_tree=True)
    assert go_on(growth, 0.9, 0.9)
    assert not go_on(growth, 0.6, 0.6)
    tree = DraftTree([1, 2, 3], [-1, 0, -1], [0.9, 0.8, 0.1])
    assert list(growth.pruned(tree).tokens) == [1, 2]


def test_only_what_was_decided_is_learned():
    calibrations, pace = Calibrations(), Pace(torch.device("cpu"))
    growth = CostGrowth(calibrations, pace, is_tree=True)
    sources = ["a", "a", "b", "a", "b"]
    tree = DraftTree([1, 2, 3, 4, 5], [-1, 0, -1, 1, 2], [0.9, 0.9, 0.1, 0.9, 0.9], sources)
    step = Step((1, 7), "layer_skip", drafted=3, verified=5, accepted=1, draft=0.2, verify=0.5)
    growth.learn(tree, [0, 1], step, forwards=[(3, 0.11), (1, 0.05), (1, 0.04)])
    # 1 was right and 3 beside it was not; 2 behind 1 was not; nothing is known of 4 and 5.
    counts = {name: (sum(c.offered), sum(c.accepted)) for name, c in calibrations.items()}
    assert counts == {"a": (2, 1), "b": (1, 0)}
    assert (pace.draft(1), pace.draft(3)) == (pytest.approx(0.045), 0.11)


def test_a_chance_starts_at_the_confidence_and_moves_to_what_happens():
    calibration = Calibration()
    assert calibration.chance(0.9) == pytest.approx(0.9)
    for turn in range(100):
        calibration.tell(0.9, turn % 2 == 0)
    assert calibration.chance(0.9) == pytest.approx(0.5, abs=0.03)
    assert calibration.chance(0.3) == pytest.approx(0.3)


def test_old_counts_fade():
    calibration = Calibration()
    for _ in range(2000):
        calibration.tell(0.6, True)
    for _ in range(int(MEMORY)):
        calibration.tell(0.6, False)
    assert calibration.chance(0.6) < 0.5
    assert max(calibration.offered) < MEMORY


@pytest.mark.parametrize("confidence", [0.0, 1.0, *EDGES])
def test_every_confidence_has_a_bin(confidence):
    assert 0 <= Calibration().chance(confidence) <= 1


def test_costs_between_and_beyond_what_was_measured():
    curve = Curve(1, 9, {})
    assert curve.at(1) is None
    for seconds in (1.0, 9.0, 1.2):
        curve.saw(1, seconds)
    for seconds in (3.0, 3.2, 50.0):
        curve.saw(5, seconds)
    assert (curve.at(1), curve.at(5)) == (1.2, 3.2)
    assert curve.at(3) == pytest.approx(2.2)
    assert curve.at(9) == pytest.approx(5.2)  # as they cost so far


def test_a_pace_knows_nothing_at_first_and_a_prior_at_once():
    pace = Pace(torch.device("cpu"))
    assert pace.verify(1) is pace.draft_step is pace.step is None
    assert (pace.rate, pace.plain_rounds) == (0, 0)
    pace = Pace(torch.device("cpu"), Prior({1: 1.0, 5: 1.4}, {1: 0.2, 4: 0.5}))
    assert (pace.step, pace.plain_rounds) == (1.0, 1)
    assert (pace.verify(3), pace.draft_step, pace.draft(4)) == (pytest.approx(1.2), 0.2, 0.5)
    for _ in range(5):
        pace.saw_draft(1, 0.1)
    assert pace.draft(1) == 0.1


def test_when_the_machine_slows_down_so_does_what_was_measured_before():
    pace = Pace(torch.device("cpu"))
    for _ in range(10):
        pace.saw_round(Step((1,), verify=1.0))
        pace.saw_plain(Step((1,), verify=1.0))
    pace.saw_draft(1, 0.2)
    for slowness in (1.0, 1.5):
        for _ in range(20):
            pace.saw_round(Step((1,), verified=4, verify=1.4 * slowness))
        assert pace.verify(5) == pytest.approx(1.4 * slowness)
        assert pace.verify(1) == pytest.approx(slowness)
        assert pace.step == pytest.approx(slowness)
        assert pace.draft_step == pytest.approx(0.2 * slowness)


def test_that_other_rows_take_longer_than_supposed_is_no_drift():
    pace = Pace(torch.device("cpu"), Prior({1: 1.0, 5: 1.0}))
    for _ in range(20):
        pace.saw_round(Step((1,), verified=4, verify=1.4))
    assert pace.verify(5) == pytest.approx(1.4)
    assert pace.verify(1) == 1.0


def test_a_verification_that_is_not_usual_tells_nothing_but_the_rate():
    pace = Pace(torch.device("cpu"), Prior({1: 1.0}))
    for _ in range(20):
        pace.saw_round(Step((1,), verify=2.0), is_usual=False)
    assert pace.verify(1) == 1.0
    assert pace.rate == pytest.approx(0.5)


def test_single_outliers_change_nothing():
    pace = Pace(torch.device("cpu"))
    for turn in range(40):
        pace.saw_round(Step((1,), verify=30.0 if turn % 5 == 1 else 1.0))
        pace.saw_plain(Step((1,), verify=1.0))
    assert (pace.verify(1), pace.step) == (1.0, 1.0)


def test_one_number_of_rows_stands_for_others_as_far_as_is_expected_of_a_cpu():
    pace = Pace(torch.device("cpu"))
    pace.saw_round(Step((1,), verified=0, verify=1.0))
    assert pace.verify(1) == 1.0
    assert 1.0 < pace.verify(4) < pace.verify(16) < 4.0
    gpu = Pace(torch.device("cuda"))
    gpu.saw_round(Step((1,), verified=0, verify=1.0))
    assert gpu.verify(64) == 1.0


def test_more_rows_never_seem_cheaper():
    pace = Pace(torch.device("cpu"))
    pace.saw_round(Step((1,), verified=0, verify=1.0))
    pace.saw_round(Step((1,), verified=3, verify=0.8))
    assert pace.verify(2) >= 1.0


def test_the_rate_is_of_late():
    pace = Pace(torch.device("cpu"))
    for _ in range(300):
        pace.saw_round(Step((1, 2), verify=1.0))
    assert pace.rate == pytest.approx(2.0)
    for _ in range(300):
        pace.saw_round(Step((1,), verify=1.0, draft=1.0))
    assert pace.rate == pytest.approx(0.5, rel=0.01)


def test_a_draft_reads_ahead_as_far_as_that_is_quicker_than_token_by_token():
    def head_start(draft, *chances):
        growth = CostGrowth(
            Calibrations(), Pace(torch.device("cpu"), Prior({1: 1.0}, draft)), is_tree=True
        )
        return growth.head_start(DraftTree.chain([7] * len(chances), chances))

    flat, steep = {1: 0.2, 9: 0.2}, {1: 0.2, 9: 1.8}
    assert head_start(flat, 0.9, 0.9, 0.9) == 3
    assert head_start(steep, 0.9, 0.9, 0.9) == 0
    assert head_start({1: 0.2, 2: 0.21, 9: 1.8}, 0.9, 0.9, 0.9) == 1
    assert head_start(flat, 0.05, 0.9) == 0
    assert head_start(flat) == 0
    assert head_start({}, 0.9, 0.9) == 0  # what a forward costs is not known


def test_a_promise_is_a_multiple_of_plain_decoding():
    growth = growth_of(rows=lambda n: 0.5 + 0.5 * n)
    assert growth.promise(DraftTree.chain([1, 2], [0.9, 0.5])) == pytest.approx(2.35 / 2)
    assert growth.promise(DraftTree()) == 0
    assert growth.least == pytest.approx(0.5)
