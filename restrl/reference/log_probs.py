"""Log-probabilities and entropies of tokens from logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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
    z = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
    log_normaliser = z.logsumexp(1)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        log_p = z - log_normaliser[:, None]
        possible = log_p > -torch.inf
        log_p = torch.where(possible, log_p, 0.0)
        entropies = -torch.where(possible, log_p.exp() * log_p, 0.0).sum(1)
    return TokenLogProbs(z.gather(1, tokens[:, None])[:, 0] - log_normaliser, entropies)
