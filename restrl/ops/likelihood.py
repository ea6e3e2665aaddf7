"""Log-probs of tokens, and the cross-entropy of supervised fine-tuning, from hidden states."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from restrl.errors import RestrlError
from restrl.ops.arguments import BackendName, Options, flat_tokens, plan_for, scatter
from restrl.ops.linear import Wanted, attach, gradient_pass, log_probs_pass, recomputed_log_probs
from restrl.ops.rows import RowStatistics
from restrl.reference import TokenLogProbs


class CrossEntropy(NamedTuple):
    """loss: differentiable scalar; log_probs and entropies (None unless asked for): detached, in the shape of
    the tokens, 0 where the weight is 0.
    """

    loss: Tensor
    log_probs: Tensor
    entropies: Tensor | None


def token_log_probs(
    hidden: Tensor,
    lm_head: Tensor,
    tokens: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    chunk_rows: int | None = None,
    entropies: bool = True,
    backend: BackendName = "auto",
) -> TokenLogProbs:
    """Log-probs of `tokens`, and entropies of their distributions, both differentiable; never `[N, V]`.

    hidden     `[N, H]` or `[B, T, H]` final hidden states, each the one before its token
    lm_head    `[V, H]`
    tokens     `[N]` or `[B, T]` ids
    mask       of the tokens' shape: rows with 0 are not computed, whatever they hold; their results are 0
    entropies  False: they are not computed, and NaN
    others     as for `grpo_loss`

    Returns float32 (float64 for float64 inputs) tensors of the tokens' shape, in nats. One matmul; with
    gradients, the backward pass computes the logits again (4 in all).
    """
    flat = flat_tokens(tokens, hidden, "hidden")
    rows = hidden.reshape(-1, hidden.shape[-1])
    options = Options(bias, logit_scale, softcap, temperature, vocab_size, chunk_rows, backend)
    live = None if mask is None else flat_mask(mask, tokens) > 0
    plan = plan_for(rows, lm_head, flat, live, options)
    found = recomputed_log_probs(plan, rows, lm_head, bias, entropies)
    log_probs = scatter(found.log_probs, plan.live, tokens)
    assert log_probs is not None
    spread = scatter(found.entropies, plan.live, tokens)
    return TokenLogProbs(log_probs, torch.full_like(log_probs, torch.nan) if spread is None else spread)


def cross_entropy_loss(
    hidden: Tensor,
    lm_head: Tensor,
    tokens: Tensor,
    weights: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    chunk_rows: int | None = None,
    entropies: bool = True,
    backend: BackendName = "auto",
) -> CrossEntropy:
    """-sum of w log p(token), with its gradients formed in the forward pass: 3 matmuls, never `[N, V]`.

    weights  of the tokens' shape: 1 / number of tokens for the mean; rows with 0 are not computed
    others   as for `token_log_probs`; entropies False: they are not computed
    """
    flat = flat_tokens(tokens, hidden, "hidden")
    rows = hidden.reshape(-1, hidden.shape[-1])
    options = Options(bias, logit_scale, softcap, temperature, vocab_size, chunk_rows, backend)
    if weights.shape != tokens.shape:
        raise RestrlError(
            f"weights has shape {list(weights.shape)} and tokens {list(tokens.shape)}; they must agree"
        )
    if weights.requires_grad and torch.is_grad_enabled():
        raise RestrlError("weights requires a gradient, and gets none here; detach it")
    w = weights.reshape(-1)
    plan = plan_for(rows, lm_head, flat, w != 0, options)
    w = (w if plan.live is None else w[plan.live]).to(plan.accumulator)
    wanted = Wanted.of(rows, lm_head, bias)
    if not any(wanted):
        statistics = log_probs_pass(plan, rows, lm_head, bias, entropies)
        loss = -(w * statistics.log_probs).sum()
    else:
        parts: list[RowStatistics] = []

        def rule(span: slice, found: RowStatistics) -> tuple[Tensor, None]:
            parts.append(found)
            return -w[span], None

        gradients = gradient_pass(
            plan, rows, lm_head, bias, rule, spans=plan.spans(), entropy=entropies, wanted=wanted
        )
        statistics = RowStatistics(
            torch.cat([w[:0], *(part.log_probs for part in parts)]),
            torch.cat([w[:0], *(p.entropies for p in parts if p.entropies is not None)])
            if entropies
            else None,
        )
        loss = attach(-(w * statistics.log_probs).sum(), gradients, (rows, lm_head, bias), plan.backend)
    log_probs = scatter(statistics.log_probs, plan.live, tokens)
    assert log_probs is not None
    return CrossEntropy(loss, log_probs, scatter(statistics.entropies, plan.live, tokens))


def flat_mask(mask: Tensor, tokens: Tensor) -> Tensor:
    """`[N]` mask. Raises RestrlError unless it has the tokens' shape."""
    if mask.shape != tokens.shape:
        raise RestrlError(
            f"mask has shape {list(mask.shape)} and tokens {list(tokens.shape)}; they must agree"
        )
    return mask.reshape(-1)
