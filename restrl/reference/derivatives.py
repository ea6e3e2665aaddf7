"""The loss and its derivatives by log-probs and entropies in closed form: what every fast path computes.

g = dloss/dl and c = dloss/dH are all that a fused kernel needs: the logits' gradient of a row is then
g/temperature (onehot(y) - p) - c/temperature p (log p + H).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from restrl.reference.spec import CLIP_FAMILY, LossSpec
from restrl.reference.terms import (
    EXPONENT_BOUND,
    bounded_exp,
    by_sign,
    check_advantages,
    check_inputs,
    clipped,
    log_ratios,
    multiplier,
    vespo_weight,
    wide,
)
from restrl.reference.weights import entropy_mask, entropy_weights, loss_weights

__all__ = ["TokenGradients", "entropy_mask", "entropy_weights", "loss_weights", "token_gradients"]


class TokenGradients(NamedTuple):
    """loss: scalar, the sum over the tokens given; the rest `[B, T]`: g = dloss/dl, c = dloss/dH (None: the
    loss does not depend on H), the plain KL (None: beta is 0), where the ratio was clipped (bool).
    """

    loss: Tensor
    d_log_prob: Tensor
    d_entropy: Tensor | None
    kl: Tensor | None
    clipped_low: Tensor
    clipped_high: Tensor


@torch.no_grad()
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
    """`grpo_loss` and its derivatives, without autograd.

    log_probs, entropies  `[B, T]` l, H (entropies may be None if entropy_weights is)
    mask                  `[B, T]`; what stands at masked positions is never read
    advantages            `[B]`
    weights               `[B, T]`, or what broadcasts: W of `loss_weights`, masked or not
    entropy_weights       `[B, T]` of `entropy_weights`, None: no entropy bonus
    lengths               `[B]` n_i: the unmasked tokens of the row (0 counts as 1)
    old ... entropy_mask  as in `grpo_loss`; the entropy mask must be given where spec.needs_batch

    Sums run over T alone, so a loss of tokens (`spec.by_token`) may come in any slices `[C, 1]`, with the A,
    W and n_i of the row that each token belongs to.
    """
    check_inputs(spec, mask, entropies, ref, importance_ratio, entropy_mask)
    check_advantages(advantages, mask)
    live = mask > 0
    log_probs = torch.where(live, wide(log_probs), 0.0)
    a = advantages.to(log_probs.dtype)[:, None]
    n = lengths.clamp(min=1)[:, None]
    sequence = spec.importance_sampling_level == "sequence"

    log_ratio = log_ratios(log_probs, old, mask, spec.importance_sampling_level, lengths)
    ratio, bounded = bounded_exp(log_ratio), log_ratio <= EXPONENT_BOUND
    per_token, by_ratio, by_log_prob = _policy(
        log_probs, ratio, bounded, a, mask, spec, old, importance_ratio
    )
    factor = multiplier(log_probs, mask, a, spec, sampler, old, importance_ratio, entropy_mask, lengths)
    if factor is not None:
        per_token, by_ratio, by_log_prob = factor * per_token, factor * by_ratio, factor * by_log_prob
    kl = None
    if spec.beta > 0 and ref is not None:
        x = torch.where(live, ref - log_probs, 0.0)
        inside, x = x <= EXPONENT_BOUND, x.clamp(max=EXPONENT_BOUND)
        grown = x.expm1()
        kl = grown - x
        term, by_kl = kl, torch.where(inside, -grown, 0.0)
        if spec.use_bias_correction_kl:
            term, by_kl = kl * ratio, by_kl * ratio
            by_ratio = by_ratio + spec.beta * torch.where(bounded, term, 0.0)
        per_token = per_token + spec.beta * term
        by_log_prob = by_log_prob + spec.beta * by_kl

    zero = torch.zeros_like(log_probs)
    through = torch.where(live, weights * by_ratio, zero)
    if sequence:
        through = torch.where(live, through.sum(1, keepdim=True) / n, zero)
    d_log_prob = torch.where(live, weights * by_log_prob, zero) + through
    loss = torch.where(live, weights * per_token, zero).sum()
    d_entropy = None
    if entropy_weights is not None and entropies is not None:
        d_entropy = torch.where(live, -entropy_weights, zero)
        loss = loss + (d_entropy * torch.where(live, entropies, zero)).sum()
    return TokenGradients(loss, d_log_prob, d_entropy, kl, *clipped(ratio, a, live, spec))


def _policy(
    log_probs: Tensor,
    ratio: Tensor,
    bounded: Tensor,
    a: Tensor,
    mask: Tensor,
    spec: LossSpec,
    old: Tensor | None,
    importance_ratio: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """P, dP/dlog r and the part of dP/dl that does not go through r. `bounded`: the ratio still grows."""
    nothing = torch.zeros_like(a)
    if spec.loss_type in CLIP_FAMILY:
        return *_clip(ratio, bounded, a, spec), nothing
    if spec.loss_type == "sapo":
        tau = by_sign(a > 0, spec.sapo_temperature_pos, spec.sapo_temperature_neg, a)
        gate = tau * (ratio - 1)
        s, not_s = gate.sigmoid(), (-gate).sigmoid()
        return -4 / tau * s * a, torch.where(bounded, -4 * s * not_s * ratio * a, 0.0), nothing
    if spec.loss_type == "cispo":
        held = ratio.clamp(max=spec.clip_high)
    else:
        held = vespo_weight(log_probs, old, mask, a, importance_ratio, spec)
    return -held * a * log_probs, nothing, -held * a


def _clip(ratio: Tensor, bounded: Tensor, a: Tensor, spec: LossSpec) -> tuple[Tensor, Tensor]:
    """P of the clip family, and dP/dlog r: that of the smaller side, of a tie the mean of both. Without delta
    the held side is only ever the smaller one where it does not move.
    """
    held = ratio.clamp(spec.clip_low, spec.clip_high) * a
    if spec.delta is None:
        plain = ratio * a
        return -torch.minimum(plain, held), torch.where(bounded & (plain <= held), -plain, 0.0)
    plain = ratio.clamp(max=spec.delta) * a
    plain_alive = (ratio <= spec.delta).to(ratio.dtype)
    held_alive = ((ratio >= spec.clip_low) & (ratio <= spec.clip_high)).to(ratio.dtype)
    tie = (plain_alive + held_alive) / 2
    alive = torch.where(plain < held, plain_alive, torch.where(plain > held, held_alive, tie))
    return -torch.minimum(plain, held), torch.where(bounded, -ratio * a * alive, 0.0)
