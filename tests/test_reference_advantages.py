"""Advantages from raw rewards against the formulas written apart from them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from restrl.errors import RestrlError
from restrl.reference import (
    advantages_by_group,
    group_std,
    grouped_advantages,
    multi_objective_advantages,
)

NAN = float("nan")
SCALES = ["group", "batch", "none"]
GROUPS = [
    [0.0, 0.5, 1.0, 0.25],
    [0.3, 0.3, 0.3, 0.3],
    [NAN, 0.9, 0.1, 0.4],
    [NAN, NAN, 0.7, NAN],
    [NAN, NAN, NAN, NAN],
    [0.301, 0.3, 0.3, 0.3],
]


def by_hand(groups: list[list[float]], scale: str) -> list[list[float]]:
    everything = [r for g in groups for r in g if math.isfinite(r)]
    out = []
    for group in groups:
        scored = [r for r in group if math.isfinite(r)]
        mean = sum(scored) / len(scored) if scored else 0.0
        pool = scored if scale == "group" else everything
        std = float(np.std(pool, ddof=1)) if len(pool) > 1 else 0.0
        divisor = 1.0 if scale == "none" else std + 1e-4
        out.append([(r - mean) / divisor if math.isfinite(r) and len(scored) > 1 else 0.0 for r in group])
    return out


@pytest.mark.parametrize("scale", SCALES)
def test_advantages_equal_the_formula(scale: Any) -> None:
    found = grouped_advantages(torch.tensor(GROUPS, dtype=torch.float64), scale)
    np.testing.assert_allclose(found, by_hand(GROUPS, scale), rtol=1e-12, atol=1e-14)


def test_advantages_divide_by_sample_std_plus_eps_outside_the_root() -> None:
    a = grouped_advantages(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    assert a[0, 0].item() == pytest.approx(0.5 / (math.sqrt(0.5) + 1e-4), rel=1e-12)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_equal_rewards_give_exactly_zero(scale: Any, size: int) -> None:
    values = torch.arange(1, 300, dtype=torch.float32)[:, None] / 299  # every constant a group of its own
    rewards = values.expand(-1, size)
    assert (grouped_advantages(rewards, scale) == 0).all()
    assert (group_std(rewards) == 0).all()
    groups = torch.arange(299).repeat_interleave(size)
    assert (advantages_by_group(rewards.flatten(), groups, scale) == 0).all()


def test_group_std_is_the_sample_std_of_the_scorable() -> None:
    found = group_std(torch.tensor(GROUPS, dtype=torch.float64))
    assert found[0].item() == pytest.approx(np.std(GROUPS[0], ddof=1))
    assert found[2].item() == pytest.approx(np.std([0.9, 0.1, 0.4], ddof=1))
    assert found[3].item() == 0.0


some_rewards = st.one_of(
    st.floats(-5, 5).map(lambda x: round(x, 3)), st.sampled_from([NAN, math.inf, -math.inf])
)


@given(
    st.lists(st.tuples(st.integers(-3, 3), some_rewards), max_size=20),
    st.sampled_from(SCALES),
)
@settings(max_examples=100, deadline=None)
def test_ragged_groups_in_any_order(rows: list[tuple[int, float]], scale: Any) -> None:
    ids = sorted({g for g, _ in rows})
    expected = by_hand([[r for g, r in rows if g == i] for i in ids], scale)
    cursor = [iter(group) for group in expected]
    wanted = [next(cursor[ids.index(g)]) for g, _ in rows]
    groups = torch.tensor([g for g, _ in rows], dtype=torch.int64)
    found = advantages_by_group(torch.tensor([r for _, r in rows], dtype=torch.float64), groups, scale)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)
    narrow = advantages_by_group(torch.tensor([r for _, r in rows]), groups.int(), scale)
    assert narrow.dtype == torch.float32
    assert narrow.isfinite().all()


def test_whole_number_rewards_are_taken() -> None:
    found = advantages_by_group(torch.tensor([1, 0, 1]), torch.tensor([5, 5, 9]))
    np.testing.assert_allclose(
        found, [0.5 / (math.sqrt(0.5) + 1e-4)] * 1 + [-0.5 / (math.sqrt(0.5) + 1e-4), 0.0]
    )


# --- several reward functions ---


def test_normalize_then_sum_is_group_then_batch() -> None:
    rewards = torch.tensor([[1.0, NAN], [0.0, 3.0], [NAN, 5.0], [NAN, NAN], [2.0, 2.0]], dtype=torch.float64)
    groups, weights = torch.tensor([1, 1, 1, 1, 0]), torch.tensor([1.0, 0.5], dtype=torch.float64)
    z = [0.5 / (math.sqrt(0.5) + 1e-4), 1.0 / (math.sqrt(2.0) + 1e-4)]  # of each function in group 1
    summed = np.array([z[0], -z[0] - 0.5 * z[1], 0.5 * z[1], 0.0])  # group 0 has one completion
    expected = (summed - summed.mean()) / (summed.std(ddof=1) + 1e-4)
    found = multi_objective_advantages(rewards, groups, weights, "normalize_then_sum")
    np.testing.assert_allclose(found, [*expected[:3], 0.0, expected[3]], rtol=1e-12, atol=1e-15)


def test_sum_then_normalize_sums_what_there_is() -> None:
    rewards = torch.tensor([[1.0, NAN], [0.0, 3.0], [NAN, 5.0], [NAN, NAN]], dtype=torch.float64)
    groups, weights = torch.tensor([4, 4, 4, 4]), torch.tensor([1.0, 0.5], dtype=torch.float64)
    found = multi_objective_advantages(rewards, groups, weights, scale="none")
    np.testing.assert_allclose(found, np.array([1.0, 1.5, 2.5, 0.0]) - np.array([5 / 3, 5 / 3, 5 / 3, 0.0]))
    unit = multi_objective_advantages(rewards, groups, scale="none")
    np.testing.assert_allclose(unit[:3], np.array([1.0, 3.0, 5.0]) - 3.0)


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_equal_rewards_of_all_functions_give_exactly_zero(aggregation: Any) -> None:
    rewards = torch.tensor([[0.1, 0.7]]).expand(8, 2) / 3
    groups = torch.arange(8) // 4
    assert (multi_objective_advantages(rewards, groups, None, aggregation) == 0).all()


def test_mistakes_name_the_options() -> None:
    with pytest.raises(RestrlError, match="scale_rewards 'x'"):
        grouped_advantages(torch.zeros(1, 2), "x")  # type: ignore[arg-type]
    rewards, groups = torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(RestrlError, match=r"scale_rewards 'batch'.*'normalize_then_sum'"):
        multi_objective_advantages(rewards, groups, None, "normalize_then_sum", "batch")
    with pytest.raises(RestrlError, match="multi_objective_aggregation 'x'"):
        multi_objective_advantages(rewards, groups, None, "x")  # type: ignore[arg-type]
