"""The engine: losses of log-probabilities of a language-model head, a chunk of rows at a time.

The logits of a chunk live in one buffer that the next chunk overwrites; `[N, V]` never exists. Where dloss/dl
of a row is known as soon as its chunk is (`one_pass`), the gradients are formed at once, in the forward pass:
3 matmuls. Otherwise log-probs come first, the loss follows, and the backward pass computes the logits again
(`recomputed_log_probs`): 4 matmuls. Rows that have no gradient are left out before the first matmul.

The gradient of the head is summed over chunks in float32, in a fixed order: results are bitwise repeatable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from restrl.errors import RestrlError
from restrl.ops.rows import Head, RowStatistics

# Gradients dloss/dl and dloss/dentropy (None: 0) of the live rows in a slice, from their statistics.
Rule = Callable[[slice, RowStatistics], tuple[Tensor, Tensor | None]]


def no_second_derivative(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass that refuses create_graph=True instead of leaving terms out."""

    @wraps(backward)
    def first_only(*arguments: Any) -> Any:
        if torch.is_grad_enabled():  # as create_graph has it
            raise RestrlError("the losses of restrl.ops have no second derivatives; leave create_graph False")
        return backward(*arguments)

    return first_only


class Gradients(NamedTuple):
    """Of hidden states `[N, H]`, head `[V, H]` and bias `[V]`; None where not wanted."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class Wanted(NamedTuple):
    """Which gradients are."""

    hidden: bool
    weight: bool
    bias: bool

    @staticmethod
    def of(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Wanted:
        """What autograd will ask for."""
        on = torch.is_grad_enabled()
        return Wanted(
            on and hidden.requires_grad,
            on and weight.requires_grad,
            on and bias is not None and bias.requires_grad,
        )


@dataclass(frozen=True)
class Plan:
    """Everything about a call but the tensors that gradients go to.

    tokens      `[n]` of the live rows, in [0, vocabulary)
    live        `[n]` positions of these rows among the `N`; None: all of them, in order
    chunk_rows  capacity of the buffer
    vocabulary  rows of the head that count
    dtype       of the matmuls
    """

    tokens: Tensor
    live: Tensor | None
    chunk_rows: int
    vocabulary: int
    dtype: torch.dtype
    logit_scale: float
    softcap: float | None
    temperature: float
    backend: ModuleType
    one_product: bool  # the backend can write a weight gradient that needs no sum in the weight's own type

    @property
    def accumulator(self) -> torch.dtype:
        """float32, or float64 where the inputs are."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def gradient_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Of a gradient that the backward pass has yet to scale, for an input of `dtype`: before the factor
        of a loss scaler it is too small for float16.
        """
        return self.accumulator if dtype == torch.float16 else dtype

    def only(self, rows: Tensor) -> Plan:
        """The plan for some of the live rows."""
        live = rows if self.live is None else self.live[rows]
        return replace(self, tokens=self.tokens[rows], live=live)

    def spans(self) -> list[slice]:
        """Chunks that fill the buffer."""
        n = len(self.tokens)
        return [slice(i, min(i + self.chunk_rows, n)) for i in range(0, n, self.chunk_rows)]

    def spans_of_sequences(self, lengths: Sequence[int]) -> list[slice] | None:
        """Chunks of whole sequences with `lengths` live rows each; None: one is longer than the buffer."""
        if max(lengths, default=0) > self.chunk_rows:
            return None
        spans, start, end = [], 0, 0
        for length in lengths:
            if end + length - start > self.chunk_rows:
                spans.append(slice(start, end))
                start = end
            end += length
        return [*spans, slice(start, end)] if end > start else spans

    def head(self, weight: Tensor, bias: Tensor | None) -> Head:
        """What the backend computes with."""
        rows = weight.detach()[: self.vocabulary].to(self.dtype).contiguous()
        bias = None if bias is None else bias.detach()[: self.vocabulary].contiguous()
        return Head(rows, bias, self.logit_scale, self.softcap, self.temperature)

    def rows(self, hidden: Tensor, span: slice) -> Tensor:
        """`[C, H]` contiguous hidden states of a chunk."""
        chosen = hidden.detach()[span if self.live is None else self.live[span]]
        return chosen.to(self.dtype).contiguous()


@torch.no_grad()
def log_probs_pass(
    plan: Plan, hidden: Tensor, weight: Tensor, bias: Tensor | None, entropy: bool
) -> RowStatistics:
    """`[n]` log-probs and entropies of the live rows; one matmul."""
    n = len(plan.tokens)
    log_probs = hidden.new_empty(n, dtype=plan.accumulator)
    entropies = torch.empty_like(log_probs) if entropy else None
    with torch.autocast(hidden.device.type, enabled=False):
        spans = plan.spans()
        if spans:
            chunks = plan.backend.chunks(plan.head(weight, bias), min(n, plan.chunk_rows), False)
        for span in spans:
            found = chunks.log_probs(plan.rows(hidden, span), plan.tokens[span], entropy)
            log_probs[span] = found.log_probs
            if entropies is not None:
                entropies[span] = found.entropies
    return RowStatistics(log_probs, entropies)


@torch.no_grad()
def gradient_pass(
    plan: Plan,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rule: Rule,
    *,
    spans: list[slice],
    entropy: bool,
    wanted: Wanted,
) -> Gradients:
    """The gradients that `rule` gives to each chunk in turn; three matmuls, two where one is not wanted."""
    dtype, v = plan.accumulator, plan.vocabulary
    d_hidden = d_weight = d_bias = None
    if wanted.hidden:
        new = torch.empty if plan.live is None and spans else torch.zeros
        d_hidden = new(hidden.shape, dtype=plan.gradient_dtype(hidden.dtype), device=hidden.device)
    if wanted.weight:
        single = plan.one_product and len(spans) <= 1 and weight.dtype == plan.dtype != torch.float16
        d_weight = torch.empty(weight.shape, dtype=weight.dtype if single else dtype, device=weight.device)
        d_weight[v if spans else 0 :] = 0
    if wanted.bias:
        d_bias = torch.empty(weight.shape[0], dtype=dtype, device=weight.device)
        d_bias[v if spans else 0 :] = 0
    out_dtype = plan.gradient_dtype(plan.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        if spans:
            capacity = max(span.stop - span.start for span in spans)
            chunks = plan.backend.chunks(plan.head(weight, bias), capacity, True)
        for span in spans:
            rows = plan.rows(hidden, span)
            found = chunks.log_probs(rows, plan.tokens[span], entropy)
            g, c = rule(span, found)
            direct = d_hidden is not None and plan.live is None and d_hidden.dtype == out_dtype
            out = d_hidden[span] if d_hidden is not None and direct else None
            if d_hidden is not None and not direct:
                out = torch.empty_like(rows, dtype=out_dtype)
            chunks.backward(
                g,
                c,
                out,
                None if d_weight is None else d_weight[:v],
                None if d_bias is None else d_bias[:v],
                span.start == 0,
            )
            if d_hidden is not None and out is not None and not direct:
                d_hidden[span if plan.live is None else plan.live[span]] = out.to(d_hidden.dtype)
    return Gradients(d_hidden, d_weight, d_bias)


def recomputed_log_probs(
    plan: Plan, hidden: Tensor, weight: Tensor, bias: Tensor | None, entropy: bool
) -> RowStatistics:
    """`log_probs_pass` with gradients, for which the backward pass computes the logits again."""
    if not any(Wanted.of(hidden, weight, bias)):
        return log_probs_pass(plan, hidden, weight, bias, entropy)
    log_probs, entropies = _Recomputed.apply(hidden, weight, bias, plan, entropy)
    return RowStatistics(log_probs, entropies)


class _Recomputed(Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        return log_probs_pass(plan, hidden, weight, bias, entropy)

    @staticmethod
    @no_second_derivative
    def backward(ctx: Any, g: Tensor | None, c: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        plan: Plan = ctx.plan
        if g is None:
            g = torch.zeros(len(plan.tokens), dtype=plan.accumulator, device=hidden.device)
        moved = g != 0 if c is None else (g != 0) | (c != 0)
        if not bool(moved.all()):
            rows = moved.nonzero()[:, 0]
            plan, g, c = plan.only(rows), g[rows], None if c is None else c[rows]
        by_log_prob, by_entropy = g.contiguous(), None if c is None else c.contiguous()

        def rule(span: slice, found: RowStatistics) -> tuple[Tensor, Tensor | None]:
            return by_log_prob[span], None if by_entropy is None else by_entropy[span]

        found = gradient_pass(
            plan,
            hidden,
            weight,
            bias,
            rule,
            spans=plan.spans(),
            entropy=c is not None,
            wanted=Wanted(*ctx.needs_input_grad[:3]),
        )
        return (*found, None, None)


def attach(
    loss: Tensor, gradients: Sequence[Tensor | None], inputs: Sequence[Tensor | None], backend: ModuleType
) -> Tensor:
    """The scalar `loss` as a function of `inputs`, with these gradients. They are scaled in place by the one
    backward pass that there can be.
    """
    return _Attached.apply(loss, list(gradients), backend, *inputs)


class _Attached(Function):
    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, gradients: list[Tensor | None], backend: ModuleType, *inputs: Tensor | None
    ) -> Tensor:
        ctx.gradients, ctx.backend = gradients, backend
        return loss.clone()

    @staticmethod
    @no_second_derivative
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RestrlError(
                "the first backward pass took the gradients of this loss; compute it again for a second one"
            )
        gradients, ctx.gradients = ctx.gradients, None
        for gradient in gradients:
            if gradient is not None:
                ctx.backend.scale_(gradient, grad_output)
        return (None, None, None, *gradients)
