"""What the kernel benchmarks compute on: random models and rollouts, and the truth in float64.

`B` rows (completions), `T` tokens of a row, `N = B T` tokens, `H` hidden size, `V` vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from restrl.reference import LossSpec, grouped_advantages

Backend = Literal["auto", "torch", "triton"]
GROUP = 8
SPEC = LossSpec(loss_type="dapo", epsilon=0.2, beta=0.04)


@dataclass(frozen=True)
class Shape:
    """`B` rows of `T` tokens, hidden size `H`, vocabulary `V`."""

    name: str
    B: int
    T: int
    H: int
    V: int

    @property
    def N(self) -> int:
        return self.B * self.T

    def __str__(self) -> str:
        return f"N{self.N} H{self.H} V{self.V}"


SHAPES = {
    "tiny": Shape("tiny", 8, 4, 32, 300),
    "small": Shape("small", 16, 128, 256, 8192),
    "large": Shape("large", 8, 128, 896, 32768),
    "0.5B": Shape("0.5B", 16, 512, 896, 151936),
    "7B": Shape("7B", 16, 512, 3584, 152064),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


@dataclass
class Case:
    """One batch of completions at the head of a model.

    hidden, weight  `[N, H]`, `[V, H]` of the case's dtype; the head's weight may be frozen
    tokens, mask    `[B, T]` int64 drawn from the policy, and 1 where a token counts (float32)
    rewards, groups `[B]`, advantages `[B]` of them
    old, ref        `[B, T]` float32 log-probs near the policy's, so that some ratios are clipped
    """

    shape: Shape
    hidden: Tensor
    weight: Tensor
    tokens: Tensor
    mask: Tensor
    rewards: Tensor
    groups: Tensor
    advantages: Tensor
    old: Tensor
    ref: Tensor
    backend: Backend = "auto"  # of restrl

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None

    def frozen(self) -> Case:
        """The same with a head that is not trained."""
        return replace(self, hidden=leaf(self.hidden), weight=self.weight.detach())

    def masked(self, share: float) -> Case:
        """The same with the ends of the rows masked, `share` of all tokens; lengths differ by row."""
        lengths = torch.linspace(1 - 2 * share, 1, self.shape.B, device=self.mask.device) * self.shape.T
        mask = torch.arange(self.shape.T, device=self.mask.device) < lengths.round()[:, None]
        return replace(self, mask=mask.float())


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def make(shape: Shape, dtype: torch.dtype, device: str = "cpu", backend: Backend = "auto") -> Case:
    """Logits have a standard deviation of about 3, as of a policy that knows some of its tokens."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    B, T = shape.B, shape.T
    hidden = normal(shape.N, shape.H).to(dtype)
    weight = normal(shape.V, shape.H).mul_(3 / shape.H**0.5).to(dtype)
    tokens, log_probs = [], []
    for part in hidden.split(256):
        logits = (part @ weight.T).float()
        uniform = torch.rand(logits.shape, generator=generator, device=device)
        drawn = logits.sub(uniform.log_().neg_().log_()).argmax(
            1
        )  # adds Gumbel noise: a draw from the policy
        tokens.append(drawn)
        log_probs.append(logits.gather(1, drawn[:, None])[:, 0] - logits.logsumexp(1))
    near = torch.cat(log_probs).view(B, T)
    rewards = normal(B)
    return Case(
        shape,
        leaf(hidden),
        leaf(weight),
        torch.cat(tokens).view(B, T),
        torch.ones(B, T, device=device),
        rewards,
        torch.arange(B, device=device) // GROUP,
        grouped_advantages(rewards.view(-1, GROUP)).flatten(),
        near + 0.1 * normal(B, T),
        near + 0.1 * normal(B, T),
        backend,
    )


@dataclass(frozen=True)
class Truth:
    """In float64, of the inputs as they are in their dtype; d_weight None for a frozen head."""

    loss: Tensor
    log_probs: Tensor
    d_hidden: Tensor
    d_weight: Tensor | None


def plain_loss(log_probs: Tensor, mask: Tensor, advantages: Tensor, old: Tensor, ref: Tensor) -> Tensor:
    """The token-level loss with clip and KL as a trainer writes it: mean of -min(r A, clip(r) A) + beta K."""
    ratio = (log_probs - old).exp()
    clipped = ratio.clamp(1 - SPEC.epsilon, 1 + SPEC.epsilon)
    policy = -torch.minimum(ratio * advantages[:, None], clipped * advantages[:, None])
    x = ref - log_probs
    return ((policy + SPEC.beta * (x.exp() - x - 1)) * mask).sum() / mask.sum()


def truth(case: Case, storage: torch.dtype = torch.float64, chunk: int = 512) -> Truth:
    """A chunk of rows at a time; the loss's derivative comes from autograd on `[B, T]` alone.

    storage  what dloss/dlogits is rounded to before its matmuls: nobody whose matmuls are of that dtype can
             do better than the result
    """
    hidden, weight = case.hidden.detach(), case.weight.detach().double()
    tokens = case.tokens.flatten()
    rows = [slice(i, i + chunk) for i in range(0, case.shape.N, chunk)]

    def log_p(part: slice) -> Tensor:
        return (hidden[part].double() @ weight.T).log_softmax(1)

    picked = [log_p(part).gather(1, tokens[part][:, None])[:, 0] for part in rows]
    log_probs = leaf(torch.cat(picked).view(case.shape.B, case.shape.T))
    inputs = (case.mask, case.advantages, case.old, case.ref)
    loss = plain_loss(log_probs, *(x.double() for x in inputs))
    (g,) = torch.autograd.grad(loss, log_probs)
    d_hidden = torch.empty_like(hidden, dtype=torch.float64)
    d_weight = torch.zeros_like(weight) if case.weight.requires_grad else None
    for part in rows:
        d_logits = log_p(part).exp_().neg_()
        d_logits[torch.arange(len(d_logits), device=hidden.device), tokens[part]] += 1
        d_logits = (d_logits * g.flatten()[part, None]).to(storage).double()
        d_hidden[part] = d_logits @ weight
        if d_weight is not None:
            d_weight.addmm_(d_logits.T, hidden[part].double())
    return Truth(loss.detach(), log_probs.detach(), d_hidden, d_weight)


def relative(value: Tensor | None, true: Tensor | None) -> float | None:
    """Norm of the difference over the norm."""
    if value is None or true is None:
        return None
    return float((value.detach().double() - true).norm() / true.norm())
