"""Batched scoring of states by a scalar head: rows gathered, normed, scored and clamped in one read.

    score_m = clamp( norm(x_m) . v + b ),   x_m = the hidden state at row m of the index

A value model reads one state per line end and not all tokens, so the final norm and the head run on the rows
that are read alone. All is computed in float32 whatever the dtype of the states, with the norm's weight
folded into the head; a row that is not read may hold anything, and none of it reaches the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from restrl.errors import RestrlError
from restrl.ops import cpu, value_torch
from restrl.ops.arguments import BackendName, backend_for
from restrl.ops.value_torch import Checked, Head, How, Result, Rows, gain, math_dtype

Norm = Literal["rms", "layer"]

_FOLD_ROWS = 4096  # of the language-model head, in float64 at a time


@dataclass(frozen=True)
class LineEnds:
    """Line ends in packed sequences: end m is token `position[m]` of sequence `sequence[m]`.

    cu_seqlens  `[S + 1]` rows where the sequences start in the packed states, and the end of the last one
    sequence, position  `[M]`; all of them integers of 32 or 64 bits
    """

    cu_seqlens: Tensor
    sequence: Tensor
    position: Tensor

    @classmethod
    def of(cls, cu_seqlens: Tensor, ends: Sequence[Sequence[int]]) -> LineEnds:
        """`ends[s]`: the positions to read in sequence s. Raises RestrlError if there are more or fewer
        sequences than cu_seqlens has."""
        if len(ends) != cu_seqlens.numel() - 1:
            raise RestrlError(
                f"LineEnds: ends of {len(ends)} sequences, but cu_seqlens has {cu_seqlens.numel() - 1}"
            )
        sequence = torch.tensor([s for s, own in enumerate(ends) for _ in own], dtype=torch.int64)
        position = torch.tensor([p for own in ends for p in own], dtype=torch.int64)
        return cls(cu_seqlens, sequence.to(cu_seqlens.device), position.to(cu_seqlens.device))


Index = Tensor | tuple[Tensor, Tensor] | LineEnds


class ScalarHead(NamedTuple):
    """A head on hidden states: `weight` `[H]` and `bias` `[1]`, as `value_score` takes them."""

    weight: Tensor
    bias: Tensor


def value_score(
    hidden: Tensor,
    index: Index,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-6,
    norm_offset: float = 0.0,
    clamp: tuple[float, float] | None = (0.0, 1.0),
    backend: BackendName = "auto",
) -> Tensor:
    """Scores `[M]` float32 of the rows of `hidden` that `index` names, in its order; differentiable.

    hidden    `[N, H]` or `[B, T, H]` states, bfloat16, float16 or float32, of any strides; before the final
              norm if `norm` is given, after it if not. float64 gives float64 (by torch alone)
    index     rows `[M]` (of `[B, T, H]`: b * T + t), a pair (row `[M]`, position `[M]`) for `[B, T, H]`, or
              LineEnds for packed `[N, H]`; int32 or int64, in any order, repeated or empty
    weight    `[H]` or `[1, H]`, v; bias one element, b
    norm      "rms": x rsqrt(mean x^2 + eps) * (norm_offset + norm_weight); norm_offset is 1 in Gemma.
              "layer": (x - mean x) rsqrt(var x + eps) * norm_weight + norm_bias. Both weights are optional
    clamp     (low, high) or None. Where it holds the gradient is 0; at the bounds themselves it passes, as in
              torch.clamp. NaN stays NaN
    backend   "auto" is "triton" on CUDA devices and "torch" elsewhere

    The sums run in float32, so the scores are closer to the exact ones than transformers' are in half
    precision, which rounds the normed state and the product. Squares of states past 1e19 overflow. Equal
    inputs give equal bits, gradients too: repeats of a row are added in a fixed order.

    Raises RestrlError for shapes, dtypes, devices and options that do not fit, and on the CPU for an index
    out of range. On a GPU nothing waits to look: the score of a row that does not exist is NaN, it is not
    read, and it has no part in the gradients.
    """
    _check(hidden, weight, bias, norm, norm_weight, norm_bias, norm_offset, clamp)
    named = _rows(hidden, index)
    rows: Rows | Checked = named
    chosen = "torch" if backend_for(backend, hidden) is cpu else "triton"
    if hidden.device.type == "cpu":
        known = value_torch.checked(hidden, named)
        rows = known if chosen == "torch" else named
    bounds = None if clamp is None else (float(clamp[0]), float(clamp[1]))
    how = How(norm, float(eps), float(norm_offset), bounds)
    tensors = (hidden, weight, bias, norm_weight, norm_bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        score: Tensor = _ValueScore.apply(*tensors, rows, how, chosen)
        return score
    return _forward(hidden, rows, _head(*tensors[1:]), how, chosen, gradients=False).score


def fold_scalar_head(
    lm_head: Tensor,
    scorer_weight: Tensor,
    bias: Tensor | None = None,
    *,
    lm_head_bias: Tensor | None = None,
    logit_scale: float = 1.0,
) -> ScalarHead:
    """The head on hidden states that equals a Linear(vocab, 1) on the logits of a position.

    lm_head `[V, H]`, scorer_weight `[1, V]` or `[V]`, bias `[1]` of that Linear, lm_head_bias `[V]`:
    w . ((W h + c) s) + b = (s W^T w) . h + (b + s c . w). Summed in float64, returned in float32.

    The states are those that the language-model head reads: after the final norm. Logits that are capped
    (tanh) cannot be folded. Raises RestrlError for shapes that do not fit.
    """
    vocab = lm_head.shape[0]
    for name, tensor in (("scorer_weight", scorer_weight), ("lm_head_bias", lm_head_bias)):
        if tensor is not None and tensor.numel() != vocab:
            raise RestrlError(
                f"fold_scalar_head: {name} has {tensor.numel()} elements, the vocabulary {vocab}"
            )
    if bias is not None and bias.numel() != 1:
        raise RestrlError(f"fold_scalar_head: bias has {bias.numel()} elements instead of one")
    with torch.no_grad():
        w = scorer_weight.reshape(-1).double() * logit_scale
        folded = w.new_zeros(lm_head.shape[1])
        for at in range(0, vocab, _FOLD_ROWS):
            folded += w[at : at + _FOLD_ROWS] @ lm_head[at : at + _FOLD_ROWS].double()
        shift = w.new_zeros(1) if bias is None else bias.reshape(1).double()
        if lm_head_bias is not None:
            shift = shift + lm_head_bias.double() @ w
    return ScalarHead(folded.float(), shift.float())


# ---- checks


def _check(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: str | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_offset: float,
    clamp: tuple[float, float] | None,
) -> None:
    """Raises RestrlError for what cannot be scored."""
    if hidden.dim() not in (2, 3) or not hidden.is_floating_point():
        raise RestrlError(
            f"value_score: hidden must be floating point [N, H] or [B, T, H], not {hidden.dtype} "
            f"{list(hidden.shape)}"
        )
    width = hidden.shape[-1]
    if width == 0:
        raise RestrlError("value_score: hidden has no columns")
    sized = (("weight", weight, width), ("bias", bias, 1), ("norm_weight", norm_weight, width))
    for name, tensor, size in (*sized, ("norm_bias", norm_bias, width)):
        if tensor is not None and tensor.numel() != size:
            raise RestrlError(
                f"value_score: {name} has {tensor.numel()} elements instead of {size} (hidden is "
                f"{list(hidden.shape)})"
            )
        if tensor is not None and tensor.device != hidden.device:
            raise RestrlError(f"value_score: {name} is on {tensor.device}, hidden on {hidden.device}")
    if norm not in (None, "rms", "layer"):
        raise RestrlError(f'value_score: norm must be None, "rms" or "layer", not {norm!r}')
    if norm is None and (norm_weight is not None or norm_bias is not None):
        raise RestrlError('value_score: a norm\'s weight or bias needs norm="rms" or norm="layer"')
    if norm != "layer" and norm_bias is not None:
        raise RestrlError('value_score: norm_bias needs norm="layer"; an RMS norm has none')
    if norm_offset != 0 and norm_weight is None:
        raise RestrlError("value_score: norm_offset is added to norm_weight, which is missing")
    if clamp is not None and not clamp[0] <= clamp[1]:
        raise RestrlError(f"value_score: clamp must be (low, high) with low <= high, not {clamp}")


def _rows(hidden: Tensor, index: Index) -> Rows:
    """Raises RestrlError for an index that does not fit the states."""
    if isinstance(index, LineEnds):
        if hidden.dim() != 2:
            raise RestrlError(
                f"value_score: LineEnds are of packed [N, H] states, hidden is {list(hidden.shape)}"
            )
        rows = Rows(index.sequence, index.position, index.cu_seqlens)
    elif isinstance(index, tuple):
        if hidden.dim() != 3 or len(index) != 2:
            raise RestrlError(
                "value_score: an index of pairs is (row [M], position [M]) of [B, T, H] states, hidden is "
                f"{list(hidden.shape)}"
            )
        rows = Rows(*index)
    else:
        rows = Rows(index)
    for tensor in rows:
        if tensor is not None and (
            tensor.dtype not in (torch.int32, torch.int64)
            or tensor.dim() != 1
            or tensor.device != hidden.device
        ):
            raise RestrlError(
                f"value_score: an index must be int32 or int64 [M] on {hidden.device}, not {tensor.dtype} "
                f"{list(tensor.shape)} on {tensor.device}"
            )
    if rows.second is not None and rows.first.shape != rows.second.shape:
        raise RestrlError(
            f"value_score: {rows.first.numel()} rows or sequences, but {rows.second.numel()} positions"
        )
    if rows.starts is not None and rows.starts.numel() == 0:
        raise RestrlError("value_score: cu_seqlens is empty; it begins with 0 even without sequences")
    if rows.first.numel() and not hidden.shape[:-1].numel():
        raise RestrlError(f"value_score: {rows.first.numel()} rows of hidden states that have none")
    first, second, starts = (None if t is None else t.contiguous() for t in rows)
    assert first is not None
    return Rows(first, second, starts)


# ---- one forward and one backward pass


def _head(weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None) -> Head:
    def plain(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().reshape(-1).contiguous()

    return Head(weight.detach().reshape(-1).contiguous(), plain(bias), plain(norm_weight), plain(norm_bias))


def _forward(
    hidden: Tensor, rows: Rows | Checked, head: Head, how: How, backend: str, *, gradients: bool
) -> Result:
    if backend == "triton":
        import restrl.kernels.value_score as kernels

        return Result(*kernels.forward(hidden.detach(), rows, head, how, gradients=gradients))
    if not torch.is_autocast_enabled(hidden.device.type):  # to switch it off takes a while
        return value_torch.forward(hidden.detach(), rows, head, how, gradients=gradients)
    with torch.autocast(hidden.device.type, enabled=False):  # it would round the sums
        return value_torch.forward(hidden.detach(), rows, head, how, gradients=gradients)


def _backward(backend: str) -> Callable[..., tuple[Tensor | None, Tensor | None]]:
    if backend == "triton":
        import restrl.kernels.value_score as kernels

        return kernels.backward
    return value_torch.backward


class _ValueScore(torch.autograd.Function):
    """With x_hat the normed row without weights: score = x_hat . (gain v) + norm_bias . v + b."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        rows: Rows | Checked,
        how: How,
        backend: str,
    ) -> Tensor:
        head = _head(weight, bias, norm_weight, norm_bias)
        score, keys, saved = _forward(hidden, rows, head, how, backend, gradients=True)
        ctx.how, ctx.backend = how, backend
        ctx.save_for_backward(hidden, weight, bias, norm_weight, norm_bias, keys, saved)
        return score

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *weights, keys, saved = ctx.saved_tensors
        head, how = _head(*weights), ctx.how
        backward = _backward(ctx.backend)
        for_hidden, for_weight, for_bias, for_norm_weight, for_norm_bias = ctx.needs_input_grad[:5]
        v = head.weight.to(math_dtype(hidden))
        g = gain(head, how)
        passes = keys >= 0
        if how.clamp is not None:
            passes &= (saved[3] >= how.clamp[0]) & (saved[3] <= how.clamp[1])
        d_score = torch.where(passes, grad.to(v.dtype), 0.0)
        with torch.autocast(hidden.device.type, enabled=False):
            d_hidden, d_u = backward(
                d_score,
                hidden,
                keys,
                saved,
                v * g,
                how.norm,
                d_hidden=for_hidden,
                d_head=for_weight or for_norm_weight,
            )
        total = d_score.sum()
        out: list[Tensor | None] = [None, total if for_bias else None, None, None]
        if d_u is not None and for_weight:
            out[0] = d_u * g if head.norm_bias is None else d_u * g + head.norm_bias.to(v) * total
        if d_u is not None and for_norm_weight:
            out[2] = d_u * v
        if for_norm_bias:
            out[3] = v * total
        own = (
            None if gradient is None else gradient.to(tensor.dtype).reshape(tensor.shape)
            for gradient, tensor in zip(out, weights, strict=True)
        )
        return d_hidden, *own, None, None, None
