"""Scores of single rows of a hidden state: gather, final norm, scalar head, bias and clamp in one read.

    score = clamp( rsqrt(mean_j x_j^2 + eps) * sum_j x_j u_j + b ),   u = (norm_offset + w_norm) v

Forward: one launch; each program reads ROWS rows whole, and the head with them. LayerNorm centres x while it
is in registers. Backward: repeats of a row share x, so their gradients are added as numbers before any row is
read: rows are sorted, the sum over a run goes to its first entry, and one pass over the distinct rows gives
dL/dx and, program by program, the parts of sum_m (dL/dscore_m) x_hat_m, from which all weights' gradients
follow. Nothing is added atomically: equal inputs give equal bits. Nothing waits for the GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from restrl.kernels.build import Build

NORMS = {None: 0, "rms": 1, "layer": 2}

WIDEST = 8192  # elements of a row in one block; longer rows take several
PER_PROGRAM = 8192  # elements of a forward program: its rows share the loads of the head
MOST_ROWS = 32  # of a forward program
SPREAD = 256  # programs below which rows go one to a program
BACKWARD = (4, 1024)  # rows and elements of a block
PARTS = 256  # programs at most that the rows of a backward pass are dealt to


@triton.jit
def _offsets(keys, length, stride_row, stride_position, JOINED: tl.constexpr):
    """Elements before row `key` of [rows * length]; JOINED: one stride serves both dimensions."""
    if JOINED:
        return keys * stride_position
    return keys // length * stride_row + keys % length * stride_position


@triton.jit(do_not_specialize=["count", "rows", "length"])
def score_kernel(
    hidden,
    first,  # [M] rows, or sequences of packed rows
    second,  # [M] positions, None for flat rows
    starts,  # [rows + 1] where sequences start, packed rows only
    weight,
    bias,
    norm_weight,
    norm_bias,
    scores,
    keys,  # [M] int64, None without gradients
    saved,  # [4, M] 1/std, mean, normed dot product, unclamped score; None without gradients
    count,
    rows,
    length,
    width,
    stride_row,
    stride_position,
    stride_column,
    LOW: tl.constexpr,  # None: no clamp
    HIGH: tl.constexpr,
    EPS: tl.constexpr,
    OFFSET: tl.constexpr,
    NORM: tl.constexpr,
    FORM: tl.constexpr,  # 0 flat rows, 1 pairs, 2 packed rows
    JOINED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    own = m < count
    i = tl.load(first + m, mask=own, other=-1).to(tl.int64)
    if FORM == 0:
        valid = (i >= 0) & (i < rows)
        key = i
    else:
        t = tl.load(second + m, mask=own, other=-1).to(tl.int64)
        valid = (i >= 0) & (i < rows) & (t >= 0)
        if FORM == 1:
            valid &= t < length
            key = i * length + t
        else:
            start = tl.load(starts + i, mask=valid, other=0).to(tl.int64)
            stop = tl.load(starts + i + 1, mask=valid, other=0).to(tl.int64)
            key = start + t
            valid &= (key < stop) & (start >= 0) & (stop <= length)
    places = _offsets(tl.where(valid, key, 0), length, stride_row, stride_position, JOINED)

    dots = tl.zeros((ROWS,), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)
    means = tl.zeros((ROWS,), tl.float32)
    heads = 0.0  # sum of u so far
    shift = 0.0
    for begin in range(0, width, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        inside = columns < width
        v = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
        u = v
        if norm_weight is not None:
            u *= tl.load(norm_weight + columns, mask=inside, other=0.0).to(tl.float32) + OFFSET
        read = valid[:, None] & inside[None, :]
        at = hidden + places[:, None] + columns.to(tl.int64)[None, :] * stride_column
        x = tl.load(at, mask=read, other=0.0).to(tl.float32)
        if NORM == 2:
            # The block's own mean and centred sums, joined with those of the blocks before: no difference of
            # two large sums of squares.
            here = tl.minimum(width - begin, BLOCK).to(tl.float32)
            mean = tl.sum(x, 1) / here
            x = tl.where(read, x - mean[:, None], 0.0)
            away = mean - means
            part = here / (begin + here)
            head = tl.sum(u, 0)
            squares += tl.sum(x * x, 1) + away * away * (begin * part)
            dots += tl.sum(x * u[None, :], 1) + away * ((1.0 - part) * head - part * heads)
            means += away * part
            heads += head
        else:
            dots += tl.sum(x * u[None, :], 1)
            if NORM == 1:
                squares += tl.sum(x * x, 1)
        if norm_bias is not None:
            shift += tl.sum(v * tl.load(norm_bias + columns, mask=inside, other=0.0).to(tl.float32), 0)
    if bias is not None:
        shift += tl.load(bias).to(tl.float32)

    scales = tl.full((ROWS,), 1.0, tl.float32)
    if NORM != 0:
        scales = tl.rsqrt(squares / width + EPS)
    dots *= scales
    unclamped = tl.where(valid, dots + shift, float("nan"))
    result = unclamped
    if LOW is not None:
        result = tl.where(result < LOW, LOW, result)  # by comparisons: NaN stays
        result = tl.where(result > HIGH, HIGH, result)
    tl.store(scores + m, result, mask=own)
    if saved is not None:
        tl.store(keys + m, tl.where(valid, key, -1), mask=own)
        tl.store(saved + m, scales, mask=own)
        tl.store(saved + count.to(tl.int64) + m, means, mask=own)
        tl.store(saved + 2 * count.to(tl.int64) + m, dots, mask=own)
        tl.store(saved + 3 * count.to(tl.int64) + m, unclamped, mask=own)


@triton.jit(do_not_specialize=["count"])
def runs_kernel(
    sorted_keys,  # [M] rising
    order,  # [M] where the entries stood
    d_scores,
    targets,  # [M] out: the row of a run's first entry, -1 for the others and where nothing is to be done
    totals,  # [M] out: a run's gradient at its first entry
    count,
    BLOCK: tl.constexpr,
):
    j = tl.program_id(0).to(tl.int64)
    key = tl.load(sorted_keys + j)
    before = tl.load(sorted_keys + j - 1, mask=j > 0, other=-1)
    target = tl.full((), -1, tl.int64)
    total = 0.0
    if (key >= 0) & (key != before):
        at = j + tl.arange(0, BLOCK)
        more = 1
        while more == 1:
            same = tl.load(sorted_keys + at, mask=at < count, other=-1) == key
            entries = tl.load(order + at, mask=same, other=0)
            total += tl.sum(tl.load(d_scores + entries, mask=same, other=0.0), 0)
            more = tl.min(same.to(tl.int32), 0)
            at += BLOCK
        if total != 0.0:
            target = key
    tl.store(targets + j, target)
    tl.store(totals + j, total)


@triton.jit(do_not_specialize=["count", "length", "per_program"])
def gradient_kernel(
    hidden,
    targets,
    totals,
    order,
    saved,  # [4, M] of the forward pass
    head,  # [H] u in fp32
    head_mean,  # [] mean of u, LayerNorm only
    d_hidden,  # [rows, H] contiguous, zero before; None: not wanted
    d_parts,  # [programs, H] sums of totals * x_hat; None: not wanted
    count,
    length,
    width,
    per_program,
    stride_row,
    stride_position,
    stride_column,
    NORM: tl.constexpr,
    JOINED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    begin = program * per_program
    end = tl.minimum(begin + per_program, count.to(tl.int64))
    u = tl.load(head + columns, mask=inside, other=0.0)
    centred = u
    if NORM == 2:
        centred = u - tl.load(head_mean)
    sums = tl.zeros((BLOCK,), tl.float32)
    for at in range(begin, end, ROWS):
        j = at + tl.arange(0, ROWS)
        key = tl.load(targets + j, mask=j < end, other=-1)
        live = key >= 0
        total = tl.load(totals + j, mask=live, other=0.0)
        m = tl.load(order + j, mask=live, other=0)
        scale = tl.load(saved + m, mask=live, other=0.0)
        both = live[:, None] & inside[None, :]
        x = tl.zeros((ROWS, BLOCK), tl.float32)
        if (NORM != 0) or (d_parts is not None):
            places = _offsets(tl.where(live, key, 0), length, stride_row, stride_position, JOINED)
            from_ = hidden + places[:, None] + columns.to(tl.int64)[None, :] * stride_column
            x = tl.load(from_, mask=both, other=0.0).to(tl.float32)
            if NORM == 2:
                mean = tl.load(saved + count.to(tl.int64) + m, mask=live, other=0.0)
                x = x - mean[:, None]
            x = tl.where(both, x * scale[:, None], 0.0)  # x_hat
        if d_parts is not None:
            sums += tl.sum(x * total[:, None], 0)
        if d_hidden is not None:
            dx = tl.zeros((ROWS, BLOCK), tl.float32) + centred[None, :]
            if NORM != 0:
                dot = tl.load(saved + 2 * count.to(tl.int64) + m, mask=live, other=0.0)
                dx -= x * (dot / width)[:, None]
            dx *= (total * scale)[:, None]
            to = d_hidden + (tl.where(live, key, 0) * width)[:, None] + columns[None, :]
            tl.store(to, dx.to(d_hidden.dtype.element_ty), mask=both)
    if d_parts is not None:
        tl.store(d_parts + program * width + columns, sums, mask=inside)


class Layout(NamedTuple):
    """A [N, H] or [B, T, H] tensor as the kernels take it; joined: one stride serves rows and positions."""

    rows: int
    length: int
    strides: tuple[int, int, int]
    joined: bool

    @classmethod
    def of(cls, hidden: Tensor) -> Layout:
        row, position, column = (0, *hidden.stride()) if hidden.dim() == 2 else hidden.stride()
        rows, length = (1, *hidden.shape)[-3:-1]
        return cls(rows, length, (row, position, column), rows == 1 or row == length * position)


def forward_shape(count: int, width: int) -> tuple[int, int, int]:
    """ROWS, BLOCK and warps for `count` rows: few rows go one to a program, so that all of the GPU reads."""
    block = min(triton.next_power_of_2(width), WIDEST)
    rows = min(MOST_ROWS, max(1, PER_PROGRAM // block))
    if count < SPREAD * rows:
        return 1, block, min(8, max(1, block // 256))
    return rows, block, min(8, max(1, rows * block // 1024))


def forward(
    hidden: Tensor, index: tuple, head: tuple, how: tuple, *, gradients: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """restrl.ops.value_torch.forward: scores [M] in fp32, keys [M] and saved [4, M] for the backward pass."""
    first, second, starts = index
    norm, eps, offset, clamp = how
    count, width, device = first.numel(), hidden.shape[-1], hidden.device
    scores = torch.empty(count, dtype=torch.float32, device=device)
    keys = torch.empty(count, dtype=torch.int64, device=device) if gradients else None
    saved = torch.empty(4, count, dtype=torch.float32, device=device) if gradients else None
    if count == 0:
        return scores, keys, saved
    form = 0 if second is None else 1 if starts is None else 2
    layout = Layout.of(hidden)
    limit = (layout.rows * layout.length, layout.rows, 0 if starts is None else starts.numel() - 1)[form]
    per_program, block, warps = forward_shape(count, width)
    low, high = (None, None) if clamp is None else clamp
    tensors = (hidden, first, second, starts, *head, scores, keys, saved)
    sizes = (count, limit, layout.length, width, *layout.strides)
    with torch.cuda.device_of(hidden):
        score_kernel[(triton.cdiv(count, per_program),)](
            *tensors,
            *sizes,
            LOW=low,
            HIGH=high,
            EPS=eps,
            OFFSET=offset,
            NORM=NORMS[norm],
            FORM=form,
            JOINED=layout.joined,
            ROWS=per_program,
            BLOCK=block,
            num_warps=warps,
        )
    return scores, keys, saved


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
    """restrl.ops.value_torch.backward: dL/d hidden and the sum over m of d_score x_hat [H] in fp32."""
    count, width = keys.numel(), u.numel()
    out = torch.zeros(hidden.shape, dtype=hidden.dtype, device=hidden.device) if d_hidden else None
    if count == 0 or not (d_hidden or d_head):
        return out, torch.zeros_like(u) if d_head else None
    sorted_keys, order = torch.sort(keys, stable=True)
    targets, totals = torch.empty_like(keys), torch.empty_like(d_score)
    with torch.cuda.device_of(hidden):
        runs_kernel[(count,)](sorted_keys, order, d_score, targets, totals, count, BLOCK=32, num_warps=1)
    rows, block = BACKWARD
    block = min(block, triton.next_power_of_2(width))
    programs = min(PARTS, triton.cdiv(count, rows))
    per_program = triton.cdiv(triton.cdiv(count, programs), rows) * rows
    programs = triton.cdiv(count, per_program)
    parts = torch.empty(programs, width, dtype=torch.float32, device=hidden.device) if d_head else None
    layout = Layout.of(hidden)
    mean = u.mean() if norm == "layer" else None
    tensors = (hidden, targets, totals, order, saved, u, mean, out, parts)
    sizes = (count, layout.length, width, per_program, *layout.strides)
    with torch.cuda.device_of(hidden):
        gradient_kernel[(programs, triton.cdiv(width, block))](
            *tensors, *sizes, NORM=NORMS[norm], JOINED=layout.joined, ROWS=rows, BLOCK=block, num_warps=4
        )
    return out, None if parts is None else parts.sum(0)


def _score_build(note: str, width: int, count: int, kind: str, index: str, **changed: object) -> Build:
    rows, block, warps = forward_shape(count, width)
    types = dict.fromkeys(("hidden", "weight", "bias", "norm_weight", "norm_bias"), kind)
    types |= {"first": index, "second": index, "starts": index, "keys": "*i64"}
    types |= dict.fromkeys(("scores", "saved"), "*fp32")
    types |= dict.fromkeys(("count", "rows", "length"), "i32")
    types |= dict.fromkeys(("width", "stride_row", "stride_position"), "i32:16")
    constants: dict[str, object] = {"stride_column": 1, "LOW": 0.0, "HIGH": 1.0, "EPS": 1e-6, "OFFSET": 0.0}
    constants |= {"NORM": 1, "FORM": 0, "JOINED": True, "ROWS": rows, "BLOCK": block, **changed}
    types = {name: kind for name, kind in types.items() if name not in constants}
    return Build(score_kernel, types, constants, num_warps=warps, note=note)


def _gradient_build(note: str, kind: str, **changed: object) -> Build:
    rows, block = BACKWARD
    types = {"hidden": kind, "d_hidden": kind, "targets": "*i64", "order": "*i64"}
    types |= dict.fromkeys(("totals", "saved", "head", "head_mean", "d_parts"), "*fp32")
    types |= dict.fromkeys(("count", "length", "per_program"), "i32")
    types |= dict.fromkeys(("width", "stride_row", "stride_position"), "i32:16")
    constants: dict[str, object] = {
        "stride_column": 1,
        "NORM": 1,
        "JOINED": True,
        "ROWS": rows,
        "BLOCK": block,
    }
    constants |= changed
    types = {name: kind for name, kind in types.items() if name not in constants}
    return Build(gradient_kernel, types, constants, note=note)


_INFERENCE = {"norm_bias": None, "keys": None, "saved": None}
_PLAIN = {"NORM": 0, "norm_weight": None, "bias": None, "LOW": None, "HIGH": None, **_INFERENCE}
_FLAT = {"second": None, "starts": None}
BUILDS = (
    _score_build("rms 3584 bf16", 3584, 1 << 18, "*bf16", "*i64", **_FLAT, **_INFERENCE),
    _score_build("none 896 bf16 pair", 896, 1 << 18, "*bf16", "*i64", FORM=1, starts=None, **_PLAIN),
    _score_build("layer 8192 fp32 packed", 8192, 1 << 18, "*fp32", "*i32", FORM=2, NORM=2),
    _score_build("rms 896 bf16 few", 896, 64, "*bf16", "*i32", FORM=2, norm_bias=None),
    _gradient_build("rms bf16", "*bf16", head_mean=None),
    _gradient_build("layer fp32", "*fp32", NORM=2, JOINED=False),
    Build(
        runs_kernel,
        {
            "sorted_keys": "*i64",
            "order": "*i64",
            "d_scores": "*fp32",
            "targets": "*i64",
            "totals": "*fp32",
            "count": "i32",
        },
        {"BLOCK": 32},
        num_warps=1,
    ),
)
