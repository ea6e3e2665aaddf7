"""Grouped advantages: raw rewards and group ids in, one launch, advantages out (restrl.reference.advantages).

Every program owns a block of rows and walks over all rows of the batch, comparing group ids. B squared
comparisons are nothing next to a launch for the B of a training step, need no sorting, and let every row of a
group see the same sums in the same order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from restrl.kernels.build import Build

EPS = 1e-4
BLOCK = 16  # rows a program owns
WIDTH = 128  # rows it compares them with at a time
NOBODY = tl.constexpr(2147483647)


@triton.jit
def advantages_kernel(
    rewards, groups, out, rows, eps, SCALE: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr
):
    """SCALE 0: no division, 1: by the group's standard deviation, 2: by the batch's. NaN and infinite rewards
    count nowhere.

    A group's first reward is subtracted before its mean is taken: equal rewards give exactly 0.
    """
    eps = tl.cast(eps, tl.float32)
    mine = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lanes = tl.arange(0, WIDTH)
    own_group = tl.load(groups + mine, mask=mine < rows, other=0)
    own_reward = tl.load(rewards + mine, mask=mine < rows, other=float("nan"))
    scored = tl.abs(own_reward) < float("inf")

    first = tl.full([BLOCK], NOBODY, tl.int32)
    first_of_all = NOBODY
    for start in range(0, rows, WIDTH):
        other = start + lanes
        group = tl.load(groups + other, mask=other < rows, other=0)
        reward = tl.load(rewards + other, mask=other < rows, other=float("nan"))
        place = tl.where(tl.abs(reward) < float("inf"), other, NOBODY)
        first_of_all = tl.minimum(first_of_all, tl.min(place, 0))
        together = own_group[:, None] == group[None, :]
        first = tl.minimum(first, tl.min(tl.where(together, place[None, :], NOBODY), 1))
    origin = tl.load(rewards + first, mask=scored & (first < rows), other=0.0)

    total = tl.zeros([BLOCK], tl.float32)
    count = tl.zeros([BLOCK], tl.float32)
    total_of_all = 0.0
    count_of_all = 0.0
    origin_of_all = tl.load(rewards + first_of_all, mask=first_of_all < rows, other=0.0)
    for start in range(0, rows, WIDTH):
        other = start + lanes
        group = tl.load(groups + other, mask=other < rows, other=0)
        reward = tl.load(rewards + other, mask=other < rows, other=float("nan"))
        counts = tl.abs(reward) < float("inf")
        member = (own_group[:, None] == group[None, :]) & counts[None, :]
        total += tl.sum(tl.where(member, reward[None, :] - origin[:, None], 0.0), 1)
        count += tl.sum(tl.where(member, 1.0, 0.0), 1)
        total_of_all += tl.sum(tl.where(counts, reward - origin_of_all, 0.0), 0)
        count_of_all += tl.sum(tl.where(counts, 1.0, 0.0), 0)
    mean = total / tl.maximum(count, 1.0)
    mean_of_all = total_of_all / tl.maximum(count_of_all, 1.0)
    advantage = tl.where(scored, own_reward - origin - mean, 0.0)

    if SCALE > 0:
        squares = tl.zeros([BLOCK], tl.float32)
        squares_of_all = 0.0
        for start in range(0, rows, WIDTH):
            other = start + lanes
            group = tl.load(groups + other, mask=other < rows, other=0)
            reward = tl.load(rewards + other, mask=other < rows, other=float("nan"))
            counts = tl.abs(reward) < float("inf")
            if SCALE == 1:
                member = (own_group[:, None] == group[None, :]) & counts[None, :]
                away = tl.where(member, reward[None, :] - origin[:, None] - mean[:, None], 0.0)
                squares += tl.sum(away * away, 1)
            else:
                away_of_all = tl.where(counts, reward - origin_of_all - mean_of_all, 0.0)
                squares_of_all += tl.sum(away_of_all * away_of_all, 0)
        if SCALE == 1:
            std = tl.sqrt(squares / tl.maximum(count - 1.0, 1.0))
        else:
            std = tl.sqrt(squares_of_all / tl.maximum(count_of_all - 1.0, 1.0))
        advantage = advantage / (std + eps)
    tl.store(out + mine, advantage, mask=mine < rows)


SCALES = {"none": 0, "group": 1, "batch": 2}


def grouped_advantages(rewards: Tensor, groups: Tensor, scale: str = "group") -> Tensor:
    """`[B]` float32 advantages (R - mean) / (std + 1e-4).

    rewards  `[B]` raw; NaN and infinite ones are unscorable, their advantage is 0
    groups   `[B]` ids, any integers in any order
    scale    "group", "batch" or "none": what the standard deviation is taken over
    """
    rows = rewards.numel()
    out = torch.empty(rows, dtype=torch.float32, device=rewards.device)
    if rows:
        with torch.cuda.device_of(rewards):
            advantages_kernel[(triton.cdiv(rows, BLOCK),)](
                rewards.float().contiguous(),
                groups.contiguous(),
                out,
                rows,
                EPS,
                SCALE=SCALES[scale],
                BLOCK=BLOCK,
                WIDTH=WIDTH,
            )
    return out


BUILDS = (
    Build(
        advantages_kernel,
        {"rewards": "*fp32", "groups": "*i64", "out": "*fp32", "rows": "i32", "eps": "fp32"},
        {"SCALE": 1, "BLOCK": BLOCK, "WIDTH": WIDTH},
        note="by group",
    ),
)
