"""Rows of logits to log-probs, token-level loss and gradient of the logits, in one launch.

One program owns one row: statistics, the loss of its token, then the gradient, for which the row is read once
more, from the cache if it still holds it. The gradient may take the place of the logits (see rows.py).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from restrl.kernels.build import Build
from restrl.kernels.rows import Transform, row_gradient, row_statistics, shares_memory, tile
from restrl.kernels.terms import constants, token_terms
from restrl.ops.rows import RowStatistics, TokenInputs
from restrl.reference.derivatives import TokenGradients
from restrl.reference.spec import LossSpec


@triton.jit
def one_shot_kernel(
    logits,
    stride,
    out,
    out_stride,
    tokens,
    advantages,
    weights,
    entropy_weights,
    old,
    ref,
    importance,
    results,
    flags,
    rows,
    vocabulary,
    inner,
    outer,
    CAPPED: tl.constexpr,
    ENTROPY: tl.constexpr,
    KIND: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    DELTA: tl.constexpr,
    TAU_POS: tl.constexpr,
    TAU_NEG: tl.constexpr,
    BETA: tl.constexpr,
    CORRECTED: tl.constexpr,
    DROP_NEGATIVE: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`results` `[6, rows]`: log-prob, entropy, loss, g, c, KL; `flags` `[2, rows]`: clipped low, high. All 0
    where the token is -1.
    """
    i = tl.program_id(0).to(tl.int64)
    inner = tl.cast(inner, tl.float32)
    outer = tl.cast(outer, tl.float32)
    token = tl.load(tokens + i)
    log_prob = 0.0
    entropy = 0.0
    largest = 0.0
    log_sum = 0.0
    loss = 0.0
    g = 0.0
    c = 0.0
    kl = 0.0
    low = token < token
    high = token < token
    if token >= 0:
        log_prob, entropy, largest, log_sum = row_statistics(
            logits + i * stride, None, token, vocabulary, vocabulary, inner, outer, CAPPED, ENTROPY, BLOCK
        )
        a = tl.load(advantages + i)
        weight = tl.load(weights + i)
        log_ratio = tl.zeros_like(log_prob)
        if old is not None:
            log_ratio = log_prob - tl.load(old + i)
        reference = log_prob
        if BETA > 0:
            reference = tl.load(ref + i)
        factor = tl.zeros_like(log_prob) + 1.0
        if importance is not None:
            factor = tl.load(importance + i)
        if DROP_NEGATIVE:
            factor = tl.where(a < 0, 0.0, factor)
        value, by_ratio, by_log_prob, kl, low, high = token_terms(
            log_prob,
            log_ratio,
            reference,
            factor,
            a,
            1.0,
            KIND,
            LOW,
            HIGH,
            DELTA,
            TAU_POS,
            TAU_NEG,
            BETA,
            CORRECTED,
        )
        g = weight * by_log_prob + weight * by_ratio
        loss = weight * value
        if entropy_weights is not None:
            c = -tl.load(entropy_weights + i)
            loss += c * entropy
    tl.store(results + i, log_prob)
    tl.store(results + rows + i, entropy)
    tl.store(results + 2 * rows + i, loss)
    tl.store(results + 3 * rows + i, g)
    tl.store(results + 4 * rows + i, c)
    tl.store(results + 5 * rows + i, kl)
    tl.store(flags + i, low.to(tl.int8))
    tl.store(flags + rows + i, high.to(tl.int8))
    row_gradient(
        logits + i * stride,
        out + i * out_stride,
        None,
        token,
        log_prob,
        entropy,
        largest,
        log_sum,
        g,
        c,
        vocabulary,
        vocabulary,
        inner,
        outer,
        CAPPED,
        entropy_weights is not None,
        SHARED,
        BLOCK,
    )


def one_shot(
    logits: Tensor,
    tokens: Tensor,
    transform: Transform,
    inputs: TokenInputs,
    spec: LossSpec,
    entropy: bool,
    out: Tensor,
) -> tuple[RowStatistics, TokenGradients] | None:
    """See restrl.ops.rows.LogitRows.one_shot; None for a loss whose tokens do not stand alone."""
    kind = None if inputs.importance_ratio is None else "token"
    alone = spec.by_token(
        old=inputs.old is not None, sampler=inputs.sampler is not None, importance_ratio=kind
    )
    if alone is None or spec.needs_batch:
        return None
    rows, vocabulary = logits.shape
    entropy = entropy or inputs.entropy_weights is not None
    results = torch.empty(6, rows, dtype=torch.float32, device=logits.device)
    flags = torch.empty(2, rows, dtype=torch.uint8, device=logits.device)
    threshold = spec.off_policy_mask_threshold
    block, warps = tile(vocabulary)
    if rows:
        with torch.cuda.device_of(logits):
            one_shot_kernel[(rows,)](
                logits,
                logits.stride(0),
                out,
                out.stride(0),
                tokens,
                inputs.advantages,
                inputs.weights,
                inputs.entropy_weights,
                inputs.old,
                inputs.ref if spec.beta > 0 else None,
                inputs.importance_ratio,
                results,
                flags,
                rows,
                vocabulary,
                transform.inner,
                transform.outer,
                CAPPED=transform.capped,
                ENTROPY=entropy,
                **constants(alone),
                DROP_NEGATIVE=threshold is not None and threshold < 0,
                SHARED=shares_memory(out, logits),
                BLOCK=block,
                num_warps=warps,
            )
    log_probs, entropies, losses, g, c, kl = results
    low, high = flags.view(torch.bool)
    d_entropy = None if inputs.entropy_weights is None else c
    gradients = TokenGradients(losses.sum(), g, d_entropy, kl if spec.beta > 0 else None, low, high)
    return RowStatistics(log_probs, entropies if entropy else None), gradients


FLOATS = "advantages weights entropy_weights old ref importance results"
TYPES = {
    **dict.fromkeys(FLOATS.split(), "*fp32"),
    **dict.fromkeys(("logits", "out"), "*bf16"),
    **dict.fromkeys(("stride", "out_stride", "vocabulary"), "i32:16"),
    "rows": "i32",
    **dict.fromkeys(("inner", "outer"), "fp32"),
    "tokens": "*i64",
    "flags": "*u8",
}
FULL = {
    **constants(LossSpec(delta=1.5, beta=0.04, use_bias_correction_kl=True)),
    "CAPPED": False,
    "ENTROPY": True,
    "DROP_NEGATIVE": False,
    "BLOCK": tile(152064).block,
}
BUILDS = tuple(
    Build(one_shot_kernel, TYPES, {**FULL, "SHARED": shared}, num_warps=tile(152064).warps, note=note)
    for shared, note in ((True, "bf16, in place"), (False, "bf16, to new memory"))
)
