"""Batches and options for tests of the losses, and the losses written out again, token by token in Python."""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from restrl.reference import LossSpec, grpo_loss

LOSSES = [
    (loss_type, level)
    for loss_type in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
    for level in ("token", "sequence")
    if (loss_type, level) != ("vespo", "sequence")
]
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")


def batch() -> tuple[Tensor, ...]:
    """Log-probs, old, reference, mask and advantages that the frozen numbers were made from."""
    i = torch.arange(20, dtype=torch.float64).reshape(4, 5)
    log_probs = -0.3 - 1.5 * torch.sin(1.7 * i + 0.3) ** 2
    old = log_probs + 0.9 * torch.sin(2.9 * i + 1.0)
    ref = log_probs + 0.6 * torch.cos(1.3 * i)
    mask = (torch.arange(5)[None] < torch.tensor([5, 3, 1, 0])[:, None]).double()
    advantages = torch.tensor([0.8, -1.1, 0.6, -0.3], dtype=torch.float64)
    return log_probs, old, ref, mask, advantages


def random_options(rng: random.Random, loss_type: str, level: str) -> dict[str, Any]:
    """Options of `LossSpec`, which are TRL's, drawn among those that go with the loss."""
    chosen: dict[str, Any] = {
        "loss_type": loss_type,
        "importance_sampling_level": level,
        "beta": rng.choice([0.0, 0.04, 0.7]),
        "use_bias_correction_kl": rng.random() < 0.5,
        "max_completion_length": 9,
        "entropy_coef": rng.choice([0.0, 0.05, -0.02]),
        "top_entropy_quantile": rng.choice([1.0, 1.0, 0.6, 0.25, 0.0]),
        "off_policy_mask_threshold": rng.choice([None, None, 0.1, -0.05]),
    }
    if loss_type in CLIPPED:
        chosen["epsilon"] = rng.choice([0.1, 0.2])
        chosen["epsilon_high"] = rng.choice([None, 0.28])
        chosen["delta"] = rng.choice([None, 1.6, 1.1])
    elif loss_type == "cispo":
        chosen["epsilon_high"] = rng.choice([1.2, 5.0])
    elif loss_type == "sapo":
        chosen |= {
            "sapo_temperature_neg": rng.choice([1.05, 2.0]),
            "sapo_temperature_pos": rng.choice([1.0, 3.0]),
        }
    else:
        chosen |= {"vespo_k_pos": rng.choice([2.0, 1.5]), "vespo_lambda_pos": rng.choice([3.0, 2.5])}
        chosen |= {"vespo_k_neg": rng.choice([3.0, 2.5]), "vespo_lambda_neg": rng.choice([2.0, 1.7])}
    return chosen


class Case(NamedTuple):
    """Arguments of the loss, `[B, T]` but for the advantages `[B]` and the ratio, `[B, T]` or `[B, 1]`."""

    log_probs: Tensor
    entropies: Tensor
    mask: Tensor
    advantages: Tensor
    old: Tensor | None
    ref: Tensor
    sampler: Tensor | None
    importance_ratio: Tensor | None

    def cast(self, dtype: torch.dtype) -> Case:
        return Case(*(None if x is None else x.to(dtype) for x in self))

    def keywords(self) -> dict[str, Any]:
        names = ("entropies", "old", "ref", "sampler", "importance_ratio")
        return {name: getattr(self, name) for name in names}


def random_case(seed: int, loss_type: str = "grpo", rows: int = 6, width: int = 7) -> Case:
    """Float64. Rows of no, one and all tokens, holes in the mask, advantages 0 and of both signs, ratios on
    both sides of every bound. Entropies are float32 numbers.
    """
    rng = np.random.default_rng(seed)
    lengths = np.array([0, 1, width, *rng.integers(1, width + 1, max(0, rows - 3))])[:rows]
    mask = (np.arange(width) < lengths[:, None]) & (rng.random((rows, width)) < 0.9)
    log_probs = -rng.exponential(1.0, (rows, width))
    old, ref, sampler = (log_probs + rng.normal(0, s, (rows, width)) for s in (0.4, 0.8, 0.4))
    sampler[rng.random(sampler.shape) < 0.1] = np.nan
    advantages = rng.normal(0, 1, rows)
    advantages[rng.integers(rows)] = 0.0
    entropies = rng.gamma(2.0, 0.5, (rows, width)).astype(np.float32)
    narrow = (rows, 1) if loss_type != "vespo" and rng.random() < 0.4 else (rows, width)
    ratio = np.exp(rng.normal(0, 0.3, narrow)) * (rng.random(narrow) < 0.8)
    ratio = np.where(mask | (narrow[1] != width), ratio, 1.0)[:, : narrow[1]]  # padding has ratio 1
    found = Case(
        *(
            torch.from_numpy(x).double()
            for x in (log_probs, entropies, mask, advantages, old, ref, sampler, ratio)
        )
    )
    return found._replace(
        old=found.old if rng.random() < 0.7 else None,
        sampler=found.sampler if rng.random() < 0.5 else None,
        importance_ratio=found.importance_ratio if rng.random() < 0.5 else None,
    )


def frozen_case(leave_out: list[str]) -> Case:
    """`batch` with entropies, a sampler and its ratios, but for what is left out."""
    log_probs, old, ref, mask, advantages = batch()
    i = torch.arange(20, dtype=torch.float64).reshape(4, 5)
    entropies = (0.4 + torch.sin(1.1 * i) ** 2).float().double()
    sampler, ratio = old + 0.3 * torch.sin(0.7 * i), torch.exp(0.3 * torch.cos(2.3 * i) * mask)
    case = Case(log_probs, entropies, mask, advantages, old, ref, sampler, ratio)
    return case._replace(**dict.fromkeys(leave_out))


def by_autograd(spec: LossSpec, case: Case, **more: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, dloss/dl and dloss/dH (0 where there is none) of `grpo_loss`."""
    log_probs, entropies = (x.clone().requires_grad_() for x in (case.log_probs, case.entropies))
    given = case.keywords() | {"entropies": entropies} | more
    loss = grpo_loss(log_probs, case.mask, case.advantages, spec, **given).loss
    grads = torch.autograd.grad(loss, (log_probs, entropies), allow_unused=True)
    return loss.detach(), *(torch.zeros_like(case.log_probs) if g is None else g for g in grads)


def written_out(spec: LossSpec, case: Case, log_probs: Any, entropies: Any, kept: Any = None) -> float:
    """The loss at `log_probs` and `entropies` (numpy), after the equations and apart from the code.

    What has no gradient in the loss (the factors of P, the detached ratios, l_old when it is not given) is
    taken at `case`, so that finite differences of this function are the gradient. kept: `[B, T]` bool, the
    entropy mask (None: all).
    """
    still = case.log_probs.numpy()
    mask = case.mask.numpy() > 0
    old = still if case.old is None else case.old.numpy()
    ref, sampler = case.ref.numpy(), (case.old if case.sampler is None else case.sampler)
    sampler = still if sampler is None else sampler.numpy()
    rho = None if case.importance_ratio is None else case.importance_ratio.expand(mask.shape).numpy()
    rows, width = mask.shape
    kept = np.ones_like(mask) if kept is None else kept
    bonus_tokens = max(1, int((mask & kept).sum()))
    total = 0.0
    for i in range(rows):
        a = float(case.advantages[i])
        live = [t for t in range(width) if mask[i, t]]
        n = max(1, len(live))
        keep_row = 1.0
        if spec.off_policy_mask_threshold is not None and a < 0:
            drift = [sampler[i, t] - still[i, t] for t in live]
            mean = sum(0.0 if math.isnan(x) else x for x in drift) / n
            keep_row = float(mean <= spec.off_policy_mask_threshold)
        for t in live:
            if spec.importance_sampling_level == "sequence":
                d = sum(log_probs[i, u] - old[i, u] for u in live) / n
                d_still = sum(still[i, u] - old[i, u] for u in live) / n
            else:
                d, d_still = log_probs[i, t] - old[i, t], still[i, t] - old[i, t]
            r = math.exp(d)
            if spec.loss_type in CLIPPED:
                high = 1 + (spec.epsilon if spec.epsilon_high is None else spec.epsilon_high)
                bound = math.inf if spec.delta is None else spec.delta
                p = -min(min(r, bound) * a, min(max(r, 1 - spec.epsilon), high) * a)
            elif spec.loss_type == "cispo":
                assert spec.epsilon_high is not None
                p = -min(math.exp(d_still), spec.epsilon_high) * a * log_probs[i, t]
            elif spec.loss_type == "sapo":
                tau = float(np.float32(spec.sapo_temperature_pos if a > 0 else spec.sapo_temperature_neg))
                p = -4 / tau / (1 + math.exp(-tau * (r - 1))) * a
            else:
                p = (
                    -vespo_phi(spec, a, [still[i, u] - old[i, u] for u in live], rho, i, live)
                    * a
                    * log_probs[i, t]
                )
            p *= keep_row * kept[i, t]
            if rho is not None and spec.loss_type != "vespo":
                p *= rho[i, t]
            if spec.beta:
                x = ref[i, t] - log_probs[i, t]
                p += spec.beta * (math.exp(x) - x - 1) * (r if spec.use_bias_correction_kl else 1.0)
            total += p * {
                "grpo": 1 / (rows * n),
                "sapo": 1 / (rows * n),
                "dr_grpo": 1 / (rows * (spec.max_completion_length or 1)),
                "luspo": 1 / rows,
            }.get(spec.loss_type, 1 / max(1, int(mask.sum())))
            if kept[i, t]:
                total -= spec.entropy_coef * entropies[i, t] / bonus_tokens
    return total


def vespo_phi(spec: LossSpec, a: float, differences: list[float], rho: Any, i: int, live: list[int]) -> float:
    log_w = sum(min(max(d, -20.0), 20.0) for d in differences)
    if rho is not None:
        log_w += sum(math.log(min(max(float(rho[i, t]), 1e-8), math.exp(20))) for t in live)
    log_w = min(max(log_w, math.log(1e-8)), 20.0)
    k, lam = (spec.vespo_k_neg, spec.vespo_lambda_neg) if a < 0 else (spec.vespo_k_pos, spec.vespo_lambda_pos)
    k, lam = (float(np.float32(x)) for x in (k, lam))  # as in TRL, whatever the type of the rest
    return math.exp(lam + k * log_w - lam * math.exp(log_w))
