"""The loss of a token and its derivatives, inside kernels: what loss.py and one_shot.py share.

The equations are those of restrl.reference.derivatives (docs/losses.md), in float32. Options of the loss are
compile-time constants, because they do not change during a run:

    KIND      "clip" (grpo, bnpo, dr_grpo, dapo, luspo), "cispo", "sapo" or "vespo"
    LOW, HIGH bounds of the ratio; DELTA the two-sided clip's (None: none)
    TAU_POS   sapo's temperature where A > 0; TAU_NEG elsewhere
    BETA      weight of the KL; CORRECTED: it is multiplied by the ratio
"""

import triton
import triton.language as tl

from restrl.kernels.numerics import exp_above_line, expm1
from restrl.reference.spec import CLIP_FAMILY, LossSpec
from restrl.reference.terms import EXPONENT_BOUND

BOUND = tl.constexpr(EXPONENT_BOUND)


@triton.jit
def at_most(x, bound):
    """min(x, bound) that passes NaN on."""
    return tl.where(x > bound, bound, x)


@triton.jit
def within(x, low, high):
    return at_most(tl.where(x < low, low, x), high)


@triton.jit
def policy_term(
    log_prob,
    log_ratio,
    a,
    phi,
    KIND: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    DELTA: tl.constexpr,
    TAU_POS: tl.constexpr,
    TAU_NEG: tl.constexpr,
):
    """P, dP/dlog r, the part of dP/dl that does not go through r, and r."""
    ratio = tl.exp(at_most(log_ratio, BOUND))
    moving = log_ratio <= BOUND
    by_ratio = tl.zeros_like(ratio)
    by_log_prob = tl.zeros_like(ratio)
    if KIND == "clip":
        upper = ratio
        alive = tl.zeros_like(ratio) + 1.0
        if DELTA is not None:
            upper = at_most(ratio, DELTA)
            alive = tl.where(ratio <= DELTA, 1.0, 0.0)
        plain = upper * a
        held = within(ratio, LOW, HIGH) * a
        held_alive = tl.where((ratio >= LOW) & (ratio <= HIGH), 1.0, 0.0)
        share = tl.where(plain < held, alive, tl.where(plain > held, held_alive, (alive + held_alive) * 0.5))
        policy = -tl.where(plain < held, plain, held)
        by_ratio = tl.where(moving, -ratio * a * share, 0.0)
    elif KIND == "sapo":
        tau = tl.where(a > 0, TAU_POS, TAU_NEG)
        gate = tau * (ratio - 1.0)
        s = 1.0 / (1.0 + tl.exp(-gate))
        rest = 1.0 / (1.0 + tl.exp(gate))
        policy = -4.0 / tau * s * a
        by_ratio = tl.where(moving, -4.0 * s * rest * ratio * a, 0.0)
    else:
        weight = at_most(ratio, HIGH) if KIND == "cispo" else phi
        policy = -weight * a * log_prob
        by_log_prob = -weight * a
    return policy, by_ratio, by_log_prob, ratio


@triton.jit
def token_terms(
    log_prob,
    log_ratio,
    ref,
    factor,
    a,
    phi,
    KIND: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    DELTA: tl.constexpr,
    TAU_POS: tl.constexpr,
    TAU_NEG: tl.constexpr,
    BETA: tl.constexpr,
    CORRECTED: tl.constexpr,
):
    """f = factor P + beta K, df/dlog r, df/dl beside r, K, and whether r is past its bounds."""
    policy, by_ratio, by_log_prob, ratio = policy_term(
        log_prob, log_ratio, a, phi, KIND, LOW, HIGH, DELTA, TAU_POS, TAU_NEG
    )
    value = factor * policy
    by_ratio = factor * by_ratio
    by_log_prob = factor * by_log_prob
    kl = tl.zeros_like(log_prob)
    if BETA > 0:
        x = ref - log_prob
        held = at_most(x, BOUND)
        kl = exp_above_line(held)
        by_kl = tl.where(x <= BOUND, -expm1(held), 0.0)
        if CORRECTED:
            by_ratio += BETA * tl.where(log_ratio <= BOUND, kl * ratio, 0.0)
            value += BETA * kl * ratio
            by_log_prob += BETA * by_kl * ratio
        else:
            value += BETA * kl
            by_log_prob += BETA * by_kl
    return value, by_ratio, by_log_prob, kl, (a < 0) & (ratio < LOW), (a > 0) & (ratio > HIGH)


@triton.jit
def read(pointer, at, live, default):
    """Values where `live`, elsewhere (and without a pointer) the default."""
    values = tl.zeros_like(at).to(tl.float32) + default
    if pointer is not None:
        values = tl.load(pointer + at, mask=live, other=default)
    return values


@triton.jit
def finish_tokens(
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
):
    """Writes what is known of the tokens; the loss they contribute."""
    loss = tl.where(live, weight * value, 0.0)
    tl.store(d_log_prob + at, tl.where(live, gradient, 0.0), mask=inside)
    tl.store(lows + at, (low & live).to(tl.int8), mask=inside)
    tl.store(highs + at, (high & live).to(tl.int8), mask=inside)
    if entropy_weights is not None:
        c = -tl.load(entropy_weights + at, mask=live, other=0.0)
        tl.store(d_entropy + at, c, mask=inside)
        loss += c * tl.load(entropies + at, mask=live, other=0.0)
    if kls is not None:
        tl.store(kls + at, tl.where(live, kl, 0.0), mask=inside)
    return loss


def constants(spec: LossSpec) -> dict[str, object]:
    """The compile-time constants that `spec` stands for."""
    bounded = spec.loss_type in (*CLIP_FAMILY, "cispo")
    return {
        "KIND": "clip" if spec.loss_type in CLIP_FAMILY else spec.loss_type,
        "LOW": spec.clip_low if spec.loss_type in CLIP_FAMILY else -1.0,  # a ratio is never below
        "HIGH": spec.clip_high if bounded else float("inf"),
        "DELTA": spec.delta,
        "TAU_POS": spec.sapo_temperature_pos,
        "TAU_NEG": spec.sapo_temperature_neg,
        "BETA": spec.beta,
        "CORRECTED": spec.use_bias_correction_kl,
    }
