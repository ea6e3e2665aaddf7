"""Drawing tokens: uniforms from a counter per sample, and the inverse of the cumulative distribution."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from restrl.policy import Sampling


def uniforms(seed: int, key: str, sample: int, count: int) -> NDArray[np.float64]:
    """`[count]` numbers in [0, 1) of sample `sample` of request `key`: the t-th draws its t-th token.

    Philox, a counter-based generator, keyed by a hash: nothing else in the batch has a part in them.
    """
    name = f"{seed}\x1f{sample}\x1f{key}".encode()
    words = np.frombuffer(hashlib.blake2b(name, digest_size=16).digest(), dtype="<u8").astype(np.uint64)
    raw: NDArray[np.uint64] = np.random.Philox(key=words).random_raw(count)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """`[R]` ids drawn from `logits` `[R, V]` (float32), one `uniform` `[R]` (float32, in [0, 1)) each.

    Order: temperature, top_k (0 = all), top_p (the smallest set of most likely ids that holds top_p of the
    probability). The id is the first one, in order of ids, whose cumulative probability passes the uniform.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probs = torch.softmax(logits / sampling.temperature, -1)
    if sampling.top_k or sampling.top_p < 1:
        probs = _truncated(probs, sampling)
    cumulative = probs.cumsum(-1)
    total = cumulative[:, -1:]
    point = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, point, right=True)[:, 0]


def _truncated(probs: Tensor, sampling: Sampling) -> Tensor:
    """`[R, V]` with the ids outside top_k and top_p set to zero; ties go to the lower id."""
    ordered, ids = probs.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if sampling.top_k:
        keep[:, sampling.top_k :] = False
    if sampling.top_p < 1:
        left = ordered * keep
        keep &= left.cumsum(-1) - left < sampling.top_p * left.sum(-1, keepdim=True)
    keep[:, 0] = True
    return torch.zeros_like(probs).scatter_(-1, ids, ordered * keep)
