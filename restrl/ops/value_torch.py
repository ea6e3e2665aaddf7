"""Scores of single rows of a hidden state in plain torch: the CPU path of value_score.

The two passes have the signatures of `restrl.kernels.value_score`. Rows are gathered a chunk at a time into
float32, small enough to stay in a core's cache, so that the states are read from memory once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from restrl.errors import RestrlError

_CHUNK = 1 << 18  # elements that are held in float32 at a time


class Rows(NamedTuple):
    """Which rows of `hidden` `[N, H]` or `[B, T, H]` are read.

    first   `[M]` flat rows; with `second` `[M]` pairs (row, position); with `starts` `[S + 1]` as well, pairs
            (sequence, position) of packed rows
    """

    first: Tensor
    second: Tensor | None = None
    starts: Tensor | None = None


class Checked(NamedTuple):
    """`[M]` int64 flat rows that exist."""

    keys: Tensor


class How(NamedTuple):
    """The options of value_score."""

    norm: str | None
    eps: float
    offset: float
    clamp: tuple[float, float] | None


class Head(NamedTuple):
    """The weights of value_score, detached: `[H]`, `[1]`, `[H]`, `[H]`."""

    weight: Tensor
    bias: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None


class Result(NamedTuple):
    """score `[M]`; for gradients keys `[M]` (flat rows, -1 for one that does not exist) and saved `[4, M]`:
    1/std, mean, normed dot product without bias, unclamped score."""

    score: Tensor
    keys: Tensor | None = None
    saved: Tensor | None = None


def forward(hidden: Tensor, rows: Rows | Checked, head: Head, how: How, *, gradients: bool) -> Result:
    """The score of a row that does not exist is NaN."""
    v = head.weight.to(math_dtype(hidden))
    u = v if head.norm_weight is None else v * gain(head, how)
    if isinstance(rows, Checked):
        keys = rows.keys
        scale, mean, dot = _statistics(hidden, keys, u, how)
        score = dot
    else:
        keys = flat(hidden, rows)
        scale, mean, dot = _statistics(hidden, keys.clamp(min=0), u, how)
        score = dot.masked_fill(keys < 0, torch.nan)
    if head.bias is not None:
        score = score + head.bias.to(v)
    if head.norm_bias is not None:
        score = score + head.norm_bias.to(v) @ v
    clamped = score if how.clamp is None else score.clamp(*how.clamp)
    if not gradients:
        return Result(clamped)
    scale = torch.ones_like(dot) if scale is None else scale
    mean = torch.zeros_like(dot) if mean is None else mean
    return Result(clamped, keys, torch.stack((scale, mean, dot, score)))


def backward(
    d_score: Tensor,
    hidden: Tensor,
    keys: Tensor,
    saved: Tensor,
    u: Tensor,
    norm: str | None,
    *,
    d_hidden: bool,
    d_head: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """dL/d hidden, and the sum over m of d_score x_hat `[H]`, each if wanted.

    u `[H]`: the head with the norm's weight; d_score `[M]` is 0 where the clamp holds.
    """
    d_x = hidden.new_zeros(hidden.shape) if d_hidden else None
    d_u = torch.zeros_like(u) if d_head else None
    if len(keys) == 0:
        return d_x, d_u
    in_order, order = keys.sort(stable=True)
    distinct, counts = in_order.unique_consecutive(return_counts=True)
    total = torch.segment_reduce(d_score[order], "sum", lengths=counts)  # of repeats, in a fixed order
    live = (distinct >= 0) & (total != 0)
    distinct, total, entry = distinct[live], total[live], order[counts.cumsum(0) - counts][live]
    scale, mean, dot, _ = saved[:, entry]
    centred = u - u.mean() if norm == "layer" else u
    for at in _chunks(torch.arange(len(distinct), device=keys.device), u.numel()):
        x_hat = (_read(hidden, distinct[at]).to(u.dtype) - mean[at, None]) * scale[at, None]
        if d_u is not None:
            d_u += total[at] @ x_hat
        if d_x is not None:
            dx = centred - x_hat * (dot[at, None] / u.numel()) if norm else centred
            dx = dx * (total * scale)[at, None]
            d_x.view(-1, u.numel()).index_copy_(0, distinct[at], dx.to(hidden.dtype))
    return d_x, d_u


def math_dtype(hidden: Tensor) -> torch.dtype:
    """float32, or float64 for such states."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def gain(head: Head, how: How) -> Tensor | float:
    """What the norm multiplies by, `[H]` in float32 or float64."""
    if head.norm_weight is None:
        return 1.0
    wide = head.norm_weight.to(torch.promote_types(head.norm_weight.dtype, torch.float32))
    return wide + how.offset if how.offset else wide


def checked(hidden: Tensor, rows: Rows) -> Checked:
    """Raises RestrlError naming the first entry that is out of range."""
    count = hidden.shape[:-1].numel()
    keys = rows.first.long() if rows.second is None else flat(hidden, rows)
    if not keys.numel():
        return Checked(keys)
    low, high = keys.aminmax()
    if int(low) >= 0 and int(high) < count:
        return Checked(keys)
    m = int(((keys < 0) | (keys >= count)).nonzero()[0])
    named = f"{int(rows.first[m])}"
    if rows.second is not None:
        named = f"({int(rows.first[m])}, {int(rows.second[m])})"
    shape = f"hidden is {list(hidden.shape)}"
    if rows.starts is not None:
        shape += f", cu_seqlens {rows.starts.tolist()[:8]}{' ...' if rows.starts.numel() > 8 else ''}"
    raise RestrlError(f"value_score: entry {m} of the index, {named}, is out of range: {shape}")


def flat(hidden: Tensor, rows: Rows) -> Tensor:
    """Flat rows `[M]` int64, -1 for those that do not exist."""
    first = rows.first.long()
    if rows.second is None:
        inside = (first >= 0) & (first < hidden.shape[:-1].numel())
        return torch.where(inside, first, -1)
    second = rows.second.long()
    inside = (first >= 0) & (second >= 0)
    if rows.starts is None:
        inside &= (first < hidden.shape[0]) & (second < hidden.shape[1])
        return torch.where(inside, first * hidden.shape[1] + second, -1)
    starts = rows.starts.long()
    sequences = starts.numel() - 1
    inside &= first < sequences
    sequence = torch.where(inside, first, 0)
    start, stop = starts[sequence], starts[(sequence + 1).clamp(max=sequences)]
    row = start + second
    inside &= (row < stop) & (start >= 0) & (stop <= hidden.shape[0])
    return torch.where(inside, row, -1)


def _read(hidden: Tensor, keys: Tensor) -> Tensor:
    """Rows `[m, H]` of the flat keys, in the dtype of the states."""
    if hidden.dim() == 2:
        return hidden.index_select(0, keys)
    length = hidden.shape[1]
    if hidden.shape[0] == 1 or hidden.stride(0) == length * hidden.stride(1):
        return hidden.flatten(0, 1).index_select(0, keys)
    return hidden[keys // length, keys % length]


def _chunks(keys: Tensor, width: int) -> Sequence[Tensor]:
    rows = max(1, _CHUNK // width)
    return (keys,) if len(keys) <= rows else keys.split(rows)


def _statistics(
    hidden: Tensor, keys: Tensor, u: Tensor, how: How
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """1/std and mean (None: there is none) and normed dot product `[M]`.

    Sums run along a row alone: it scores the same in any company.
    """
    scales: list[Tensor] = []
    means: list[Tensor] = []
    dots: list[Tensor] = []
    for own in _chunks(keys, u.numel()):
        x = _read(hidden, own).to(u.dtype)
        if how.norm == "layer":
            means.append(x.mean(-1))
            x = x - means[-1][:, None]
        dots.append((x * u).sum(1))
        if how.norm is not None:
            scales.append(x.square().mean(1).add_(how.eps).rsqrt_())
            dots[-1] *= scales[-1]
    joined = [
        torch.cat(parts) if len(parts) > 1 else parts[0] if parts else None for parts in (scales, means)
    ]
    return joined[0], joined[1], torch.cat(dots) if len(dots) > 1 else dots[0]
