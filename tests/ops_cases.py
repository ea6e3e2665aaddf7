"""Batches for tests of restrl.ops, and the same losses from full logits by autograd."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from reference_cases import random_case
from torch import Tensor

from restrl.reference import GrpoLoss, LossSpec, log_probs_from_logits
from restrl.reference import grpo_loss as loss_of_terms


@dataclass(frozen=True)
class Model:
    """`[B, T]` tokens, hidden states and a head; logits: cap((h W^T + b) * logit_scale) / temperature."""

    hidden: Tensor
    lm_head: Tensor
    bias: Tensor | None
    tokens: Tensor
    mask: Tensor
    logit_scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    vocab_size: int | None = None

    def head(self) -> dict[str, Any]:
        """Keyword arguments of the operations."""
        names = ("bias", "logit_scale", "softcap", "temperature", "vocab_size")
        return {name: getattr(self, name) for name in names}

    def inputs(self) -> list[Tensor]:
        """What has gradients."""
        return [x for x in (self.hidden, self.lm_head, self.bias) if x is not None]

    def to(self, dtype: torch.dtype) -> Model:
        """Rounded to `dtype`, with gradients to be taken."""
        cast = [None if x is None else x.detach().to(dtype).clone().requires_grad_()
                for x in (self.hidden, self.lm_head, self.bias)]  # fmt: skip
        return replace(self, hidden=cast[0], lm_head=cast[1], bias=cast[2])

    def logits(self) -> Tensor:
        """`[B, T, V]` before the scale, the cap and the temperature."""
        z = self.hidden @ self.lm_head.T
        return z if self.bias is None else z + self.bias


def random_model(
    seed: int,
    rows: int = 6,
    width: int = 7,
    hidden: int = 12,
    vocabulary: int = 37,
    spread: float = 2.0,
    **more: Any,
) -> Model:
    """Float64."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    size = more.get("vocab_size") or vocabulary
    return Model(
        normal(rows, width, hidden),
        normal(vocabulary, hidden) * spread / hidden**0.5,
        normal(vocabulary) if more.pop("bias", False) else None,
        torch.randint(0, size, (rows, width), generator=rng),
        (torch.rand(rows, width, generator=rng) < 0.8).double(),
        **more,
    ).to(torch.float64)


def shaped(model: Model, logits: Tensor) -> Tensor:
    """z of raw logits."""
    z = logits * model.logit_scale
    if model.softcap is not None:
        z = model.softcap * torch.tanh(z / model.softcap)
    return z[..., : model.vocab_size] / model.temperature


def oracle_log_probs(model: Model, logits: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`[B, T]` log-probs and entropies by autograd, from float64 logits (None: the model's). Masked positions
    are left out.
    """
    live = model.mask > 0
    z = shaped(model, model.logits() if logits is None else logits)[live].double()
    found = log_probs_from_logits(z, model.tokens[live], entropy_gradient=True)
    zero = torch.zeros(model.tokens.shape, dtype=torch.float64)
    return zero.index_put((live,), found.log_probs), zero.index_put((live,), found.entropies)


def oracle_loss(
    model: Model, spec: LossSpec, advantages: Tensor, logits: Tensor | None = None, **given: Any
) -> GrpoLoss:
    """`restrl.reference.grpo_loss` of full logits."""
    log_probs, entropies = oracle_log_probs(model, logits)
    return loss_of_terms(
        log_probs, model.mask.double(), advantages.double(), spec, entropies=entropies, **given
    )


def others(model: Model, seed: int, spec: LossSpec) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Advantages `[B]`, and log-probs of other policies at some distance from the model's (or None)."""
    rows, width = model.tokens.shape
    case = random_case(seed, spec.loss_type, rows, width)
    with torch.no_grad():
        log_probs = oracle_log_probs(replace(model, mask=torch.ones_like(model.mask)))[0]
    given = {
        name: None if (x := getattr(case, name)) is None else x - case.log_probs + log_probs
        for name in ("old", "ref", "sampler")
    }
    if spec.beta == 0:
        given["ref"] = None
    return case.advantages, {**given, "importance_ratio": case.importance_ratio}


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative norm of the difference."""
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))


def gradients(loss: Tensor, inputs: list[Tensor], factor: float = 1.0, retain: bool = False) -> list[Tensor]:
    """Of factor * loss, zeros where there are none."""
    found = torch.autograd.grad(loss * factor, inputs, allow_unused=True, retain_graph=retain)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]
