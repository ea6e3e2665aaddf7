"""The loss of the GRPO family and its derivatives by log-probs and entropies
(restrl.reference.derivatives is the definition; docs/losses.md has the equations).

Two kernels: `token_kernel` for losses in which every token stands alone, over flat tokens, and
`sequence_kernel` for those that first need sums over a completion (sequence ratio, VESPO's weight, the
off-policy mask), one program a completion. Both write every token's gradient once and a partial loss per
program; these are summed outside in a fixed order. What stands at masked positions is never loaded.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from restrl.kernels.build import Build
from restrl.kernels.terms import at_most, constants, finish_tokens, read, token_terms
from restrl.reference.derivatives import TokenGradients
from restrl.reference.spec import LossSpec
from restrl.reference.terms import VESPO_LOG_MAX, VESPO_LOG_MIN, check_advantages, check_inputs

BLOCK = 512  # tokens a program takes at a time
LOG_MIN = tl.constexpr(VESPO_LOG_MIN)
LOG_MAX = tl.constexpr(VESPO_LOG_MAX)


@triton.jit
def token_kernel(
    log_probs,
    old,
    ref,
    importance,
    entropies,
    mask,
    entropy_mask,
    weights,
    entropy_weights,
    advantages,
    losses,
    d_log_prob,
    d_entropy,
    kls,
    lows,
    highs,
    tokens,
    width,
    KIND: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    DELTA: tl.constexpr,
    TAU_POS: tl.constexpr,
    TAU_NEG: tl.constexpr,
    BETA: tl.constexpr,
    CORRECTED: tl.constexpr,
    DROP_NEGATIVE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`tokens` = B * `width` tokens, each for itself. DROP_NEGATIVE: tokens with A < 0 lose their policy
    term (an off-policy threshold below 0, which is the drift where nothing is known of another policy).
    """
    program = tl.program_id(0).to(tl.int64)
    at = program * BLOCK + tl.arange(0, BLOCK)
    inside = at < tokens
    live = tl.load(mask + at, mask=inside, other=0) > 0
    a = tl.load(advantages + at // width, mask=live, other=0.0)
    weight = tl.load(weights + at, mask=live, other=0.0)
    log_prob = tl.load(log_probs + at, mask=live, other=0.0)
    log_ratio = tl.zeros([BLOCK], tl.float32)
    if old is not None:
        log_ratio = log_prob - tl.load(old + at, mask=live, other=0.0)
    factor = read(importance, at, live, 1.0)
    if entropy_mask is not None:
        factor = tl.where(tl.load(entropy_mask + at, mask=live, other=0) > 0, factor, 0.0)
    if DROP_NEGATIVE:
        factor = tl.where(a < 0, 0.0, factor)
    value, by_ratio, by_log_prob, kl, low, high = token_terms(
        log_prob,
        log_ratio,
        read(ref, at, live, 0.0),
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
    gradient = weight * by_log_prob + weight * by_ratio
    loss = finish_tokens(
        at,
        live,
        inside,
        value,
        gradient,
        kl,
        low,
        high,
        weight,
        entropies,
        entropy_weights,
        d_log_prob,
        d_entropy,
        kls,
        lows,
        highs,
    )
    tl.store(losses + program, tl.sum(loss, 0))


@triton.jit
def sequence_kernel(
    log_probs,
    old,
    sampler,
    ref,
    importance,
    entropies,
    mask,
    entropy_mask,
    weights,
    entropy_weights,
    advantages,
    lengths,
    losses,
    d_log_prob,
    d_entropy,
    kls,
    lows,
    highs,
    width,
    K_POS: tl.constexpr,
    LAMBDA_POS: tl.constexpr,
    K_NEG: tl.constexpr,
    LAMBDA_NEG: tl.constexpr,
    KIND: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    DELTA: tl.constexpr,
    TAU_POS: tl.constexpr,
    TAU_NEG: tl.constexpr,
    BETA: tl.constexpr,
    CORRECTED: tl.constexpr,
    SEQUENCE: tl.constexpr,
    THRESHOLD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One completion of `width` positions: the sums of its row, then its tokens, BLOCK at a time.

    SEQUENCE  the ratio is the row's, and its gradient is the row's sum spread over the n tokens
    THRESHOLD of the off-policy mask, None: there is none
    """
    row = tl.program_id(0).to(tl.int64)
    begin = row * width
    lanes = tl.arange(0, BLOCK)
    a = tl.load(advantages + row)
    n = tl.maximum(tl.load(lengths + row).to(tl.float32), 1.0)

    logs = tl.zeros([BLOCK], tl.float32)
    bounded_logs = tl.zeros([BLOCK], tl.float32)
    drifts = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        at = begin + start + lanes
        live = tl.load(mask + at, mask=start + lanes < width, other=0) > 0
        log_prob = tl.load(log_probs + at, mask=live, other=0.0)
        if old is not None:
            d = log_prob - tl.load(old + at, mask=live, other=0.0)
            logs += d
            if KIND == "vespo":
                bounded_logs += at_most(tl.where(d < -20.0, -20.0, d), 20.0)
        if KIND == "vespo" and importance is not None:
            rho = tl.log(tl.load(importance + at, mask=live, other=1.0))
            bounded_logs += at_most(tl.where(rho < LOG_MIN, LOG_MIN, rho), LOG_MAX)
        if THRESHOLD is not None:
            if sampler is not None:
                drift = tl.load(sampler + at, mask=live, other=0.0) - log_prob
                drifts += tl.where(drift == drift, drift, 0.0)
            elif old is not None:
                drift = tl.load(old + at, mask=live, other=0.0) - log_prob
                drifts += tl.where(drift == drift, drift, 0.0)
    row_log_ratio = tl.sum(logs, 0) / n
    keep = 1.0
    if THRESHOLD is not None:
        keep = tl.where((a >= 0) | (tl.sum(drifts, 0) / n <= THRESHOLD), 1.0, 0.0)
    phi = 1.0
    if KIND == "vespo":
        log_w = tl.sum(bounded_logs, 0)
        log_w = at_most(tl.where(log_w < LOG_MIN, LOG_MIN, log_w), LOG_MAX)
        k = tl.where(a >= 0, K_POS, K_NEG)
        lam = tl.where(a >= 0, LAMBDA_POS, LAMBDA_NEG)
        phi = tl.exp(lam + k * log_w - lam * tl.exp(log_w))
        phi = tl.where(phi < float("inf"), phi, 0.0)

    # Pass 0 sums the row's derivative by its log-ratio, pass 1 writes. Without SEQUENCE there is only pass 1.
    through_row = 0.0
    loss = tl.zeros([BLOCK], tl.float32)
    a_lanes = tl.zeros([BLOCK], tl.float32) + a  # the interpreter has no comparison of both kinds in one mask
    for step in tl.static_range(0 if SEQUENCE else 1, 2):
        through = tl.zeros([BLOCK], tl.float32)
        for start in range(0, width, BLOCK):
            at = begin + start + lanes
            inside = start + lanes < width
            live = tl.load(mask + at, mask=inside, other=0) > 0
            log_prob = tl.load(log_probs + at, mask=live, other=0.0)
            weight = tl.load(weights + at, mask=live, other=0.0)
            log_ratio = tl.zeros([BLOCK], tl.float32)
            if SEQUENCE:
                log_ratio += row_log_ratio
            elif old is not None:
                log_ratio += log_prob - tl.load(old + at, mask=live, other=0.0)
            factor = tl.zeros([BLOCK], tl.float32) + keep
            if KIND != "vespo":
                factor *= read(importance, at, live, 1.0)
            if entropy_mask is not None:
                factor = tl.where(tl.load(entropy_mask + at, mask=live, other=0) > 0, factor, 0.0)
            value, by_ratio, by_log_prob, kl, low, high = token_terms(
                log_prob,
                log_ratio,
                read(ref, at, live, 0.0),
                factor,
                a_lanes,
                phi,
                KIND,
                LOW,
                HIGH,
                DELTA,
                TAU_POS,
                TAU_NEG,
                BETA,
                CORRECTED,
            )
            if step == 0:
                through += tl.where(live, weight * by_ratio, 0.0)
            else:
                moved = weight * by_ratio
                if SEQUENCE:
                    moved = tl.zeros([BLOCK], tl.float32) + through_row
                loss += finish_tokens(
                    at,
                    live,
                    inside,
                    value,
                    weight * by_log_prob + moved,
                    kl,
                    low,
                    high,
                    weight,
                    entropies,
                    entropy_weights,
                    d_log_prob,
                    d_entropy,
                    kls,
                    lows,
                    highs,
                )
        through_row = tl.sum(through, 0) / n
    tl.store(losses + row, tl.sum(loss, 0))


def token_gradients(
    log_probs: Tensor,
    entropies: Tensor | None,
    mask: Tensor,
    advantages: Tensor,
    weights: Tensor,
    entropy_weights: Tensor | None,
    lengths: Tensor,
    spec: LossSpec,
    *,
    old: Tensor | None = None,
    ref: Tensor | None = None,
    sampler: Tensor | None = None,
    importance_ratio: Tensor | None = None,
    entropy_mask: Tensor | None = None,
) -> TokenGradients:
    """`restrl.reference.token_gradients` in float32: the same arguments, the same results, one launch."""
    check_inputs(spec, mask, entropies, ref, importance_ratio, entropy_mask)
    check_advantages(advantages, mask)
    shape, (rows, width), device = mask.shape, mask.shape, mask.device

    def filled(tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return None if tensor is None else tensor.to(dtype).expand(shape).contiguous()

    def flags(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else (tensor > 0).expand(shape).contiguous().view(torch.uint8)

    kind = None
    if importance_ratio is not None:
        kind = "token" if importance_ratio.shape == shape else "sequence"
    alone = spec.by_token(old=old is not None, sampler=sampler is not None, importance_ratio=kind)
    blocks = rows if alone is None else triton.cdiv(rows * width, BLOCK)
    if entropies is None:
        entropy_weights = None
    losses = torch.empty(blocks, dtype=torch.float32, device=device)
    d_log_prob = torch.empty(shape, dtype=torch.float32, device=device)
    d_entropy = None if entropy_weights is None else torch.empty_like(d_log_prob)
    kls = torch.empty_like(d_log_prob) if spec.beta > 0 else None
    clipped = torch.empty((2, *shape), dtype=torch.uint8, device=device)
    shared = {
        "log_probs": filled(log_probs),
        "old": filled(old),
        "ref": filled(ref) if spec.beta > 0 else None,
        "importance": filled(importance_ratio),
        "entropies": filled(entropies) if d_entropy is not None else None,
        "mask": flags(mask),
        "entropy_mask": flags(entropy_mask),
        "weights": filled(weights),
        "entropy_weights": filled(entropy_weights),
        "advantages": advantages.float().contiguous(),
        "losses": losses,
        "d_log_prob": d_log_prob,
        "d_entropy": d_entropy,
        "kls": kls,
        "lows": clipped[0],
        "highs": clipped[1],
        "width": width,
        "BLOCK": BLOCK,
    }
    threshold = spec.off_policy_mask_threshold
    with torch.cuda.device_of(mask):
        if blocks and alone is not None:
            token_kernel[(blocks,)](
                **shared,
                **constants(alone),
                tokens=rows * width,
                DROP_NEGATIVE=threshold is not None and threshold < 0,
            )
        elif blocks:
            sequence_kernel[(blocks,)](
                **shared,
                **constants(spec),
                sampler=filled(sampler),
                lengths=lengths.contiguous(),
                K_POS=spec.vespo_k_pos,
                LAMBDA_POS=spec.vespo_lambda_pos,
                K_NEG=spec.vespo_k_neg,
                LAMBDA_NEG=spec.vespo_lambda_neg,
                SEQUENCE=spec.importance_sampling_level == "sequence",
                THRESHOLD=threshold,
            )
    low, high = clipped.view(torch.bool)
    return TokenGradients(losses.sum(), d_log_prob, d_entropy, kls, low, high)


FLOATS = "old ref entropies weights entropy_weights advantages losses d_log_prob d_entropy kls log_probs"
TYPES = {
    **dict.fromkeys(FLOATS.split(), "*fp32"),
    **dict.fromkeys(("mask", "entropy_mask", "lows", "highs"), "*u8"),
    "width": "i32",
}
FULL = LossSpec(loss_type="dapo", delta=1.5, beta=0.04, use_bias_correction_kl=True)
OPTIONAL = ("old", "ref", "entropies", "entropy_weights", "d_entropy", "kls", "entropy_mask")
BARE = {name: kind for name, kind in TYPES.items() if name not in OPTIONAL}
POWERS = {"K_POS": 2.0, "LAMBDA_POS": 3.0, "K_NEG": 3.0, "LAMBDA_NEG": 2.0}
BUILDS = (
    Build(
        token_kernel,
        {**BARE, "tokens": "i32"},
        {
            **constants(LossSpec()),
            **dict.fromkeys((*OPTIONAL, "importance")),
            "DROP_NEGATIVE": False,
            "BLOCK": BLOCK,
        },
        note="clip alone",
    ),
    Build(
        token_kernel,
        {**TYPES, "importance": "*fp32", "tokens": "i32"},
        {**constants(FULL), "DROP_NEGATIVE": True, "BLOCK": BLOCK},
        note="clip, KL, entropy",
    ),
    Build(
        sequence_kernel,
        {**TYPES, "importance": "*fp32", "sampler": "*fp32", "lengths": "*fp32"},
        {
            **constants(FULL),
            **POWERS,
            "SEQUENCE": True,
            "THRESHOLD": 0.1,
            "BLOCK": BLOCK,
        },
        note="clip, KL, entropy",
    ),
    Build(
        sequence_kernel,
        {**BARE, "importance": "*fp32", "lengths": "*fp32"},
        {
            **constants(LossSpec(loss_type="vespo")),
            **POWERS,
            **dict.fromkeys((*OPTIONAL, "sampler")),
            "SEQUENCE": False,
            "THRESHOLD": None,
            "BLOCK": BLOCK,
        },
        note="vespo",
    ),
)
