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
from restrl.reference.advantages import Scale, advantages_by_group
from restrl.reference.derivatives import TokenGradients, token_gradients
from restrl.reference.spec import LossSpec

__all__ = ["chunk_rows", "chunks", "grouped_advantages", "logit_rows", "scale_", "token_gradients"]

BLOCK_ELEMENTS = 1 << 17  # of float32 scratch: half a megabyte, which a core's second-level cache holds
CHUNK_ROWS = 512  # of float32; twice as many of 16 bits take the same memory
FEW_ROWS = 128  # of hidden states that are held in float32 at a time
TILE_ROWS = 2048  # of the weight gradient that a bfloat16 matmul makes at a time
NEVER = -1e30  # stands for a logit of -inf where it is multiplied by its probability 0


def chunk_rows(rows: int, vocabulary: int, hidden: int, dtype_bytes: int) -> int:
    """The default capacity: each chunk reads and writes the weight gradient (float32) once more."""
    return max(1, min(rows, CHUNK_ROWS if dtype_bytes > 2 else 2 * CHUNK_ROWS))


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

    def apply_(self, x: Tensor, columns: Tensor | None = None) -> None:
        """x becomes z; `columns` of the vocabulary, None: all."""
        if self.bias is not None:
            x.add_(self.bias if columns is None else self.bias[columns])
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
    """rows.Chunks. After `log_probs` the buffer holds the probabilities, if gradients are to come."""

    def __init__(self, head: Head, rows: int, gradients: bool) -> None:
        self.weight = head.weight.float() if head.weight.dtype == torch.float16 else head.weight
        self.gradients = gradients
        vocabulary, dtype = self.weight.shape[0], accumulator(self.weight.dtype)
        bias = None if head.bias is None else head.bias.to(dtype)
        self.shape = Shape(bias, head.logit_scale, head.softcap, head.temperature)
        self.rounded = self.weight.dtype != dtype  # matmuls store 16 bits
        self.masked = bias is not None and bool(bias.isneginf().any())
        self.buffer = self.weight.new_empty(rows, vocabulary)
        self.scratch = Scratch(rows, vocabulary, dtype, self.weight.device)

    def log_probs(self, hidden: Tensor, tokens: Tensor, entropy: bool) -> RowStatistics:
        """See rows.Chunks."""
        self.hidden, self.tokens = hidden.to(self.weight.dtype), tokens
        buffer, subtracted = self._matmul()
        if self.shape.bias is None and self.shape.softcap is None:
            subtracted = None  # softmax does not change when a constant is added to all logits of a row
        of_token = buffer.gather(1, tokens[:, None]).to(self.scratch.dtype)
        if subtracted is not None:
            of_token += subtracted
        self.shape.apply_(of_token, tokens[:, None])
        sums = Sums.empty(of_token)
        for rows in self.scratch.blocks(len(tokens)):
            part = buffer[rows]
            z = self.scratch.first(part) if self.rounded else part
            if subtracted is not None:
                z.add_(subtracted[rows])
            self.shape.apply_(z)
            p = softmax(z, rows, sums, entropy, self.masked, self.scratch)
            if p is not part and self.gradients:
                part.copy_(p)
        self.statistics, self.log_normaliser = sums.statistics(of_token, entropy)
        return self.statistics

    def _matmul(self) -> tuple[Tensor, Tensor | None]:
        """Raw logits in the buffer; and `[C, 1]` what was subtracted from a row of them: where the buffer has
        16 bits, the token's own.
        """
        buffer = self.buffer[: len(self.tokens)]
        if not self.rounded:
            torch.mm(self.hidden, self.weight.T, out=buffer)
            return buffer, None
        parts = zip(self.hidden.split(FEW_ROWS), self.tokens.split(FEW_ROWS), strict=True)
        own = torch.cat([(x.float() * self.weight[y].float()).sum(1, keepdim=True) for x, y in parts])
        subtracted = own.to(buffer.dtype)  # the very number: the matmul adds its float32 sums to it
        buffer.copy_(subtracted.neg().expand_as(buffer))
        torch.addmm(buffer, self.hidden, self.weight.T, out=buffer)
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
            put_(buffer, self.tokens, self.statistics.log_probs.expm1())  # p - 1, without cancellation
            scale = (g * -self.shape.slope)[:, None]
        else:
            self._logit_gradients(buffer, g, c)
            scale = torch.full_like(g, self.shape.slope)[:, None]
        if d_hidden is not None and d_hidden.dtype == buffer.dtype:
            torch.mm(buffer, self.weight, out=d_hidden).mul_(scale)
        elif d_hidden is not None:
            d_hidden.copy_(torch.mm(buffer, self.weight).mul_(scale))
        if d_weight is not None:
            scaled = torch.empty_like(self.hidden)
            for x, s, out in zip(*(t.split(FEW_ROWS) for t in (self.hidden, scale, scaled)), strict=True):
                out.copy_(x * s)
            self._weight_gradient(buffer, scaled, d_weight, first)
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
                self.statistics.at(rows),
                self.log_normaliser[rows],
                g[rows],
                None if c is None else c[rows],
                self.shape,
            )
            if dz is not part:
                part.copy_(dz)

    def _weight_gradient(self, buffer: Tensor, scaled: Tensor, d_weight: Tensor, first: bool) -> None:
        if d_weight.dtype == buffer.dtype:
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
        scratch = Scratch(len(logits), logits.shape[1], dtype, logits.device)
        live = (tokens >= 0).nonzero()[:, 0]
        chosen = tokens[live]
        of_token = logits[live, chosen][:, None].to(dtype)
        self.shape.apply_(of_token)
        sums = Sums.empty(of_token)
        for rows in scratch.blocks(len(live)):
            z = scratch.gather(logits, live[rows])
            self.shape.apply_(z)
            softmax(z, rows, sums, entropy, True, scratch)
        found, normaliser = sums.statistics(of_token, entropy)
        zero = torch.zeros(len(tokens), dtype=dtype, device=logits.device)
        return found.map(lambda x: zero.index_copy(0, live, x)), zero.index_copy(0, live, normaliser)

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
        scratch = Scratch(len(logits), logits.shape[1], g.dtype, logits.device)
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
                statistics.at(number),
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

    def __init__(self, rows: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows, self.dtype = max(1, min(rows, BLOCK_ELEMENTS // vocabulary)), dtype
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


class Sums(NamedTuple):
    """`[C, 1]` of each row: its largest logit, its largest probability, sum of p (z - largest)."""

    largest: Tensor
    top: Tensor
    mean: Tensor

    @staticmethod
    def empty(like: Tensor) -> Sums:
        """To be filled."""
        return Sums(*like.new_empty(3, *like.shape))

    def statistics(self, of_token: Tensor, entropy: bool) -> tuple[RowStatistics, Tensor]:
        """Of the rows, from the logits `[C, 1]` of the tokens; and log sum exp z `[C]`."""
        log_sum = self.top.log().neg_()  # the largest p is 1 / sum exp(z - largest)
        entropies = (log_sum - self.mean)[:, 0] if entropy else None
        log_probs = (of_token - self.largest).sub_(log_sum)[:, 0]
        return RowStatistics(log_probs, entropies), log_sum.add_(self.largest)[:, 0]


def softmax(z: Tensor, rows: slice, sums: Sums, entropy: bool, masked: bool, scratch: Scratch) -> Tensor:
    """softmax(z), in z or the second scratch block; fills `rows` of `sums`. `masked`: z may hold -inf."""
    z.sub_(torch.amax(z, 1, keepdim=True, out=sums.largest[rows]))
    if not entropy:
        p = torch.softmax(z, 1, out=z)
    else:
        if masked:
            z.clamp_(min=NEVER)
        p = torch.softmax(z, 1, out=scratch.second(z))
        torch.linalg.vecdot(p, z, out=sums.mean[rows][:, 0])
    torch.amax(p, 1, keepdim=True, out=sums.top[rows])
    return p


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
    """g (onehot - p) - c p (log p + entropy), times the slope of the cap, in place of p; spends log p."""
    log_prob, entropies = statistics
    of_token = -g * log_prob.expm1()
    log_p.clamp_(min=NEVER)
    log_prob = log_prob.clamp(min=NEVER)
    if c is None:
        p.mul_(-g[:, None])
    else:
        assert entropies is not None
        of_token -= c * log_prob.exp() * (log_prob + entropies)
        p.mul_(torch.addcmul((g + c * entropies)[:, None], c[:, None], log_p).neg_())
    if shape.softcap is not None:
        p.mul_(shape.cap_slope_(log_p.add_(log_normaliser[:, None])))
        of_token *= shape.cap_slope_(log_prob + log_normaliser)
    put_(p, tokens, of_token)
    return p


def put_(table: Tensor, tokens: Tensor, values: Tensor) -> None:
    """table[i, tokens[i]] = values[i]; scatter_ would copy the table first."""
    rows = torch.arange(len(tokens), device=tokens.device)
    table.index_put_((rows, tokens), values.to(table.dtype))
