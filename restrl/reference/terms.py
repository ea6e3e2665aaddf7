"""The loss by autograd, as the equations are written."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from restrl.errors import RestrlError
from restrl.reference.spec import CLIP_FAMILY, Level, LossSpec, check_choice
from restrl.reference.weights import Totals, entropy_mask, entropy_weights, loss_weights

EXPONENT_BOUND = 80.0  # exp is constant beyond it: ratios and their gradients stay finite in float32
VESPO_LOG_MIN, VESPO_LOG_MAX = math.log(1e-8), 20.0

SamplerMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
SAMPLER_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


class GrpoLoss(NamedTuple):
    """loss: scalar; the rest, detached: KL (plain k3) and where the ratio was clipped (bool), `[B, T]`."""

    loss: Tensor
    kl: Tensor | None
    clipped_low: Tensor
    clipped_high: Tensor


def grpo_loss(
    log_probs: Tensor,
    mask: Tensor,
    advantages: Tensor,
    spec: LossSpec,
    *,
    entropies: Tensor | None = None,
    old: Tensor | None = None,
    ref: Tensor | None = None,
    sampler: Tensor | None = None,
    importance_ratio: Tensor | None = None,
    entropy_mask: Tensor | None = None,
    totals: Totals | None = None,
) -> GrpoLoss:
    """The loss of `B` completions: sum of W m (P + beta K), less the entropy bonus.

    log_probs         `[B, T]` l; what stands at masked positions is never read, not even inf or NaN. This
                      holds for every `[B, T]` argument
    mask              `[B, T]` 1 for completion tokens, the end-of-sequence token included
    advantages        `[B]`
    entropies         `[B, T]` (nats), differentiable for entropy_coef; needed where `spec.needs_entropies`
    old               `[B, T]` l_old, None: stopgrad(l), so that the ratio is 1
    ref               `[B, T]` l_ref, needed when beta > 0
    sampler           `[B, T]` log-probs of the engine that sampled, for the off-policy mask (None: `old`;
                      NaN: unknown, counted as equal)
    importance_ratio  `[B, T]` or `[B, 1]` rho of `sampler_ratio`; multiplies P (vespo: part of its weight)
    entropy_mask      `[B, T]` bool, of the optimiser's batch; None: made from `entropies` if rho < 1
    totals            of the optimiser's batch; None: this is the whole batch

    Raises RestrlError for arguments that `spec` needs and that are None, for a `[B, 1]` ratio with vespo, and
    for other shapes of advantages and ratio.
    """
    entropy_mask = check_inputs(spec, mask, entropies, ref, importance_ratio, entropy_mask)
    check_advantages(advantages, mask)
    totals = totals or Totals.of(mask, entropy_mask)
    live = mask > 0
    log_probs = torch.where(live, wide(log_probs), 0.0)
    mask = mask.to(log_probs.dtype)
    a = advantages.to(log_probs.dtype)[:, None]

    log_ratio = log_ratios(log_probs, old, mask, spec.importance_sampling_level)
    if spec.loss_type in CLIP_FAMILY:
        policy = clip_term(log_ratio, a, spec)
    elif spec.loss_type == "cispo":
        policy = -bounded_exp(log_ratio).clamp(max=spec.clip_high).detach() * a * log_probs
    elif spec.loss_type == "sapo":
        policy = sapo_term(log_ratio, a, spec)
    else:
        policy = -vespo_weight(log_probs, old, mask, a, importance_ratio, spec) * a * log_probs
    factor = multiplier(log_probs, mask, a, spec, sampler, old, importance_ratio, entropy_mask)
    per_token = policy if factor is None else policy * factor

    kl = None
    if spec.beta > 0 and ref is not None:
        kl = kl_term(log_probs, ref, mask)
        correction = bounded_exp(log_ratio) if spec.use_bias_correction_kl else 1.0
        per_token = per_token + spec.beta * kl * correction
    loss = torch.where(live, loss_weights(mask, spec, totals) * per_token, 0.0).sum()
    if spec.entropy_coef != 0 and entropies is not None:
        bonus = entropy_weights(mask, spec, totals, entropy_mask) * torch.where(live, entropies, 0.0)
        loss = loss - bonus.sum()
    sides = clipped(bounded_exp(log_ratio.detach()), a, live, spec)
    return GrpoLoss(loss, None if kl is None else kl.detach(), *sides)


def wide(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def by_sign(condition: Tensor, yes: float, no: float, like: Tensor) -> Tensor:
    """One of two numbers, in torch's default precision even if `like` has more: so TRL rounds them."""
    return torch.where(condition, yes, no).to(like.dtype)


def bounded_exp(exponent: Tensor) -> Tensor:
    """exp(min(x, 80)): constant past the bound, so that 0 times its gradient is 0 and not NaN."""
    return exponent.clamp(max=EXPONENT_BOUND).exp()


def log_ratios(
    log_probs: Tensor, old: Tensor | None, mask: Tensor, level: Level, lengths: Tensor | None = None
) -> Tensor:
    """log r: token level l - l_old `[B, T]`; sequence level its mean over the row's tokens `[B, 1]`.

    `old` None stands for stopgrad(l): the ratio is 1, its gradient is not 0. Masked positions give 0.
    lengths: `[B]` n_i, None: the mask's.
    """
    if old is None:  # where p is 0 the difference would be NaN
        old = log_probs.detach().clamp(min=torch.finfo(log_probs.dtype).min)
        log_probs = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
    d = torch.where(mask > 0, log_probs - old, 0.0)
    if level == "token":
        return d
    n = mask.sum(1) if lengths is None else lengths
    return d.sum(1, keepdim=True) / n.clamp(min=1)[:, None]


def clip_term(log_ratio: Tensor, a: Tensor, spec: LossSpec) -> Tensor:
    """P = -min( min(r, delta) A, clip(r, 1 - eps_low, 1 + eps_high) A ), in the shape of `log_ratio`."""
    ratio = bounded_exp(log_ratio)
    clipped = ratio.clamp(spec.clip_low, spec.clip_high)
    if spec.delta is not None:
        ratio = ratio.clamp(max=spec.delta)
    return -torch.minimum(ratio * a, clipped * a)


def sapo_term(log_ratio: Tensor, a: Tensor, spec: LossSpec) -> Tensor:
    """P = -(4 / tau) sigmoid(tau (r - 1)) A, with the positive tau where A > 0."""
    tau = by_sign(a > 0, spec.sapo_temperature_pos, spec.sapo_temperature_neg, a)
    return -4 / tau * torch.sigmoid(tau * (bounded_exp(log_ratio) - 1)) * a


@torch.no_grad()
def vespo_weight(
    log_probs: Tensor, old: Tensor | None, mask: Tensor, a: Tensor, rho: Tensor | None, spec: LossSpec
) -> Tensor:
    """phi = exp(lambda + k log w - lambda w) `[B, 1]`, detached; w is the bounded product of a row's ratios
    and of its sampler ratios. k and lambda are the positive ones where A >= 0.
    """
    log_w = log_ratios(log_probs, old, mask, "token").clamp(-20, 20).sum(1, keepdim=True)
    if rho is not None:
        known = torch.where(mask > 0, rho, 1.0).log().clamp(VESPO_LOG_MIN, VESPO_LOG_MAX)
        log_w = log_w + known.sum(1, keepdim=True)
    log_w = log_w.clamp(VESPO_LOG_MIN, VESPO_LOG_MAX)
    k = by_sign(a >= 0, spec.vespo_k_pos, spec.vespo_k_neg, a)
    lam = by_sign(a >= 0, spec.vespo_lambda_pos, spec.vespo_lambda_neg, a)
    return (lam + k * log_w - lam * log_w.exp()).exp().nan_to_num(nan=0.0, posinf=0.0)


def kl_term(log_probs: Tensor, ref: Tensor, mask: Tensor) -> Tensor:
    """k3 estimate of KL(policy || reference) per token, exp(x) - x - 1 with x = l_ref - l; 0 where masked."""
    x = torch.where(mask > 0, ref - log_probs, 0.0).clamp(max=EXPONENT_BOUND)
    return x.expm1() - x


@torch.no_grad()
def off_policy_mask(
    log_probs: Tensor,
    sampler: Tensor,
    mask: Tensor,
    a: Tensor,
    threshold: float,
    lengths: Tensor | None = None,
) -> Tensor:
    """`[B, 1]` bool, the rows to keep: A >= 0, or mean of (l_sampler - l) <= threshold. NaN counts as 0."""
    drift = torch.where(mask > 0, (sampler - log_probs).nan_to_num(nan=0.0), 0.0)
    n = mask.sum(1) if lengths is None else lengths
    return (a >= 0) | (drift.sum(1, keepdim=True) / n.clamp(min=1)[:, None] <= threshold)


def multiplier(
    log_probs: Tensor,
    mask: Tensor,
    a: Tensor,
    spec: LossSpec,
    sampler: Tensor | None,
    old: Tensor | None,
    importance_ratio: Tensor | None,
    entropy_mask: Tensor | None,
    lengths: Tensor | None = None,
) -> Tensor | None:
    """Factors of P, never of the KL: off-policy mask, entropy mask, sampler ratio. `[B, T]` or `[B, 1]`,
    detached; None: there are none.
    """
    weighs = importance_ratio is not None and spec.loss_type != "vespo"
    if spec.off_policy_mask_threshold is None and entropy_mask is None and not weighs:
        return None
    factor = torch.ones_like(a)
    if spec.off_policy_mask_threshold is not None:
        base = log_probs.detach() if old is None else old
        base = base if sampler is None else sampler
        factor = factor * off_policy_mask(log_probs, base, mask, a, spec.off_policy_mask_threshold, lengths)
    if entropy_mask is not None:
        factor = factor * entropy_mask
    if importance_ratio is not None and weighs:
        factor = factor * torch.where(mask > 0, importance_ratio.detach(), 1.0).to(a.dtype)
    return factor


@torch.no_grad()
def sampler_ratio(
    old: Tensor,
    sampler: Tensor,
    mask: Tensor,
    mode: SamplerMode,
    cap: float | None = 3.0,
    floor: float | None = None,
) -> Tensor:
    """rho = exp(l_old - l_sampler), bounded: corrects for a sampler that is not quite the trainer's policy.

    old, sampler  `[B, T]`; NaN in `sampler` (unknown) counts as equal. Masked positions count as equal
    mode          "token_*": rho of each token `[B, T]`; "sequence_*": of the row, the product over its tokens
                  `[B, 1]`. "*_truncate" clamps to [floor, cap], "*_mask" sets what is outside to 0
    cap, floor    None: no bound

    Raises RestrlError for a floor that is not below the cap, and for a truncate mode without bounds.
    """
    check_choice("vllm_importance_sampling_mode", mode, SAMPLER_MODES)
    if cap is not None and floor is not None and floor >= cap:
        raise RestrlError(
            f"vllm_importance_sampling_clip_min {floor} is not below vllm_importance_sampling_clip_max {cap}"
        )
    difference = torch.where(mask > 0, (old - sampler).nan_to_num(nan=0.0), 0.0)
    if mode.startswith("sequence"):
        difference = difference.sum(1, keepdim=True)
    ratio = bounded_exp(difference)
    if mode.endswith("truncate"):
        if cap is None and floor is None:
            raise RestrlError(
                f"vllm_importance_sampling_mode {mode!r} needs vllm_importance_sampling_clip_max or _clip_min"
            )
        return ratio.clamp(floor, cap)
    outside = (ratio < (-math.inf if floor is None else floor)) | (ratio > (math.inf if cap is None else cap))
    return ratio.masked_fill(outside, 0.0)


def clipped(ratio: Tensor, a: Tensor, live: Tensor, spec: LossSpec) -> tuple[Tensor, Tensor]:
    """Where the ratio is past a bound that A pulls it over, below and above: `[B, T]` bool. Never for sapo
    and vespo, which have no bounds; never below for cispo.
    """
    none = torch.zeros_like(live)
    if spec.loss_type in ("sapo", "vespo"):
        return none, none
    high = (ratio > spec.clip_high) & (a > 0) & live
    if spec.loss_type == "cispo":
        return none, high
    return (ratio < spec.clip_low) & (a < 0) & live, high


def check_inputs(
    spec: LossSpec,
    mask: Tensor,
    entropies: Tensor | None,
    ref: Tensor | None,
    importance_ratio: Tensor | None,
    mask_of_entropies: Tensor | None,
) -> Tensor | None:
    """The entropy mask. Raises RestrlError for what `spec` needs and is not there."""
    if spec.beta > 0 and ref is None:
        raise RestrlError(f"beta {spec.beta} needs the reference policy's log-probs, and ref is None")
    if spec.entropy_coef != 0 and entropies is None:
        raise RestrlError(f"entropy_coef {spec.entropy_coef} needs entropies, which is None")
    if spec.loss_type == "vespo" and importance_ratio is not None and importance_ratio.shape != mask.shape:
        raise RestrlError(
            "loss_type 'vespo' multiplies the sampler ratios of a row's tokens; vllm_importance_sampling_mode"
            " 'sequence_*' gives one per row; use 'token_truncate' or 'token_mask'"
        )
    if importance_ratio is not None and importance_ratio.shape not in (mask.shape, (mask.shape[0], 1)):
        raise RestrlError(
            f"importance_ratio has shape {tuple(importance_ratio.shape)}; it is one number per token, "
            f"{tuple(mask.shape)}, or per row, {(mask.shape[0], 1)}"
        )
    if not spec.needs_batch or mask_of_entropies is not None:
        return mask_of_entropies
    if entropies is None:
        raise RestrlError(f"top_entropy_quantile {spec.top_entropy_quantile} needs entropies, which is None")
    return entropy_mask(entropies, mask, spec.top_entropy_quantile)


def check_advantages(advantages: Tensor, mask: Tensor) -> None:
    """Raises RestrlError unless there is one advantage per row."""
    if advantages.shape != mask.shape[:1]:
        raise RestrlError(
            f"advantages have shape {tuple(advantages.shape)}; there is one per row: {tuple(mask.shape[:1])}"
        )
