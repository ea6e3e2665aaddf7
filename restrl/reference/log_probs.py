"""Log-probabilities and entropies of tokens from logits, and from hidden states."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class TokenLogProbs(NamedTuple):
    """log_probs: of the tokens that stand there, differentiable; entropies: of the whole distribution,
    detached unless asked for otherwise. Both in nats.
    """

    log_probs: Tensor
    entropies: Tensor


def log_probs_from_logits(
    logits: Tensor, tokens: Tensor, temperature: float = 1.0, *, entropy_gradient: bool = False
) -> TokenLogProbs:
    """log softmax(logits / temperature) at `tokens`, and entropies.

    logits `[N, V]` (any float; computed in float32, float64 stays), tokens `[N]`; both results are `[N]`.
    entropy_gradient: the entropies are differentiable too.
    """
    z = logits.to(_accumulator(logits)) / temperature
    log_normaliser = z.logsumexp(1)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        log_p = z - log_normaliser[:, None]
        possible = log_p > -torch.inf
        log_p = torch.where(possible, log_p, 0.0)
        entropies = -torch.where(possible, log_p.exp() * log_p, 0.0).sum(1)
    return TokenLogProbs(z.gather(1, tokens[:, None])[:, 0] - log_normaliser, entropies)


def log_probs_from_hidden(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk: int = 8192,
) -> TokenLogProbs:
    """`log_probs_from_logits` of the logits hidden W^T + b (capped: softcap tanh(z / softcap)), `chunk` rows
    at a time.

    hidden `[N, H]`, weight `[V, H]`, bias `[V]`, tokens `[N]`. Everything past the inputs is float32
    (float64 inputs stay). With more than one chunk, logits are computed again in the backward pass instead
    of being kept.
    """
    dtype = _accumulator(hidden)
    weight = weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)

    def one(part: Tensor, targets: Tensor) -> TokenLogProbs:
        logits = torch.nn.functional.linear(part.to(dtype), weight, bias)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return log_probs_from_logits(logits, targets, temperature)

    if hidden.shape[0] <= chunk:
        return one(hidden, tokens)
    parts = [
        checkpoint(one, h, t, use_reentrant=False, preserve_rng_state=False)
        for h, t in zip(hidden.split(chunk), tokens.split(chunk), strict=True)
    ]
    return TokenLogProbs(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))


def _accumulator(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
