"""The rows of rows.py in plain torch: the CPU path, and the one of any device without kernels.

What makes it fast on a CPU: one reused buffer; rows are normalised in place, or in blocks that stay in the
cache; the per-row scale goes on the `H`-wide side of the matmuls (cpu_products.py). All is float32 but the
products of bfloat16 on CPUs that have them, and float64 where the inputs are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from restrl.ops.cpu_logits import CpuLogitRows
from restrl.ops.cpu_products import buffer_dtype, products
from restrl.ops.cpu_rows import (
    Normalised,
    Scratch,
    Shape,
    accumulator,
    conclude,
    logit_gradient,
    normalise,
    put_,
    softmax,
)
from restrl.ops.rows import Chunks, Head, LogitRows, RowStatistics
from restrl.reference.advantages import Scale, advantages_by_group
from restrl.reference.derivatives import token_gradients

__all__ = ["chunk_rows", "chunks", "grouped_advantages", "logit_rows", "scale_", "token_gradients"]

CHUNK_ROWS = 512  # of float32; twice as many of 16 bits take the same memory


def chunk_rows(rows: int, vocabulary: int, hidden: int, dtype: torch.dtype) -> int:
    """The default capacity: each chunk reads and writes the weight gradient (float32) once more."""
    size = buffer_dtype(dtype, torch.device("cpu")).itemsize
    return max(1, min(rows, CHUNK_ROWS if size > 2 else 2 * CHUNK_ROWS))


def grouped_advantages(rewards: Tensor, groups: Tensor, scale: Scale) -> Tensor:
    """See rows.Backend."""
    return advantages_by_group(rewards, groups, scale)


def chunks(head: Head, rows: int, gradients: bool) -> Chunks:
    """See rows.Backend."""
    return CpuChunks(head, rows, gradients)


def logit_rows(logit_scale: float, softcap: float | None, temperature: float) -> LogitRows:
    """See rows.Backend."""
    return CpuLogitRows(Shape(None, logit_scale, softcap, temperature))


def scale_(gradient: Tensor, factor: Tensor) -> None:
    """See rows.Backend."""
    if factor.is_cuda or float(factor) != 1:  # looking at it would make the host wait for a GPU
        gradient.mul_(factor)


class CpuChunks:
    """rows.Chunks. After `log_probs` the buffer holds the probabilities, if gradients are to come."""

    def __init__(self, head: Head, rows: int, gradients: bool) -> None:
        self.products, self.gradients = products(head.weight), gradients
        vocabulary, dtype = head.weight.shape[0], accumulator(head.weight.dtype)
        bias = None if head.bias is None else head.bias.to(dtype)
        self.shape = Shape(bias, head.logit_scale, head.softcap, head.temperature)
        self.masked = bias is not None and bool(bias.isneginf().any())
        self.buffer = head.weight.new_empty(rows, vocabulary, dtype=self.products.dtype)
        self.rounded = self.products.dtype != dtype  # matmuls store 16 bits
        self.scratch = Scratch(rows, vocabulary, dtype, head.weight.device)

    def log_probs(self, hidden: Tensor, tokens: Tensor, entropy: bool) -> RowStatistics:
        """See rows.Chunks."""
        self.tokens = tokens
        buffer = self.buffer[: len(tokens)]
        subtracted = self.products.logits(hidden, tokens, buffer)
        of_token = buffer.gather(1, tokens[:, None]).to(self.scratch.dtype)
        if subtracted is not None and not self.shape.shifts:
            of_token += subtracted[:, None]
        self.shape.apply_(of_token, tokens[:, None])
        if self.rounded:
            self.found = self._rounded(buffer, of_token[:, 0], subtracted, entropy)
        else:
            self.found = self._plain(buffer, of_token[:, 0], entropy)
        return self.found.statistics

    def _plain(self, buffer: Tensor, of_token: Tensor, entropy: bool) -> Normalised:
        """In the buffer; a block at a time only where entropies need a second one."""
        moments = buffer.new_empty(2, len(buffer), 1) if entropy else None
        for rows in self.scratch.blocks(len(buffer)) if entropy else [slice(0, len(buffer))]:
            z = buffer[rows]
            self.shape.apply_(z)
            away = self.scratch.block(0, len(z)) if entropy else None
            part = None if moments is None else moments[:, rows]
            softmax(z, z, away, self.masked, part, of_token[rows, None])
        return conclude(buffer, self.tokens, of_token, self._logits_at, moments)

    def _rounded(
        self, buffer: Tensor, of_token: Tensor, subtracted: Tensor | None, entropy: bool
    ) -> Normalised:
        """In scratch blocks of float32, rounded once into the buffer."""
        parts = []
        for rows in self.scratch.blocks(len(buffer)):
            z = self.scratch.first(buffer[rows])
            if subtracted is not None and not self.shape.shifts:
                z.add_(subtracted[rows, None])
            self.shape.apply_(z)
            p, away = (self.scratch.second(z), z) if entropy else (z, None)

            def at(found: Tensor, columns: Tensor, start: int = rows.start) -> Tensor:
                return self._logits_at(found + start, columns, subtracted)

            parts.append(normalise(z, p, self.tokens[rows], of_token[rows], at, away, self.masked))
            if self.gradients:
                buffer[rows].copy_(p)
        return Normalised.joined(parts, of_token)

    def _logits_at(self, rows: Tensor, columns: Tensor, subtracted: Tensor | None = None) -> Tensor:
        """Logits z `[n]`, relative to what the buffer's are relative to."""
        z = self.products.own(rows, columns)[:, None]
        if subtracted is not None and self.shape.shifts:
            z -= subtracted[rows, None]
        self.shape.apply_(z, columns[:, None])
        return z[:, 0]

    def backward(
        self,
        g: Tensor,
        c: Tensor | None,
        d_hidden: Tensor | None,
        d_weight: Tensor | None,
        d_bias: Tensor | None,
        first: bool,
    ) -> None:
        """See rows.Chunks."""
        buffer = self.buffer[: len(self.tokens)]
        if c is None and self.shape.softcap is None:
            put_(buffer, self.tokens, self.found.log_probs.expm1())  # p - 1, without cancellation
            scale = (g * -self.shape.slope)[:, None]
        else:
            self._logit_gradients(buffer, g, c)
            scale = torch.full_like(g, self.shape.slope)[:, None]
        if d_bias is not None:
            if first:
                d_bias.zero_()
            for rows in self.scratch.blocks(len(g)):
                part = self.scratch.first(buffer[rows]) if self.rounded else buffer[rows]
                d_bias.addmv_(part.T, scale[rows, 0])
        self.products.gradients(buffer, scale, d_hidden, d_weight, first)

    def _logit_gradients(self, buffer: Tensor, g: Tensor, c: Tensor | None) -> None:
        """The buffer's probabilities become dloss/dz, times the slope of the cap."""
        for rows in self.scratch.blocks(len(g)):
            part = buffer[rows]
            p = self.scratch.first(part) if self.rounded else part
            log_p = torch.log(
                p, out=self.scratch.second(p) if self.rounded else self.scratch.block(0, len(p))
            )
            found = self.found.map(lambda x, rows=rows: x[rows])  # type: ignore[misc]
            dz = logit_gradient(
                p, log_p, self.tokens[rows], found, g[rows], None if c is None else c[rows], self.shape
            )
            if dz is not part:
                part.copy_(dz)
