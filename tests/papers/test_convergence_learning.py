"""Models converge in as many steps as ever: one seed of each, against the distribution over ten others."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.papers.convergence import CASES, SEEDS, bounds, steps_to_goal

MEASURED = {
    row["name"]: row
    for row in json.loads(
        (Path(__file__).parents[2] / "docs/measured/convergence.json").read_text(encoding="utf-8")
    )
}
# none of those that were measured
SEED = SEEDS


@pytest.mark.parametrize("name", CASES)
def test_another_seed_converges_within_the_distribution(name):
    case, row = CASES[name], MEASURED[name]
    assert (row["goal"], row["lr"], row["figure"]) == (case.goal, case.lr, case.measure.__name__)
    low, high = row["bounds"]
    found = steps_to_goal(case, SEED, most=int(high) + case.every)
    assert found is not None
    assert low <= found <= high


def test_positions_that_start_too_small_leave_the_distribution():
    """Attention cannot tell places apart for hundreds of steps, and logits of given weights are the same."""
    case, high = CASES["ViT"], MEASURED["ViT"]["bounds"][1]

    def build():
        model = case.build()
        for values in (model.positions.table, model.prefix.class_token):
            values.data.mul_(0.02 / values.std())
        return model

    assert steps_to_goal(replace(case, build=build, every=50), SEED, most=int(high)) is None


def test_bounds_hold_the_seeds_and_follow_their_spread():
    for name, row in MEASURED.items():
        low, high = bounds(row["steps"], CASES[name].every)
        assert [round(low, 1), round(high, 1)] == row["bounds"]
        assert low < min(row["steps"]) <= max(row["steps"]) < high < 20 * low
        assert len(row["steps"]) == SEEDS
    narrow, wide = bounds([100, 120] * 5, 1), bounds([50, 240] * 5, 1)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    # never narrower than the steps between two measurements
    low, high = bounds([100] * 10, 10)
    assert low < 90 < 110 < high
