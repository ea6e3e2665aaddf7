"""The same quantity computed by restrl, by its peers, and by the matmuls that nobody gets around.

A maker takes a case and gives a function without arguments that computes the operation's result and, where
the operation trains, its gradients in `case.hidden.grad` and `case.weight.grad`. Peers are optional: a maker
raises `Absent` where one is not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from kernels_case import SPEC, Case, plain_loss
from torch import Tensor

from restrl import ops
from restrl.ops import cpu
from restrl.ops.cpu_products import products


class Absent(Exception):
    """A peer that cannot be measured here, and why."""


@dataclass(frozen=True)
class Result:
    """What can be compared with the truth: the loss, `[B, T]` log-probs, dloss/dlogits `[N, V]` (in "token
    loss" dloss/dlog-probs `[B, T]`), `[M]` scores.
    """

    loss: Tensor | None = None
    log_probs: Tensor | None = None
    d_logits: Tensor | None = None
    values: Tensor | None = None


ROOF, COMPILED, TRL, RESTRL = "matmuls alone", "naive, compiled", "TRL chunked", "restrl"
CHUNKED = "matmuls in chunks"
ENTROPIES = "restrl, with entropies"
MASKED, MASKED_SHARE = "restrl, 25 % masked", 0.25
Run = Callable[[], Result]
Maker = Callable[[Case], Run]


# -- the matmuls alone, into memory that is there already


def matmuls(case: Case, backward: bool, d_weight: bool) -> Run:
    """Of all rows at once: the logits, and of their gradients those of the hidden states and the weight."""
    hidden, weight = case.hidden.detach(), case.weight.detach()
    logits = hidden.new_empty(case.shape.N, case.shape.V)
    d_hidden, d_head = torch.empty_like(hidden), torch.empty_like(weight) if d_weight else None

    def run() -> Result:
        torch.mm(hidden, weight.T, out=logits)
        if backward:
            torch.mm(logits, weight, out=d_hidden)
        if d_head is not None:
            torch.mm(logits.T, hidden, out=d_head)
        return Result()

    return run


def matmuls_in_chunks(case: Case) -> Run:
    """restrl's products, buffer and gradients, and nothing else: what of its time and memory is the matrix
    library's. On the CPU.
    """
    if case.hidden.is_cuda:
        raise Absent("of the CPU path")

    def run() -> Result:
        hidden, weight = case.hidden.detach(), case.weight.detach()
        wide = torch.promote_types(weight.dtype, torch.float32)
        made = products(weight)
        rows = cpu.chunk_rows(case.shape.N, case.shape.V, case.shape.H, weight.dtype)
        buffer = weight.new_empty(rows, case.shape.V, dtype=made.dtype)
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.empty_like(weight, dtype=weight.dtype if rows == case.shape.N else wide)
        for start in range(0, case.shape.N, rows):
            part = slice(start, min(start + rows, case.shape.N))
            h, tokens = hidden[part], case.tokens.flatten()[part]
            made.logits(h, tokens, buffer[: len(h)])
            made.gradients(
                buffer[: len(h)], h.new_ones(len(h), 1, dtype=wide), d_hidden[part], d_weight, start == 0
            )
        case.hidden.grad, case.weight.grad = d_hidden, d_weight.to(weight.dtype)
        return Result()

    return run


# -- full logits in plain torch


def naive_log_probs(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    return picked((hidden @ weight.T).float(), tokens)


def picked(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.log_softmax(1).gather(1, tokens.flatten()[:, None]).view_as(tokens)


def naive(case: Case, compiled: bool = False) -> Run:
    def loss_of(hidden: Tensor, weight: Tensor, tokens: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = naive_log_probs(hidden, weight, tokens)
        return plain_loss(log_probs, *rest), log_probs

    compute = torch.compile(loss_of, dynamic=False) if compiled else loss_of

    def run() -> Result:
        loss, log_probs = compute(
            case.hidden, case.weight, case.tokens, case.mask, case.advantages, case.old, case.ref
        )
        loss.backward()
        return Result(loss, log_probs)

    return run


def from_log_probs(case: Case, log_probs: Callable[[], Tensor]) -> Run:
    """A peer that gives log-probs; loss and gradients are autograd's."""

    def run() -> Result:
        values = log_probs()
        loss = plain_loss(values, case.mask, case.advantages, case.old, case.ref)
        loss.backward()
        return Result(loss, values)

    return run


# -- TRL 1.16


def trl_selective(case: Case) -> Callable[[], Tensor]:
    """The path of its trainers with full logits."""
    try:
        from trl.trainer.utils import selective_log_softmax
    except ImportError as error:
        raise Absent(f"trl: {error}") from error

    def log_probs() -> Tensor:
        logits = (case.hidden @ case.weight.T).view(*case.tokens.shape, -1)
        return selective_log_softmax(logits, case.tokens).float()

    return log_probs


def trl_chunked(case: Case) -> Callable[[], Tensor]:
    """Its fused LM head, called as its trainers do: on a GPU only rows that count are computed."""
    try:
        from trl.kernels import ChunkedLogProbFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as CHUNK
    except ImportError as error:
        raise Absent(f"trl: {error}") from error
    keep = case.mask.flatten() > 0
    compact = case.hidden.is_cuda

    def log_probs() -> Tensor:
        hidden, tokens = case.hidden, case.tokens.flatten()
        if compact:
            hidden, tokens = hidden[keep], tokens[keep]
        values = ChunkedLogProbFunction.apply(
            hidden, case.weight, None, tokens, 1.0, CHUNK, None, 1.0, ("log_probs",)
        )[0]
        if compact:
            values = values.new_zeros(keep.shape).masked_scatter(keep, values)
        return values.view_as(case.tokens)

    return log_probs


# -- Liger


def liger(case: Case, compiled: bool = True) -> Run:
    """Its fused linear GRPO loss with its default chunk of one row."""
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
    except ImportError as error:
        raise Absent(f"liger_kernel: {error}") from error
    loss_of = LigerFusedLinearGRPOLoss(
        beta=SPEC.beta,
        epsilon_low=SPEC.epsilon,
        epsilon_high=SPEC.epsilon,
        loss_type="dapo",
        compiled=compiled,
    )

    def run() -> Result:
        hidden = case.hidden.view(case.shape.B, case.shape.T, -1)
        loss = loss_of(
            hidden, case.weight, case.tokens, case.mask, case.advantages,
            ref_per_token_logps=case.ref, old_per_token_logps=case.old,
        )[0]  # fmt: skip
        loss.backward()
        return Result(loss)

    return run


# -- restrl


def restrl(case: Case, chunk_rows: int | None = None, masked: float = 0.0, entropies: bool = False) -> Run:
    """From raw rewards and group ids. `masked`: the share of tokens masked for this method alone."""
    case = case.masked(masked) if masked else case

    def run() -> Result:
        out = ops.grpo_loss(
            case.hidden.view(*case.tokens.shape, -1), case.weight, case.tokens, spec=SPEC,
            rewards=case.rewards, groups=case.groups, mask=case.mask, old=case.old, ref=case.ref,
            chunk_rows=chunk_rows, entropies=entropies, backend=case.backend,
        )  # fmt: skip
        out.loss.backward()
        return Result(out.loss, out.log_probs)

    return run


def restrl_log_probs(case: Case) -> Callable[[], Tensor]:
    def log_probs() -> Tensor:
        hidden = case.hidden.view(*case.tokens.shape, -1)
        found = ops.token_log_probs(hidden, case.weight, case.tokens, entropies=False, backend=case.backend)
        return found.log_probs

    return log_probs


# -- the operations


def without_gradients(case: Case, log_probs: Callable[[], Tensor]) -> Run:
    @torch.no_grad()
    def run() -> Result:
        return Result(log_probs=log_probs())

    return run


def fused(compiler: bool) -> dict[str, Maker]:
    """Hidden states, tokens and rewards to the loss and the gradients of hidden states and weight."""
    return {
        ROOF: partial(matmuls, backward=True, d_weight=True),
        CHUNKED: matmuls_in_chunks,
        "naive": naive,
        **({COMPILED: partial(naive, compiled=True)} if compiler else {}),
        "TRL selective": lambda case: from_log_probs(case, trl_selective(case)),
        TRL: lambda case: from_log_probs(case, trl_chunked(case)),
        "Liger": partial(liger, compiled=compiler),
        RESTRL: restrl,
        ENTROPIES: partial(restrl, entropies=True),
        MASKED: partial(restrl, masked=MASKED_SHARE),
    }


def frozen_head(compiler: bool) -> dict[str, Maker]:
    """The same for a case whose head is frozen: no gradient of the weight."""
    found = {**fused(compiler), ROOF: partial(matmuls, backward=True, d_weight=False)}
    del found[CHUNKED]
    return found


def log_probs_only(compiler: bool) -> dict[str, Maker]:
    """Of the old or the reference policy, without gradients."""

    def plain(case: Case, compiled: bool = False) -> Run:
        compute = torch.compile(naive_log_probs, dynamic=False) if compiled else naive_log_probs
        return without_gradients(case, lambda: compute(case.hidden, case.weight, case.tokens))

    return {
        ROOF: partial(matmuls, backward=False, d_weight=False),
        "naive": plain,
        **({COMPILED: partial(plain, compiled=True)} if compiler else {}),
        "TRL selective": lambda case: without_gradients(case, trl_selective(case)),
        TRL: lambda case: without_gradients(case, trl_chunked(case)),
        RESTRL: lambda case: without_gradients(case, restrl_log_probs(case)),
    }
