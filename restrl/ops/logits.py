"""The engine for logits that exist already, `[N, V]` or `[B, T, V]`.

Where every token stands alone, statistics, loss and gradient are formed together, in the forward pass, if the
backend offers it: the logits are read once. Else the statistics of the rows come first, then the loss, and in
the backward pass the gradient of the logits (read once more, written once).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from restrl.ops.linear import attach, no_second_derivative
from restrl.ops.rows import LogitRows, RowStatistics
from restrl.ops.rule import GrpoRule


@dataclass(frozen=True)
class LogitPlan:
    """tokens `[N]`, -1 where a row does not count; live: positions of the others, None: all; the columns that
    count; and who computes.
    """

    tokens: Tensor
    live: Tensor | None
    vocabulary: int
    rows: LogitRows
    backend: ModuleType

    def pick(self, values: Tensor) -> Tensor:
        """`[n]` values of the live rows, of `[N]`."""
        return values if self.live is None else values[self.live]

    def spread(self, values: Tensor) -> Tensor:
        """`[N]` values, 0 where a row does not count."""
        if self.live is None:
            return values.contiguous()
        return values.new_zeros(len(self.tokens)).index_copy(0, self.live, values)


def pages_of(tensor: Tensor) -> list[Tensor]:
    """The tensor as `[n, V]` views: one where its strides allow it, else one per completion."""
    if tensor.dim() == 2 or tensor.stride(0) == tensor.shape[1] * tensor.stride(1):
        return [tensor.view(-1, tensor.shape[-1])]
    return list(tensor)


def loss_of_logits(
    plan: LogitPlan, logits: Tensor, rule: GrpoRule, *, entropy: bool, inplace: bool
) -> Tensor:
    """The scalar loss, differentiable; `rule` has seen all live rows afterwards."""
    wanted = torch.is_grad_enabled() and logits.requires_grad
    readable = logits.detach() if logits.stride(-1) == 1 else logits.detach().contiguous()
    if wanted and (inplace or logits.dtype != torch.float16):  # whose gradient waits for the loss scale
        out = readable if inplace else torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        if _one_shot(plan, readable, rule, entropy, out):
            if inplace:
                torch.autograd.graph.increment_version(logits)
            return attach(rule.loss, [out], [logits], plan.backend)
        del out
    statistics, normaliser = _statistics(plan, readable, entropy)
    if rule.waits_for_batch:
        assert statistics.entropies is not None
        rule.see_batch(plan.pick(statistics.entropies))
    g, c = rule(
        slice(0, None),
        statistics.map(plan.pick),
    )
    if not wanted:
        return rule.loss
    g, c = plan.spread(g), None if c is None else plan.spread(c)
    if inplace:
        _gradient(plan, readable, statistics, normaliser, g, c, readable)
        torch.autograd.graph.increment_version(logits)
        return attach(rule.loss, [readable], [logits], plan.backend)
    return _Deferred.apply(rule.loss, logits, plan, statistics, normaliser, g, c)


@torch.no_grad()
def _statistics(plan: LogitPlan, logits: Tensor, entropy: bool) -> tuple[RowStatistics, Tensor]:
    """`[N]` log-probs and entropies, and log-normalisers."""
    pages = pages_of(logits)
    found = [
        plan.rows.log_probs(page[:, : plan.vocabulary], tokens, entropy)
        for page, tokens in zip(pages, _cut(plan.tokens, pages), strict=True)
    ]
    columns = [torch.cat([s.log_probs for s, _ in found]), None, torch.cat([n for _, n in found])]
    if entropy:
        columns[1] = torch.cat([s.entropies for s, _ in found if s.entropies is not None])
    log_probs, entropies, normaliser = columns
    assert log_probs is not None
    assert normaliser is not None
    return RowStatistics(log_probs, entropies), normaliser


@torch.no_grad()
def _gradient(
    plan: LogitPlan,
    logits: Tensor,
    statistics: RowStatistics,
    normaliser: Tensor,
    g: Tensor,
    c: Tensor | None,
    out: Tensor,
) -> None:
    """dloss/dlogits into `out`, which has the logits' shape, or is the logits."""
    start, v = 0, plan.vocabulary
    for page, target in zip(pages_of(logits), _as_pages(out, len(pages_of(logits))), strict=True):
        span = slice(start, start + len(page))
        plan.rows.backward(
            page[:, :v],
            plan.tokens[span],
            statistics.at(span),
            normaliser[span],
            g[span],
            None if c is None else c[span],
            target[:, :v],
        )
        start = span.stop
    out[..., v:] = 0


@torch.no_grad()
def _one_shot(plan: LogitPlan, logits: Tensor, rule: GrpoRule, entropy: bool, out: Tensor) -> bool:
    """Statistics, loss and gradient in one pass over the logits, where the backend offers it. `out` has the
    logits' shape, or is the logits.
    """
    pages = pages_of(logits)
    if len(pages) > 1 or not rule.by_token or rule.waits_for_batch or rule.entropy_mask is not None:
        return False
    page, target = (x[:, : plan.vocabulary] for x in (pages[0], pages_of(out)[0]))
    found = plan.rows.one_shot(page, plan.tokens, rule.inputs.map(plan.spread), rule.spec, entropy, target)
    if found is None:
        return False
    statistics, result = found
    rule.remember(
        statistics.map(plan.pick),
        type(result)(result.loss, *(None if x is None else plan.pick(x) for x in result[1:])),  # type: ignore[arg-type]
    )
    out[..., plan.vocabulary :] = 0
    return True


class _Deferred(Function):
    """The backward pass forms the gradient, in new memory, from the logits as they were."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,
        logits: Tensor,
        plan: LogitPlan,
        statistics: RowStatistics,
        normaliser: Tensor,
        g: Tensor,
        c: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.rest = (plan, statistics, normaliser, g, c)
        return loss.clone()

    @staticmethod
    @no_second_derivative
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (logits,) = ctx.saved_tensors
        plan, statistics, normaliser, g, c = ctx.rest
        logits = logits.detach() if logits.stride(-1) == 1 else logits.detach().contiguous()
        out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        scaled = None if c is None else c * grad_output
        _gradient(plan, logits, statistics, normaliser, g * grad_output, scaled, out)
        return (None, out, None, None, None, None, None)


def _cut(tokens: Tensor, pages: list[Tensor]) -> list[Tensor]:
    return list(tokens.split([len(page) for page in pages]))


def _as_pages(tensor: Tensor, count: int) -> list[Tensor]:
    return pages_of(tensor) if count == 1 else list(tensor)
