"""Advantages of groups of completions from their raw rewards."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from restrl.errors import RestrlError
from restrl.reference.spec import check_choice

ADVANTAGE_EPS = 1e-4

Scale = Literal["group", "batch", "none"]
Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]

SCALES = ("group", "batch", "none")
AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")


def grouped_advantages(rewards: Tensor, scale: Scale = "group") -> Tensor:
    """A = (R - mean of its group) / (std + 1e-4), the std with G - 1 in the denominator.

    rewards  `[P, G]` raw rewards, one group per row; NaN (or infinite) = unscorable: left out of mean and
             std, its A is 0
    scale    "group": std of the group; "batch": std of all rewards; "none": no division

    Returns `[P, G]`. The group's first reward is subtracted before anything else, so equal rewards give
    exactly 0; so does a group with one scorable reward.
    """
    check_choice("scale_rewards", scale, SCALES)
    rewards = _floating(rewards)
    if rewards.numel() == 0:
        return torch.zeros_like(rewards)
    scored = rewards.isfinite()
    centred = _centred(rewards, scored, dim=1)
    if scale == "none":
        return centred
    if scale == "group":
        return centred / (_sample_std(centred, scored, dim=1) + ADVANTAGE_EPS)
    over_all = _centred(rewards.reshape(1, -1), scored.reshape(1, -1), dim=1)
    return centred / (_sample_std(over_all, scored.reshape(1, -1), dim=1) + ADVANTAGE_EPS)


def advantages_by_group(rewards: Tensor, groups: Tensor, scale: Scale = "group") -> Tensor:
    """`grouped_advantages` of groups of any size whose rows stand in any order.

    rewards  `[B]` raw rewards (NaN = unscorable)
    groups   `[B]` integers: rows with equal ids form a group

    Returns `[B]`.
    """
    table, row, column = _as_table(_floating(rewards), groups)
    return grouped_advantages(table, scale)[row, column]


def multi_objective_advantages(
    rewards: Tensor,
    groups: Tensor,
    weights: Tensor | None = None,
    aggregation: Aggregation = "sum_then_normalize",
    scale: Scale = "group",
) -> Tensor:
    """Advantages from several rewards per completion.

    rewards      `[B, F]` of F reward functions; NaN: this function has no opinion of this completion; a row
                 of NaN is unscorable, its A is 0
    groups       `[B]` integers
    weights      `[F]` of the functions; None: 1 each
    aggregation  "sum_then_normalize": the weighted sum is the reward of `advantages_by_group`;
                 "normalize_then_sum" (GDPO): each function's advantages within the groups, their weighted
                 sum, and that normalised over the batch

    Returns `[B]`. Raises RestrlError for a `scale` other than "group" with "normalize_then_sum", which does
    not read it.
    """
    check_choice("multi_objective_aggregation", aggregation, AGGREGATIONS)
    rewards = _floating(rewards)
    weights = rewards.new_ones(rewards.shape[1]) if weights is None else weights.to(rewards)
    scored = rewards.isfinite()
    unscorable = ~scored.any(1)
    if aggregation == "normalize_then_sum":
        if scale != "group":
            raise RestrlError(
                f"scale_rewards {scale!r} has no meaning for multi_objective_aggregation "
                "'normalize_then_sum', which scales by group and then by batch; leave it at 'group'"
            )
        rewards = torch.stack([advantages_by_group(column, groups) for column in rewards.T], 1)
    summed = torch.where(scored, rewards * weights, 0.0).sum(1).masked_fill(unscorable, torch.nan)
    if aggregation == "normalize_then_sum":
        return grouped_advantages(summed[None])[0]
    return advantages_by_group(summed, groups, scale)


def group_std(rewards: Tensor) -> Tensor:
    """`[P]` sample standard deviation within each group of `[P, G]` rewards; NaN left out, exactly 0 where
    equal.
    """
    scored = rewards.isfinite()
    return _sample_std(_centred(rewards, scored, dim=1), scored, dim=1)[:, 0]


def _centred(rewards: Tensor, scored: Tensor, dim: int) -> Tensor:
    first = rewards.gather(dim, scored.int().argmax(dim, keepdim=True))
    shifted = torch.where(scored, rewards - first, 0.0)
    mean = shifted.sum(dim, keepdim=True) / scored.sum(dim, keepdim=True).clamp(min=1)
    return torch.where(scored, shifted - mean, 0.0)


def _sample_std(centred: Tensor, scored: Tensor, dim: int) -> Tensor:
    count = scored.sum(dim, keepdim=True)
    return (centred.square().sum(dim, keepdim=True) / (count - 1).clamp(min=1)).sqrt()


def _as_table(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The groups as rows `[P, largest]`, filled up with NaN, and where each reward stands in it."""
    ids, row, sizes = groups.unique(return_inverse=True, return_counts=True)
    order = row.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    column = torch.empty_like(row)
    column[order] = torch.arange(len(row), device=row.device) - starts[row[order]]
    width = int(sizes.max()) if len(ids) else 0
    table = rewards.new_full((len(ids), width), torch.nan)
    table[row, column] = rewards
    return table, row, column


def _floating(rewards: Tensor) -> Tensor:
    return rewards if rewards.dtype == torch.float64 else rewards.float()
