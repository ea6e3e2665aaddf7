"""Cases of value_score and their formula in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from restrl.ops.value import value_score

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ("torch", "triton")
NORMS = (None, "rms", "layer")
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")
on_cpu = pytest.mark.skipif(DEVICE == "cuda", reason="the CPU's behaviour")

VALUE = 1e-5  # absolute, whatever the dtype of the states: sums are in float32
STATE_GRADIENT = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # relative norm, as stored
WEIGHT_GRADIENT = 5e-6

MIXED = (5, 0, 3, 5, 11, 3, 3, 7)  # unsorted, with repeats


class Case:
    """Tensors of one call, and the same in float64 for the formula."""

    def __init__(
        self,
        shape: tuple[int, ...],
        norm: str | None,
        dtype: torch.dtype = torch.float32,
        *,
        seed: int = 0,
        scale: float = 1.0,
        shift: float = 0.3,
        offset: float = 0.0,
        device: str = DEVICE,
    ) -> None:
        draw = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=draw)

        width = shape[-1]
        self.norm, self.offset = norm, offset
        self.hidden = ((normal(*shape) + shift) * scale).to(dtype).to(device)
        head = 0.3 / width**0.5 if norm else 0.3 / width**0.5 / scale
        self.weight = (normal(width) * head).to(device)
        self.bias = torch.tensor([0.4], device=device)
        self.norm_weight = normal(width).to(device) if norm else None
        self.norm_bias = normal(width).to(device) if norm == "layer" else None

    @property
    def tensors(self) -> list[Tensor]:
        every = (self.hidden, self.weight, self.bias, self.norm_weight, self.norm_bias)
        return [t for t in every if t is not None]

    def score(self, index: Any, **options: Any) -> Tensor:
        return value_score(
            self.hidden,
            index,
            self.weight,
            self.bias,
            norm=self.norm,
            norm_weight=self.norm_weight,
            norm_bias=self.norm_bias,
            norm_offset=self.offset,
            **options,
        )

    def exact(self) -> Case:
        """The same in float64, on the CPU."""
        twin = object.__new__(Case)
        twin.norm, twin.offset = self.norm, self.offset
        for name in ("hidden", "weight", "bias", "norm_weight", "norm_bias"):
            tensor = getattr(self, name)
            setattr(twin, name, None if tensor is None else tensor.detach().cpu().double())
        return twin

    def formula(self, flat: Tensor, clamp: tuple[float, float] | None = (0.0, 1.0)) -> Tensor:
        """As it is written: norm, head, bias, clamp of the rows `flat`."""
        x = self.hidden.reshape(-1, self.hidden.shape[-1])[flat]
        if self.norm == "layer":
            x = x - x.mean(-1, keepdim=True)
        if self.norm is not None:
            x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            assert self.norm_weight is not None
            x = x * (self.norm_weight + self.offset)
        if self.norm_bias is not None:
            x = x + self.norm_bias
        score = x @ self.weight + self.bias
        return score if clamp is None else score.clamp(*clamp)


def compare(case: Case, index: Any, flat: Tensor, dtype: torch.dtype, **options: Any) -> None:
    """Values and all gradients of the call with the formula's."""
    flat = flat.cpu().long()
    upstream = torch.linspace(-1, 2, len(flat))
    for tensor in case.tensors:
        tensor.requires_grad_()
    got = case.score(index, **options)
    assert got.dtype == torch.float32
    got.backward(upstream.to(got.device))
    exact = case.exact()
    for tensor in exact.tensors:
        tensor.requires_grad_()
    want = exact.formula(flat, options.get("clamp", (0.0, 1.0)))
    want.backward(upstream.double())
    torch.testing.assert_close(got.detach().cpu().double(), want.detach(), atol=VALUE, rtol=0)
    for mine, true in zip(case.tensors, exact.tensors, strict=True):
        assert mine.grad is not None
        assert true.grad is not None
        assert mine.grad.shape == mine.shape
        assert mine.grad.dtype == mine.dtype
        error = (mine.grad.cpu().double() - true.grad).norm() / true.grad.norm().clamp(min=1e-12)
        limit = STATE_GRADIENT[dtype] if mine is case.hidden else WEIGHT_GRADIENT
        assert error <= limit, (list(mine.shape), float(error))


def flat_index(*rows: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(rows, dtype=dtype, device=DEVICE)
