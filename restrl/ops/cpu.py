"""The rows of rows.py in plain torch: the CPU path, and the one of any device without kernels.

What makes it fast on a CPU: one reused buffer; rows are normalised in blocks that stay in the cache; the
per-row scale goes on the `H`-wide side (dX = s (P W), dW += P^T (s X)), never on `[C, V]`.

bfloat16 hidden states have bfloat16 matmuls, whose results torch can only store as bfloat16. Logits are
therefore taken relative to the token's own, which a float32 dot product gives: what rounding there is, is
relative to the distance from the token's logit. All else is float32. float16 is computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from restrl.ops.rows import Chunks, Head, LogitRows, RowStatistics, TokenInputs
from restrl.reference.derivatives import TokenGradients, token_gradients
from restrl.reference.spec import LossSpec

__all__ = ["chunk_rows", "chunks", "logit_rows", "scale_", "token_gradients"]

BLOCK_ELEMENTS = 1 << 17  # of float32 scratch: half a megabyte, which a core's second-level cache holds
TILE_ROWS = 2048  # of the weight gradient that a bfloat16 matmul makes at a time
NEVER = -1e30  # stands for a logit of -inf where it is multiplied by its probability 0


def chunk_rows(rows: int, vocabulary: int, hidden: int, dtype_bytes: int) -> int:
    """The default capacity of the buffer: each chunk reads and writes the weight gradient once more."""
    return min(rows, 512)


def chunks(head: Head, rows: int, gradients: bool) -> Chunks:
    """See rows.Backend."""
    return CpuChunks(head, rows)


def logit_rows(logit_scale: float, softcap: float | None, temperature: float) -> LogitRows:
    """See rows.Backend."""
    return CpuLogitRows(Shape(None, logit_scale, softcap, temperature))


def scale_(gradient: Tensor, factor: Tensor) -> None:
    """See rows.Backend."""
    if factor.is_cuda or float(factor) != 1:  # looking at it would make the host wait for a GPU
        gradient.mul_(factor)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """float32 for every dtype but float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Shape(NamedTuple):
    """What turns raw logits x into z = cap((x + bias) * logit_scale) / temperature."""

    bias: Tensor | None
    logit_scale: float
    softcap: float | None
    temperature: float

    @property
    def slope(self) -> float:
        """dz/dx where there is no cap."""
        return self.logit_scale / self.temperature

    def apply_(self, x: Tensor) -> None:
        """x becomes z."""
        if self.bias is not None:
            x.add_(self.bias)
        if self.softcap is None:
            if self.slope != 1:
                x.mul_(self.slope)
            return
        x.mul_(self.logit_scale / self.softcap).tanh_().mul_(self.softcap / self.temperature)

    def cap_slope_(self, z: Tensor) -> Tensor:
        """z becomes cap'(x) = 1 - tanh^2. Any z of a probability 0 does: what it multiplies is 0."""
        assert self.softcap is not None
        return z.mul_(self.temperature / self.softcap).clamp_(-1, 1).square_().neg_().add_(1)


class CpuChunks:
    """rows.Chunks. After `log_probs` the buffer holds the probabilities."""

    def __init__(self, head: Head, rows: int) -> None:
        self.weight = head.weight.float() if head.weight.dtype == torch.float16 else head.weight
        vocabulary, dtype = self.weight.shape[0], accumulator(self.weight.dtype)
        bias = None if head.bias is None else head.bias.to(dtype)
        self.shape = Shape(bias, head.logit_scale, head.softcap, head.temperature)
        self.rounded = self.weight.dtype != dtype  # matmuls store 16 bits
        self.masked = bias is not None and bool(bias.isneginf().any())
        self.buffer = self.weight.new_empty(rows, vocabulary)
        self.scratch = Scratch(vocabulary, dtype, self.weight.device)

    def log_probs(self, hidden: Tensor, tokens: Tensor, entropy: bool) -> RowStatistics:
        """See rows.Chunks."""
        self.hidden, self.tokens = hidden.to(self.weight.dtype), tokens
        buffer, own = self._matmul()
        results = []
        for rows in self.scratch.blocks(len(tokens)):
            part = buffer[rows]
            z = self.scratch.first(part) if self.rounded else part
            if own is not None and (self.shape.bias is not None or self.shape.softcap is not None):
                z.add_(own[rows])  # the others need no absolute logits
            self.shape.apply_(z)
            p, found = normalise(z, tokens[rows], entropy, self.masked, self.scratch)
            if p is not part:
                part.copy_(p)
            results.append(found)
        log_probs, entropies, self.log_normaliser = (
            torch.cat(columns) for columns in zip(*results, strict=True)
        )
        self.statistics = RowStatistics(log_probs, entropies if entropy else None)
        return self.statistics

    def _matmul(self) -> tuple[Tensor, Tensor | None]:
        """Raw logits; less those of the tokens themselves, `[C, 1]`, where the buffer has 16 bits."""
        buffer = self.buffer[: len(self.tokens)]
        if not self.rounded:
            torch.mm(self.hidden, self.weight.T, out=buffer)
            return buffer, None
        own = (self.hidden.float() * self.weight[self.tokens].float()).sum(1, keepdim=True)
        subtracted = own.to(buffer.dtype)
        buffer.copy_(subtracted.neg().expand_as(buffer))
        torch.addmm(buffer, self.hidden, self.weight.T, out=buffer)
        buffer.scatter_(1, self.tokens[:, None], (own - subtracted).to(buffer.dtype))
        return buffer, subtracted.float()

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
            of_token = self.statistics.log_probs.expm1()  # p - 1, without cancellation
            buffer.scatter_(1, self.tokens[:, None], of_token[:, None].to(buffer.dtype))
            scale = (g * -self.shape.slope)[:, None]
        else:
            self._logit_gradients(buffer, g, c)
            scale = torch.full_like(g, self.shape.slope)[:, None]
        if d_hidden is not None and d_hidden.dtype == buffer.dtype:
            torch.mm(buffer, self.weight, out=d_hidden).mul_(scale)
        elif d_hidden is not None:
            d_hidden.copy_(torch.mm(buffer, self.weight).mul_(scale))
        if d_weight is not None:
            self._weight_gradient(buffer, (self.hidden * scale).to(buffer.dtype), d_weight, first)
        if d_bias is not None:
            if first:
                d_bias.zero_()
            for rows in self.scratch.blocks(len(g)):
                part = self.scratch.first(buffer[rows]) if self.rounded else buffer[rows]
                d_bias.addmv_(part.T, scale[rows, 0])

    def _logit_gradients(self, buffer: Tensor, g: Tensor, c: Tensor | None) -> None:
        """The buffer's probabilities become dloss/dz, times the slope of the cap."""
        for rows in self.scratch.blocks(len(g)):
            part = buffer[rows]
            p = self.scratch.first(part) if self.rounded else part
            log_p = torch.log(p, out=self.scratch.second(p))
            dz = logit_gradient(
                p,
                log_p,
                self.tokens[rows],
                RowStatistics(*(None if x is None else x[rows] for x in self.statistics)),  # type: ignore[arg-type]
                self.log_normaliser[rows],
                g[rows],
                None if c is None else c[rows],
                self.shape,
            )
            if dz is not part:
                part.copy_(dz)

    def _weight_gradient(self, buffer: Tensor, scaled: Tensor, d_weight: Tensor, first: bool) -> None:
        if not self.rounded:
            d_weight.addmm_(buffer.T, scaled, beta=0 if first else 1)
            return
        tile = scaled.new_empty(min(TILE_ROWS, d_weight.shape[0]), d_weight.shape[1])
        for out, columns in zip(d_weight.split(TILE_ROWS), buffer.split(TILE_ROWS, dim=1), strict=True):
            product = torch.mm(columns.T, scaled, out=tile[: len(out)])
            if first:
                out.copy_(product)
            else:
                out.add_(product)


class CpuLogitRows:
    """rows.LogitRows."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def log_probs(self, logits: Tensor, tokens: Tensor, entropy: bool) -> tuple[RowStatistics, Tensor]:
        """See rows.LogitRows."""
        dtype = accumulator(logits.dtype)
        scratch = Scratch(logits.shape[1], dtype, logits.device)
        columns = torch.zeros(3, len(tokens), dtype=dtype, device=logits.device)
        live = (tokens >= 0).nonzero()[:, 0]
        for rows in scratch.blocks(len(live)):
            number = live[rows]
            z = scratch.gather(logits, number)
            self.shape.apply_(z)
            _, found = normalise(z, tokens[number], entropy, True, scratch)
            columns[:, number] = torch.stack(found)
        return RowStatistics(columns[0], columns[1] if entropy else None), columns[2]

    def backward(
        self,
        logits: Tensor,
        tokens: Tensor,
        statistics: RowStatistics,
        log_normaliser: Tensor,
        g: Tensor,
        c: Tensor | None,
        d_logits: Tensor,
    ) -> None:
        """See rows.LogitRows."""
        scratch = Scratch(logits.shape[1], g.dtype, logits.device)
        moved = (g != 0) if c is None else (g != 0) | (c != 0)
        moved &= tokens >= 0
        live = moved.nonzero()[:, 0]
        for rows in scratch.blocks(len(live)):
            number = live[rows]
            z = scratch.gather(logits, number)
            self.shape.apply_(z)
            log_p = z.sub_(log_normaliser[number][:, None])
            dz = logit_gradient(
                torch.exp(log_p, out=scratch.second(log_p)),
                log_p,
                tokens[number],
                RowStatistics(*(None if x is None else x[number] for x in statistics)),  # type: ignore[arg-type]
                log_normaliser[number],
                g[number],
                None if c is None else c[number],
                self.shape,
            )
            d_logits[number] = dz.mul_(self.shape.slope).to(d_logits.dtype)
        d_logits[~moved] = 0

    def one_shot(
        self,
        logits: Tensor,
        tokens: Tensor,
        inputs: TokenInputs,
        spec: LossSpec,
        entropy: bool,
        d_logits: Tensor,
    ) -> tuple[RowStatistics, TokenGradients] | None:
        """Not offered."""
        return None


class Scratch:
    """Two blocks of rows that stay in the cache."""

    def __init__(self, vocabulary: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows = max(1, BLOCK_ELEMENTS // max(1, vocabulary))
        self.pair = torch.empty(2, self.rows, vocabulary, dtype=dtype, device=device)

    def blocks(self, count: int) -> Iterator[slice]:
        """Slices of up to `rows` rows that cover `count`."""
        return (slice(start, min(start + self.rows, count)) for start in range(0, count, self.rows))

    def first(self, part: Tensor) -> Tensor:
        """`part` in the first block."""
        return self.pair[0, : len(part)].copy_(part)

    def second(self, part: Tensor) -> Tensor:
        """The second block, as large as `part`."""
        return self.pair[1, : len(part)]

    def gather(self, source: Tensor, rows: Tensor) -> Tensor:
        """Those rows of `source` in the first block."""
        if source.dtype == self.pair.dtype:
            return torch.index_select(source, 0, rows, out=self.pair[0, : len(rows)])
        return self.first(source.index_select(0, rows))


def normalise(
    z: Tensor, tokens: Tensor, entropy: bool, masked: bool, scratch: Scratch
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """softmax(z), and log-probs of the tokens, entropies (0 unless asked for) and log sum exp z. Spends z.

    masked  logits of -inf may occur
    """
    largest = z.amax(1, keepdim=True)
    z.sub_(largest)
    of_token = z.gather(1, tokens[:, None])[:, 0]
    if entropy and masked:
        z.clamp_(min=NEVER)
    p = torch.softmax(z, 1, out=scratch.second(z) if entropy else z)
    log_sum = p.amax(1).log_().neg_()  # the largest p is 1 / sum
    entropies = log_sum - torch.linalg.vecdot(p, z) if entropy else torch.zeros_like(log_sum)
    return p, (of_token - log_sum, entropies, log_sum + largest[:, 0])


def logit_gradient(
    p: Tensor,
    log_p: Tensor,
    tokens: Tensor,
    statistics: RowStatistics,
    log_normaliser: Tensor,
    g: Tensor,
    c: Tensor | None,
    shape: Shape,
) -> Tensor:
    """g (onehot - p) - c p (log p + entropy), times the slope of the cap; takes the place of p, spends log p."""
    log_prob, entropies = statistics
    of_token = -g * log_prob.expm1()
    log_p.clamp_(min=NEVER)
    if c is None:
        p.mul_(-g[:, None])
    else:
        assert entropies is not None
        of_token -= c * log_prob.exp() * (log_prob + entropies)
        p.mul_(torch.addcmul((g + c * entropies)[:, None], c[:, None], log_p).neg_())
    if shape.softcap is not None:
        p.mul_(shape.cap_slope_(log_p.add_(log_normaliser[:, None])))
        of_token *= shape.cap_slope_(log_prob + log_normaliser)
    return p.scatter_(1, tokens[:, None], of_token[:, None])
