"""The advantages' kernel against the definition in float64, and scaling by the loss's gradient."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import DEVICE, distance, integers, random

pytest.importorskip("triton")

from restrl.kernels import advantages
from restrl.kernels.scale import scale_
from restrl.reference.advantages import SCALES, advantages_by_group


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (7, 3), (37, 5), (40, 1), (150, 40)])
def test_ragged_groups_in_any_order(scale: str, rows: int, groups: int) -> None:
    rewards, ids = random(rows, rows), integers(groups, groups, rows) * 7_000_000_000 - 3
    rewards[rows // 2] = torch.nan
    if rows > 8:
        rewards[1], rewards[3], rewards[5] = torch.nan, torch.inf, -torch.inf
    found = advantages.grouped_advantages(rewards, ids, scale)
    assert distance(found, advantages_by_group(rewards.double(), ids, scale)) < 2e-6
    assert (found[~rewards.isfinite()] == 0).all()


@pytest.mark.parametrize("scale", SCALES)
def test_equal_rewards_are_exactly_zero(scale: str) -> None:
    """Of any value and for every size of the group, beside other groups, unless the batch is what scales."""
    values = torch.arange(1, 20, device=DEVICE) / 7 + 1e3
    rewards = values.repeat_interleave(8)
    ids = torch.arange(19, device=DEVICE).repeat_interleave(8)
    assert (advantages.grouped_advantages(rewards, ids, scale) == 0).all()


def test_first_scorable_reward_is_what_is_subtracted() -> None:
    rewards = torch.tensor([torch.nan, 0.1, 0.1, 0.1, torch.nan, 5.0], device=DEVICE)
    ids = torch.tensor([2, 2, 2, 2, 9, 9], dtype=torch.int32, device=DEVICE)
    assert (advantages.grouped_advantages(rewards, ids) == 0).all()


def test_no_rows_and_none_scorable() -> None:
    empty = torch.empty(0, device=DEVICE)
    assert advantages.grouped_advantages(empty, empty.long()).shape == (0,)
    nothing = torch.full((3,), torch.nan, device=DEVICE)
    assert (
        advantages.grouped_advantages(nothing, torch.zeros(3, device=DEVICE).long(), "batch").tolist()
        == [0] * 3
    )


def test_twice_the_same() -> None:
    rewards, ids = random(3, 100), integers(4, 9, 100)
    first = advantages.grouped_advantages(rewards, ids)
    assert torch.equal(first, advantages.grouped_advantages(rewards, ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_scale(dtype: torch.dtype) -> None:
    x = random(5, 3, 1500).to(dtype)
    for factor in (1.0, -0.5, 0.0):
        scaled = x.clone()
        scale_(scaled, torch.tensor(factor, device=DEVICE))
        assert torch.equal(scaled, x * factor)
    turned = x.clone().T
    scale_(turned, torch.tensor(0.5, device=DEVICE))
    assert torch.equal(turned, x.T * 0.5)
