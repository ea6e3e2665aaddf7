"""The three matmuls of a chunk in plain torch: logits, and the gradients of hidden states and weight.

The gradient of the logits comes without the factor `scale` `[C, 1]` of its rows, which goes on the `H`-wide
side (dX = s (D W), dW += D^T (s X)), never on `[C, V]`. Which of the three classes computes depends on the
dtype and on what the device multiplies:

    Plain    float32 and float64
    Rounded  bfloat16 where the device has such products: torch stores their results in 16 bits
    Widened  16 bits elsewhere, float16 always: in float32, a tile of the weight converted at a time
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from restrl.ops.cpu_rows import accumulator

FEW_ROWS = 128  # of hidden states that are held in float32 at a time
TILE_ROWS = 2048  # of the weight gradient that a bfloat16 matmul makes at a time
TILE_ELEMENTS = 1 << 18  # of the weight that is held in float32 at a time: a megabyte


class Products(Protocol):
    """Of one call. `dtype` is that of the buffer of logits."""

    dtype: torch.dtype

    def logits(self, hidden: Tensor, tokens: Tensor, buffer: Tensor) -> Tensor | None:
        """Raw logits of `hidden` `[C, H]` into the buffer `[C, V]`; and `[C]` float32 what was subtracted
        from a row of them, None: nothing.
        """

    def own(self, rows: Tensor, columns: Tensor) -> Tensor:
        """`[n]` raw logits of these rows of the chunk at these columns, in the accumulator's dtype."""

    def gradients(
        self, d: Tensor, scale: Tensor, d_hidden: Tensor | None, d_weight: Tensor | None, first: bool
    ) -> None:
        """See rows.Chunks.backward; `d` `[C, V]` lacks the factor `scale` `[C, 1]` of its rows."""


def products(weight: Tensor) -> Products:
    """For the head's weight `[V, H]`."""
    if weight.dtype == accumulator(weight.dtype):
        return Plain(weight)
    return Rounded(weight) if multiplies(weight.dtype, weight.device) else Widened(weight)


def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether 16-bit matrices are multiplied as such: on a CPU without the instructions torch has a loop that
    takes ten times as long as float32's product. float16's range is too small for gradients of logits.
    """
    if dtype != torch.bfloat16 or device.type != "cpu":
        return dtype == torch.bfloat16
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def buffer_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Of the logits, for matmuls of `dtype`."""
    return dtype if multiplies(dtype, device) else accumulator(dtype)


class Plain:
    """float32 and float64."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.dtype = weight, weight.dtype

    def logits(self, hidden: Tensor, tokens: Tensor, buffer: Tensor) -> None:
        self.hidden = hidden
        torch.mm(hidden, self.weight.T, out=buffer)

    def own(self, rows: Tensor, columns: Tensor) -> Tensor:
        return (self.hidden[rows] * self.weight[columns]).sum(1)

    def gradients(
        self, d: Tensor, scale: Tensor, d_hidden: Tensor | None, d_weight: Tensor | None, first: bool
    ) -> None:
        if d_weight is not None:
            scaled = torch.mul(self.hidden, scale, out=d_hidden)  # whose memory is free until the next lines
            d_weight.addmm_(d.T, scaled, beta=0 if first else 1)
        if d_hidden is not None:
            torch.mm(d, self.weight, out=d_hidden).mul_(scale)


class Rounded:
    """bfloat16 products, whose results are bfloat16. Logits are taken relative to the token's own, which a
    float32 dot product gives: what rounding there is, is relative to the distance from the token's logit.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.dtype = weight, weight.dtype

    def logits(self, hidden: Tensor, tokens: Tensor, buffer: Tensor) -> Tensor:
        self.hidden = hidden
        rows = torch.arange(len(tokens), device=tokens.device)
        own = torch.cat(
            [self.own(r, y) for r, y in zip(rows.split(FEW_ROWS), tokens.split(FEW_ROWS), strict=True)]
        )
        subtracted = own.to(buffer.dtype)  # the very number: the matmul adds its float32 sums to it
        buffer.copy_(subtracted.neg()[:, None].expand_as(buffer))
        torch.addmm(buffer, hidden, self.weight.T, out=buffer)
        return subtracted.float()

    def own(self, rows: Tensor, columns: Tensor) -> Tensor:
        return (self.hidden[rows].float() * self.weight[columns].float()).sum(1)

    def gradients(
        self, d: Tensor, scale: Tensor, d_hidden: Tensor | None, d_weight: Tensor | None, first: bool
    ) -> None:
        if d_weight is not None:
            scaled = torch.empty_like(self.hidden) if d_hidden is None else d_hidden
            for x, s, out in zip(*(t.split(FEW_ROWS) for t in (self.hidden, scale, scaled)), strict=True):
                out.copy_(x * s)
            self._weight(d, scaled, d_weight, first)
        if d_hidden is not None:
            torch.mm(d, self.weight, out=d_hidden).mul_(scale)

    def _weight(self, d: Tensor, scaled: Tensor, d_weight: Tensor, first: bool) -> None:
        if d_weight.dtype == d.dtype:
            d_weight.addmm_(d.T, scaled, beta=0 if first else 1)
            return
        tile = scaled.new_empty(min(TILE_ROWS, d_weight.shape[0]), d_weight.shape[1])
        for out, columns in zip(d_weight.split(TILE_ROWS), d.split(TILE_ROWS, dim=1), strict=True):
            product = torch.mm(columns.T, scaled, out=tile[: len(out)])
            if first:
                out.copy_(product)
            else:
                out.add_(product)


class Widened:
    """16-bit inputs, float32 arithmetic: logits and their gradients are not rounded at all."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.dtype = weight, torch.float32
        rows = max(1, min(weight.shape[0], TILE_ELEMENTS // max(1, weight.shape[1])))
        self.tile = weight.new_empty(rows, weight.shape[1], dtype=torch.float32)

    def _tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows of the weight, and what they hold in float32 until the next tile."""
        step = len(self.tile)
        for start in range(0, self.weight.shape[0], step):
            rows = slice(start, min(start + step, self.weight.shape[0]))
            yield rows, self.tile[: rows.stop - start].copy_(self.weight[rows])

    def logits(self, hidden: Tensor, tokens: Tensor, buffer: Tensor) -> None:
        self.hidden = hidden.float()
        for rows, tile in self._tiles():
            torch.mm(self.hidden, tile.T, out=buffer[:, rows])

    def own(self, rows: Tensor, columns: Tensor) -> Tensor:
        return (self.hidden[rows] * self.weight[columns].float()).sum(1)

    def gradients(
        self, d: Tensor, scale: Tensor, d_hidden: Tensor | None, d_weight: Tensor | None, first: bool
    ) -> None:
        if d_weight is not None:
            scaled = self.hidden.mul_(scale)
            if d_weight.dtype == d.dtype:
                d_weight.addmm_(d.T, scaled, beta=0 if first else 1)
            else:
                step = len(self.tile)
                for out, columns in zip(d_weight.split(step), d.split(step, dim=1), strict=True):
                    out.copy_(torch.mm(columns.T, scaled, out=self.tile[: len(out)]))
        if d_hidden is not None:
            total = self.hidden  # spent: its memory serves for the sum over tiles
            for rows, tile in self._tiles():
                total.addmm_(d[:, rows], tile, beta=1 if rows.start else 0)
            d_hidden.copy_(total.mul_(scale))
