"""Rows of raw logits to log-probs and entropies, and gradients of those to gradients of the raw logits.

One program owns one row (a token) and walks over its V logits in tiles. Raw logits x become

    z = (x + b) * outer                        outer = logit_scale / temperature
    z = tanh((x + b) * inner) * outer          inner = logit_scale / softcap, outer = softcap / temperature

on the fly; all arithmetic is float32, whatever the logits are stored in. Statistics take one read of the row:
the running maximum is a scalar, sums of exp(z - max) and (z - max) exp(z - max) stay apart by lane and are
added up once at the end. Maximum and log of the sum are kept apart, so that logits of 1e4 lose nothing.

**Writing over what is read.** The gradient may be written over the logits, also in a narrower type: bfloat16
gradients of row r then lie in the first half of the memory of row r's float32 logits. Tile k covers the bytes
[4kB, 4(k+1)B) when read and [2kB, 2(k+1)B) when written, B lanes each: a write of tile k can only hit tiles
0..k, never one that is still to be read, and a barrier between load and store keeps warps that run ahead from
writing over what another warp has yet to load. A row has one program, so no other barrier is needed.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from restrl.kernels.build import Build
from restrl.kernels.numerics import expm1, log1p, tanh


@triton.jit
def load_tile(row, bias, columns, width, vocabulary, inner, outer, CAPPED: tl.constexpr):
    """Logits z of the tile, -inf past the vocabulary, and tanh where they are capped. What lies between the
    vocabulary and `width` is loaded, so that loads can be wide where the vocabulary is odd, and never counts.
    """
    inside = columns < vocabulary
    raw = tl.load(row + columns, mask=columns < width, other=0.0).to(tl.float32)
    if bias is not None:
        raw += tl.load(bias + columns, mask=columns < width, other=0.0).to(tl.float32)
    if CAPPED:
        bent = tanh(raw * inner)
        z = bent * outer
    else:
        bent = raw
        z = raw * outer
    return tl.where(inside, z, float("-inf")), bent


@triton.jit
def row_statistics(
    row,
    bias,
    token,
    width,
    vocabulary,
    inner,
    outer,
    CAPPED: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """log p of the token, the entropy (0 if not wanted), the maximum, and log sum exp(z - maximum).

    The token itself stays out of the sum until the end: where p is nearly 1, what is left of it, and so log p
    and the entropy, keeps its relative precision.
    """
    lanes = tl.arange(0, BLOCK)
    largest = float("-inf")
    others = tl.zeros([BLOCK], tl.float32)
    moment = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocabulary, BLOCK):
        columns = start + lanes
        z, _ = load_tile(row, bias, columns, width, vocabulary, inner, outer, CAPPED)
        raised = tl.maximum(largest, tl.max(z, 0))
        base = tl.where(raised > float("-inf"), raised, 0.0)
        drop = tl.where(largest > float("-inf"), largest - base, 0.0)
        shrink = tl.exp(drop)
        away = z - base
        weight = tl.where(columns == token, 0.0, tl.exp(away))
        if ENTROPY:
            moment = (moment + drop * others) * shrink + tl.where(weight > 0.0, away * weight, 0.0)
        others = others * shrink + weight
        largest = raised
    chosen, _ = load_tile(row, bias, token, width, vocabulary, inner, outer, CAPPED)
    own_away = chosen - largest
    own = tl.exp(own_away)
    rest = tl.sum(others, 0)
    log_sum = log1p(rest + (own - 1.0))
    log_prob = own_away - log_sum
    entropy = 0.0
    if ENTROPY:
        own_moment = tl.where(own > 0.0, own_away * own, 0.0)
        entropy = log_sum - (tl.sum(moment, 0) + own_moment) / (rest + own)
    return log_prob, entropy, largest, log_sum


@triton.jit
def row_gradient(
    row,
    out,
    bias,
    token,
    log_prob,
    entropy,
    largest,
    log_sum,
    g,
    c,
    width,
    vocabulary,
    inner,
    outer,
    CAPPED: tl.constexpr,
    ENTROPY: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dloss/dx of the row into `out`: zeros, without a look at the logits, where g = c = 0 or token = -1."""
    lanes = tl.arange(0, BLOCK)
    if (token < 0) | ((g == 0.0) & (c == 0.0)):
        for start in range(0, vocabulary, BLOCK):
            columns = start + lanes
            nothing = tl.zeros([BLOCK], tl.float32).to(out.dtype.element_ty)
            tl.store(out + columns, nothing, mask=columns < width)
    else:
        chain = outer
        if CAPPED:
            chain = outer * inner
        at_token = -g * expm1(
            log_prob
        )  # g (1 - p): the difference would cancel for a token that is nearly sure
        for start in range(0, vocabulary, BLOCK):
            columns = start + lanes
            z, bent = load_tile(row, bias, columns, width, vocabulary, inner, outer, CAPPED)
            log_p = (z - largest) - log_sum
            p = tl.exp(log_p)
            dz = tl.where(columns == token, at_token, -g * p)
            if ENTROPY:
                dz -= c * tl.where(p > 0.0, p * (log_p + entropy), 0.0)
            if CAPPED:
                dz *= 1.0 - bent * bent
            dx = (dz * chain).to(out.dtype.element_ty)
            if SHARED:
                tl.debug_barrier()
            tl.store(out + columns, dx, mask=columns < width)


@triton.jit
def logits_statistics_kernel(
    logits,
    stride,
    bias,
    tokens,
    log_probs,
    entropies,
    maxima,
    log_sums,
    width,
    vocabulary,
    inner,
    outer,
    CAPPED: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Row statistics; 0 where the token is -1. Without `maxima`, `log_sums` gets log sum exp z."""
    i = tl.program_id(0).to(tl.int64)
    token = tl.load(tokens + i)
    log_prob = 0.0
    entropy = 0.0
    largest = 0.0
    log_sum = 0.0
    if token >= 0:
        log_prob, entropy, largest, log_sum = row_statistics(
            logits + i * stride,
            bias,
            token,
            width,
            vocabulary,
            tl.cast(inner, tl.float32),
            tl.cast(outer, tl.float32),
            CAPPED,
            ENTROPY,
            BLOCK,
        )
    tl.store(log_probs + i, log_prob)
    if ENTROPY:
        tl.store(entropies + i, entropy)
    if maxima is None:
        log_sum += largest
    else:
        tl.store(maxima + i, largest)
    tl.store(log_sums + i, log_sum)


@triton.jit
def logits_gradient_kernel(
    logits,
    stride,
    out,
    out_stride,
    bias,
    tokens,
    log_probs,
    entropies,
    maxima,
    log_sums,
    g,
    c,
    width,
    vocabulary,
    inner,
    outer,
    CAPPED: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dloss/dx from dloss/dlog_prob `g` and dloss/dentropy `c` (None: 0)."""
    i = tl.program_id(0).to(tl.int64)
    largest = 0.0
    if maxima is not None:
        largest = tl.load(maxima + i)
    of_entropy = 0.0
    entropy = 0.0
    if c is not None:
        of_entropy = tl.load(c + i)
        entropy = tl.load(entropies + i)
    row_gradient(
        logits + i * stride,
        out + i * out_stride,
        bias,
        tl.load(tokens + i),
        tl.load(log_probs + i),
        entropy,
        largest,
        tl.load(log_sums + i),
        tl.load(g + i),
        of_entropy,
        width,
        vocabulary,
        tl.cast(inner, tl.float32),
        tl.cast(outer, tl.float32),
        CAPPED,
        c is not None,
        SHARED,
        BLOCK,
    )


class Transform(NamedTuple):
    """How raw logits become z."""

    inner: float
    outer: float
    capped: bool

    @staticmethod
    def of(logit_scale: float, softcap: float | None, temperature: float) -> "Transform":
        if softcap is None:
            return Transform(1.0, logit_scale / temperature, False)
        return Transform(logit_scale / softcap, softcap / temperature, True)


class Tile(NamedTuple):
    """block: logits a step; warps: of a program."""

    block: int
    warps: int


# By vocabulary: the first line whose bound holds. Chosen by register count, to be tuned on a GPU.
TILES = ((2048, Tile(1024, 4)), (16384, Tile(2048, 4)), (1 << 31, Tile(4096, 8)))


def tile(vocabulary: int) -> Tile:
    return next(t for bound, t in TILES if vocabulary <= bound)


def statistics(
    logits: Tensor,
    tokens: Tensor,
    transform: Transform,
    entropy: bool,
    *,
    bias: Tensor | None = None,
    split: bool = False,
    width: int | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """log-probs, entropies (None if not wanted), maxima and logs of the sums, each `[C]` float32.

    logits  `[C, V]` raw, last dimension contiguous; bias `[width]`, float32
    tokens  `[C]` integers; -1: the row is not read, its results are 0
    width   columns of `logits` that may be read, V or more: the memory of a row may go on
    split   False: maxima is None, and log sum exp z stands in place of the logs of sum exp(z - maximum)
    """
    rows, vocabulary = logits.shape
    made = torch.empty(4, rows, dtype=torch.float32, device=logits.device)
    entropies = made[1] if entropy else None
    maxima = made[2] if split else None
    if rows:
        block, warps = tile(vocabulary)
        with torch.cuda.device_of(logits):
            logits_statistics_kernel[(rows,)](
                logits,
                logits.stride(0),
                bias,
                tokens,
                made[0],
                entropies,
                maxima,
                made[3],
                width or vocabulary,
                vocabulary,
                transform.inner,
                transform.outer,
                CAPPED=transform.capped,
                ENTROPY=entropy,
                BLOCK=block,
                num_warps=warps,
            )
    return made[0], entropies, maxima, made[3]


def gradient(
    logits: Tensor,
    out: Tensor,
    tokens: Tensor,
    transform: Transform,
    known: tuple[Tensor, Tensor | None, Tensor | None, Tensor],
    g: Tensor,
    c: Tensor | None,
    *,
    bias: Tensor | None = None,
    width: int | None = None,
) -> None:
    """dloss/dlogits into `out` `[C, V]`, which may be `logits`, or narrower and in the memory of the
    same rows of `logits`.

    known  what `statistics` returned (its entropies where `c` is given)
    g, c   `[C]` float32 dloss/dlog_prob and dloss/dentropy (None: 0)
    width  columns that may be read, and written in `out`, V or more
    """
    rows, vocabulary = logits.shape
    if not rows:
        return
    log_probs, entropies, maxima, log_sums = known
    block, warps = tile(vocabulary)
    with torch.cuda.device_of(logits):
        logits_gradient_kernel[(rows,)](
            logits,
            logits.stride(0),
            out,
            out.stride(0),
            bias,
            tokens,
            log_probs,
            None if c is None else entropies,
            maxima,
            log_sums,
            g,
            c,
            width or vocabulary,
            vocabulary,
            transform.inner,
            transform.outer,
            CAPPED=transform.capped,
            SHARED=shares_memory(out, logits),
            BLOCK=block,
            num_warps=warps,
        )


def shares_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _builds(kernel, logits: str, note: str, **options: object) -> Build:
    """For the vocabulary of a 7B model. options: constants and None for pointers, or types."""
    block, warps = tile(152064)
    floats = "bias log_probs entropies maxima log_sums g c"
    types = {name: "*fp32" for name in floats.split() if name in kernel.arg_names and name not in options}
    types |= {"logits": logits, "stride": "i32:16", "tokens": "*i64", "inner": "fp32", "outer": "fp32"}
    types |= {"width": "i32:16", "vocabulary": "i32"}
    if kernel is logits_gradient_kernel:
        types |= {"out": logits, "out_stride": "i32:16"}
    types |= {name: kind for name, kind in options.items() if isinstance(kind, str)}
    made = {name: value for name, value in options.items() if not isinstance(value, str)}
    return Build(kernel, types, {"CAPPED": False, **made, "BLOCK": block}, num_warps=warps, note=note)


BUILDS = (
    _builds(logits_statistics_kernel, "*fp32", "fp32, entropy", bias=None, ENTROPY=True),
    _builds(logits_statistics_kernel, "*fp32", "fp32, cap, bias", CAPPED=True, ENTROPY=True),
    _builds(logits_statistics_kernel, "*bf16", "bf16, entropy", bias=None, maxima=None, ENTROPY=True),
    _builds(logits_gradient_kernel, "*fp32", "to bf16 in place", bias=None, out="*bf16", SHARED=True),
    _builds(logits_gradient_kernel, "*fp32", "cap, bias, in place", CAPPED=True, SHARED=True),
)
