"""Arguments of the public operations: checked, flattened to rows, and turned into a plan."""

from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from restrl.errors import RestrlError
from restrl.ops import cpu
from restrl.ops.linear import Plan

BackendName = Literal["auto", "torch", "triton"]
BACKENDS = ("auto", "torch", "triton")


def backend_for(name: str, tensor: Tensor) -> ModuleType:
    """The module that `name` asks for: "auto" is triton for tensors on a GPU (except float64), else torch.

    Raises RestrlError for an unknown name, and for triton where it cannot run.
    """
    if name not in BACKENDS:
        raise RestrlError(f"backend {name!r} is unknown; there are {', '.join(BACKENDS)}")
    if name == "torch" or (
        name == "auto" and not (tensor.is_cuda and tensor.dtype != torch.float64 and has_triton())
    ):
        return cpu
    if not has_triton():
        raise RestrlError("backend 'triton' needs the package triton, which is not installed; use 'torch'")
    if tensor.dtype == torch.float64:
        raise RestrlError("backend 'triton' has no float64; use 'torch'")
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise RestrlError(f"backend 'triton' needs tensors on a GPU, not on {tensor.device}; use 'torch'")
    from restrl.ops import triton_rows

    return triton_rows


@cache
def has_triton() -> bool:
    """Looked for once: the search of the path takes longer than a small operation."""
    return importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class Options:
    """How hidden states become logits, and how they are computed; what all operations on a head take."""

    bias: Tensor | None
    logit_scale: float
    softcap: float | None
    temperature: float
    vocab_size: int | None
    chunk_rows: int | None
    backend: str

    def check(self) -> None:
        """Raises RestrlError for values without meaning."""
        if not 0 < self.temperature < math.inf:
            raise RestrlError(f"temperature is {self.temperature}, not above 0 and finite")
        if self.softcap is not None and not 0 < self.softcap < math.inf:
            raise RestrlError(f"softcap is {self.softcap}, not above 0 and finite (None: no cap)")
        if not math.isfinite(self.logit_scale):
            raise RestrlError(f"logit_scale is {self.logit_scale}, not a finite number")
        if self.chunk_rows is not None and self.chunk_rows < 1:
            raise RestrlError(f"chunk_rows is {self.chunk_rows}, below 1")

    def vocabulary(self, rows: int) -> int:
        """The columns that count, of a head with `rows` rows."""
        size = rows if self.vocab_size is None else self.vocab_size
        if not 1 <= size <= rows:
            raise RestrlError(f"vocab_size is {size}, not in 1 to {rows}, the rows of the head")
        return size


def flat_tokens(tokens: Tensor, of: Tensor, name: str) -> Tensor:
    """`[N]` int64 token ids on the device of `of` `[..., X]`, whose leading shape they must have."""
    if of.dim() not in (2, 3):
        raise RestrlError(f"{name} has shape {list(of.shape)}; it must be [N, X] or [B, T, X]")
    if not of.is_floating_point():
        raise RestrlError(f"{name} is {of.dtype}; it must be a floating-point tensor")
    if tokens.shape != of.shape[:-1]:
        raise RestrlError(
            f"tokens has shape {list(tokens.shape)} and {name} {list(of.shape)}; each row needs one token"
        )
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise RestrlError(f"tokens is {tokens.dtype}; token ids are integers")
    check_device(tokens, of, "tokens")
    return tokens.reshape(-1).long()


def check_device(tensor: Tensor, of: Tensor, name: str) -> None:
    """Raises RestrlError unless both are on one device."""
    if tensor.device != of.device:
        raise RestrlError(
            f"{name} is on {tensor.device} and what it belongs to on {of.device}; move one of them"
        )


def check_token_ids(tokens: Tensor, vocabulary: int) -> None:
    """Raises RestrlError for a token of a row that counts outside the vocabulary."""
    if not len(tokens):
        return
    low, high = torch.stack(tokens.aminmax()).tolist()
    if low < 0 or high >= vocabulary:
        raise RestrlError(
            f"token id {low if low < 0 else high} is not in the vocabulary of {vocabulary}; mask that row out"
        )


def live_rows(live: Tensor | None) -> Tensor | None:
    """Positions of the rows `[N]` that count; None: all of them."""
    if live is None:
        return None
    positions = live.nonzero()[:, 0]
    return None if len(positions) == len(live) else positions


def plan_for(hidden: Tensor, lm_head: Tensor, tokens: Tensor, live: Tensor | None, options: Options) -> Plan:
    """The plan of a call on flat `hidden` `[N, H]` and `tokens` `[N]`; `live` `[N]` bool or None."""
    options.check()
    if lm_head.dim() != 2 or lm_head.shape[1] != hidden.shape[1]:
        raise RestrlError(
            f"lm_head has shape {list(lm_head.shape)}; these hidden states need [V, {hidden.shape[1]}]"
        )
    check_device(lm_head, hidden, "lm_head")
    if options.bias is not None:
        if options.bias.shape != lm_head.shape[:1]:
            raise RestrlError(
                f"bias has shape {list(options.bias.shape)}; the head needs [{lm_head.shape[0]}]"
            )
        check_device(options.bias, hidden, "bias")
    dtype = matmul_dtype(hidden, lm_head)
    vocabulary = options.vocabulary(lm_head.shape[0])
    rows = live_rows(live)
    chosen = tokens if rows is None else tokens[rows]
    check_token_ids(chosen, vocabulary)
    backend = backend_for(options.backend, hidden)
    chunk = options.chunk_rows or backend.chunk_rows(len(chosen), vocabulary, hidden.shape[1], dtype)
    return Plan(
        chosen,
        rows,
        max(1, chunk),
        vocabulary,
        dtype,
        float(options.logit_scale),
        None if options.softcap is None else float(options.softcap),
        float(options.temperature),
        backend,
        backend is cpu,
    )


def matmul_dtype(hidden: Tensor, lm_head: Tensor) -> torch.dtype:
    """The dtype of the matmuls: autocast's, as for torch's own linear layers, or that of both tensors."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    if hidden.dtype != lm_head.dtype:
        raise RestrlError(
            f"hidden is {hidden.dtype} and lm_head {lm_head.dtype}; convert one, or use torch.autocast"
        )
    if hidden.dtype not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        raise RestrlError(f"hidden is {hidden.dtype}; there are bfloat16, float16, float32 and float64")
    return hidden.dtype


def scatter(values: Tensor | None, live: Tensor | None, like: Tensor) -> Tensor | None:
    """`[n]` values of live rows in the shape of `like`, 0 at the others."""
    if values is None or live is None:
        return None if values is None else values.reshape(like.shape)
    return values.new_zeros(like.numel()).index_copy(0, live, values).reshape(like.shape)
