"""Methods of the operations without a matmul: the loss on given logits or log-probs, scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from kernels_case import GROUP, SPEC, Backend, Case, Shape, leaf, plain_loss
from kernels_methods import COMPILED, RESTRL, Absent, Result, Run, picked
from torch import Tensor

from restrl import ops
from restrl.ops.value import value_score
from restrl.reference import Totals, loss_weights

COPY, FORWARD, ONE_SHOT = "copy of the bytes", "restrl, forward", "restrl, in place"
EPS = 1e-6


# -- from logits: [N, V] is there, its gradient is wanted


def logits_of(case: Case) -> Tensor:
    with torch.no_grad():
        return leaf(case.hidden @ case.weight.T)


def copy(logits: Tensor) -> Run:
    """Reads and writes every logit once."""
    into = torch.empty_like(logits)

    def run() -> Result:
        into.copy_(logits.detach())
        return Result()

    return run


def logits_naive(case: Case, logits: Tensor, compiled: bool = False) -> Run:
    compute = torch.compile(picked, dynamic=False) if compiled else picked
    return logits_loss(case, logits, lambda: compute(logits.float(), case.tokens))


def logits_loss(case: Case, logits: Tensor, log_probs: Callable[[], Tensor]) -> Run:
    def run() -> Result:
        logits.grad = None
        values = log_probs()
        loss = plain_loss(values, case.mask, case.advantages, case.old, case.ref)
        loss.backward()
        return Result(loss, values, logits.grad)

    return run


def logits_trl(case: Case, logits: Tensor) -> Run:
    try:
        from trl.trainer.utils import selective_log_softmax
    except ImportError as error:
        raise Absent(f"trl: {error}") from error
    shaped = logits.view(*case.tokens.shape, -1)
    return logits_loss(case, logits, lambda: selective_log_softmax(shaped, case.tokens).float())


def logits_liger(case: Case, logits: Tensor) -> Run:
    """Its Triton kernels, which take one more position than there are tokens."""
    if not logits.is_cuda:
        raise Absent("liger_kernel: its loss on logits runs on a GPU only")
    try:
        from liger_kernel.transformers.grpo_loss import triton_grpo_loss
    except ImportError as error:
        raise Absent(f"liger_kernel: {error}") from error
    shaped = logits.detach().view(*case.tokens.shape, -1)
    longer = leaf(torch.cat([shaped, shaped.new_zeros(case.shape.B, 1, case.shape.V)], 1))

    def run() -> Result:
        longer.grad = None
        loss = triton_grpo_loss(
            longer, case.old, case.ref, case.tokens, case.advantages, case.mask, 1.0, SPEC.beta, SPEC.epsilon,
            SPEC.epsilon, inplace=False, loss_type="dapo", reduce=True,
        )[0]  # fmt: skip
        loss.backward()
        assert longer.grad is not None
        return Result(loss, d_logits=longer.grad[:, :-1].flatten(0, 1))

    return run


def logits_forward(case: Case, logits: Tensor) -> Run:
    """Log-probs, entropies and the loss, no gradient."""

    @torch.no_grad()
    def run() -> Result:
        out = ops.grpo_loss_from_logits(
            logits.view(*case.tokens.shape, -1), case.tokens, spec=SPEC, rewards=case.rewards,
            groups=case.groups, mask=case.mask, old=case.old, ref=case.ref, backend=case.backend,
        )  # fmt: skip
        return Result(out.loss, out.log_probs)

    return run


def logits_restrl(case: Case, logits: Tensor, inplace: bool = False) -> Run:
    """In place: the gradient is written over the logits, which are fresh for every run, outside its time."""

    def run() -> Result:
        logits.grad = None
        out = ops.grpo_loss_from_logits(
            logits.view(*case.tokens.shape, -1), case.tokens, spec=SPEC, rewards=case.rewards,
            groups=case.groups, mask=case.mask, old=case.old, ref=case.ref, inplace=inplace,
            entropies=False, backend=case.backend,
        )  # fmt: skip
        out.loss.backward()
        return Result(out.loss, out.log_probs, logits.grad)

    return run


def from_logits(case: Case, logits: Tensor, compiler: bool) -> dict[str, Callable[[], Run]]:
    return {
        COPY: lambda: copy(logits),
        "naive": lambda: logits_naive(case, logits),
        **({COMPILED: lambda: logits_naive(case, logits, compiled=True)} if compiler else {}),
        "TRL selective": lambda: logits_trl(case, logits),
        "Liger": lambda: logits_liger(case, logits),
        FORWARD: lambda: logits_forward(case, logits),
        RESTRL: lambda: logits_restrl(case, logits),
        ONE_SHOT: lambda: logits_restrl(case, logits, inplace=True),
    }


def logits_truth(case: Case, logits: Tensor, chunk: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, log-probs and dloss/dlog-prob in float64, `[]`, `[B, T]`, `[B, T]`, of the logits as they are."""
    tokens = case.tokens.flatten()
    parts = zip(logits.detach().split(chunk), tokens.split(chunk), strict=True)
    log_probs = leaf(torch.cat([picked(part.double(), token) for part, token in parts]).view_as(case.tokens))
    loss = plain_loss(log_probs, *(x.double() for x in (case.mask, case.advantages, case.old, case.ref)))
    loss.backward()
    assert log_probs.grad is not None
    return loss.detach(), log_probs.detach(), log_probs.grad


def d_logits_error(case: Case, logits: Tensor, d_logits: Tensor, g: Tensor, chunk: int = 512) -> float:
    """Norm of the difference from g (onehot - p) over its norm, a chunk of rows at a time."""
    error = size = 0.0
    for start in range(0, case.shape.N, chunk):
        rows = slice(start, start + chunk)
        true = logits[rows].double().softmax(1).neg_()
        true[torch.arange(len(true), device=true.device), case.tokens.flatten()[rows]] += 1
        true *= g.flatten()[rows, None]
        error += float((d_logits.flatten(0, -2)[rows].double() - true).square().sum())
        size += float(true.square().sum())
    return (error / size) ** 0.5


# -- advantages and the loss on log-probs that are there


def token_loss(case: Case, compiler: bool) -> dict[str, Callable[[], Run]]:
    """Raw rewards and log-probs to the loss and its derivative by every log-prob, `[B, T]`."""

    def autograd(compiled: bool = False) -> Run:
        compute = (
            torch.compile(plain_advantages_and_loss, dynamic=False) if compiled else plain_advantages_and_loss
        )
        log_probs = leaf(case.ref)

        def run() -> Result:
            log_probs.grad = None
            loss = compute(log_probs, case.rewards, case.mask, case.old, case.ref)
            loss.backward()
            return Result(loss, d_logits=log_probs.grad)

        return run

    def closed_form() -> Run:
        if case.hidden.is_cuda or case.backend == "triton":
            from restrl.ops.triton_rows import token_gradients
        else:
            from restrl.reference.derivatives import token_gradients
        n = case.mask.sum(1)
        totals = Totals(case.shape.B, float(case.mask.sum()))

        def run() -> Result:
            advantages = ops.grouped_advantages(case.rewards, case.groups, backend=case.backend)
            weights = loss_weights(case.mask, SPEC, totals).expand_as(case.mask) * case.mask
            found = token_gradients(
                case.ref, None, case.mask, advantages, weights, None, n, SPEC, old=case.old, ref=case.ref,
                sampler=None, importance_ratio=None,
            )  # fmt: skip
            return Result(found.loss, d_logits=found.d_log_prob)

        return run

    return {
        "naive": autograd,
        **({COMPILED: partial(autograd, compiled=True)} if compiler else {}),
        RESTRL: closed_form,
    }


def plain_advantages_and_loss(
    log_probs: Tensor, rewards: Tensor, mask: Tensor, old: Tensor, ref: Tensor
) -> Tensor:
    groups = rewards.view(-1, GROUP)
    centred = groups - groups.mean(1, keepdim=True)
    advantages = (centred / (groups.std(1, keepdim=True) + 1e-4)).flatten()
    return plain_loss(log_probs, mask, advantages, old, ref)


# -- values of single positions


@dataclass
class ValueCase:
    """Hidden states `[B, T, H]` before the final norm, `M` flat positions to score, the norm's and the head's
    weights `[H]`.
    """

    hidden: Tensor
    index: Tensor
    norm_weight: Tensor
    weight: Tensor
    bias: Tensor
    backend: Backend = "auto"


def value_case(
    shape: Shape, scored: int, dtype: torch.dtype, device: str, backend: Backend = "auto"
) -> ValueCase:
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    hidden = torch.cat([normal(1, shape.T, shape.H).to(dtype) for _ in range(shape.B)])
    index = torch.randperm(shape.N, generator=generator, device=device)[:scored]
    return ValueCase(
        hidden, index.sort().values, (1 + 0.1 * normal(shape.H)).to(dtype),
        0.3 * normal(shape.H) / shape.H**0.5, torch.tensor([0.5], device=device), backend,
    )  # fmt: skip


def value(case: ValueCase) -> dict[str, Callable[[], Run]]:
    """Scores in [0, 1] of `M` positions: RMS norm, dot product, bias, clamp."""

    def head(x: Tensor) -> Tensor:
        wide = x.float()
        normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(
            x.dtype
        ) * case.norm_weight
        return (normed @ case.weight.to(x.dtype) + case.bias).float().clamp(0, 1)

    def scored(compute: Callable[[], Tensor]) -> Run:
        @torch.no_grad()
        def run() -> Result:
            return Result(values=compute())

        return run

    flat = case.hidden.flatten(0, 1)
    into = flat.new_empty(len(case.index), flat.shape[1])
    return {
        COPY: lambda: scored(lambda: torch.index_select(flat, 0, case.index, out=into)),
        "all rows, then gathered": lambda: scored(lambda: head(flat)[case.index]),
        "gathered, then the rest": lambda: scored(lambda: head(flat[case.index])),
        RESTRL: lambda: scored(
            lambda: value_score(
                case.hidden,
                case.index,
                case.weight,
                case.bias,
                norm="rms",
                norm_weight=case.norm_weight,
                eps=EPS,
                backend=case.backend,
            )
        ),
    }


def value_truth(case: ValueCase) -> Tensor:
    x = case.hidden.flatten(0, 1)[case.index].double()
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * case.norm_weight.double()
    return (normed @ case.weight.double() + case.bias.double()).clamp(0, 1)
