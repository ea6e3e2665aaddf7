"""Blocks of logits to probabilities and statistics, and to gradients of logits, in plain torch.

A softmax in place is all that a row needs: the log of the token's own probability is its log-prob. Only where
that probability is too small to have kept its digits does the row's largest tell the normaliser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from restrl.ops.rows import RowStatistics

BLOCK_ELEMENTS = 1 << 17  # of float32 scratch: half a megabyte, which a core's second-level cache holds
NEVER = -1e30  # stands for a logit of -inf where it is multiplied by its probability 0
FEW = 8  # rows that are looked at once more together
RARE = 1e-30  # float32 has fewer digits for a probability soon below

# Logits z `[n]` at these rows and columns of a block.
Lookup = Callable[[Tensor, Tensor], Tensor]


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

    @property
    def shifts(self) -> bool:
        """A constant added to all x of a row is a constant added to all z, which no softmax sees."""
        return self.bias is None and self.softcap is None

    @property
    def nothing(self) -> bool:
        """z is x."""
        return self.shifts and self.slope == 1

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


class Scratch:
    """Blocks of rows `[n, V]` that stay in the cache, made when they are first asked for."""

    def __init__(
        self, rows: int, vocabulary: int, dtype: torch.dtype, device: torch.device, least: int = 1
    ) -> None:
        self.rows = min(max(rows, 1), max(BLOCK_ELEMENTS // vocabulary, least))
        self.vocabulary, self.dtype, self.device = vocabulary, dtype, device
        self.made: list[Tensor] = []

    def blocks(self, count: int) -> Iterator[slice]:
        """Slices of up to `rows` rows that cover `count`."""
        return (slice(start, min(start + self.rows, count)) for start in range(0, count, self.rows))

    def block(self, number: int, count: int) -> Tensor:
        """`count` rows of a block."""
        while len(self.made) <= number:
            self.made.append(torch.empty(self.rows, self.vocabulary, dtype=self.dtype, device=self.device))
        return self.made[number][:count]

    def first(self, part: Tensor) -> Tensor:
        """`part` in the first block."""
        return self.block(0, len(part)).copy_(part)

    def second(self, part: Tensor) -> Tensor:
        """The second block, as large as `part`."""
        return self.block(1, len(part))


class Normalised(NamedTuple):
    """`[n]` of rows: log-probs of their tokens, entropies (None: not wanted), log sum exp z."""

    log_probs: Tensor
    entropies: Tensor | None
    normaliser: Tensor

    @staticmethod
    def joined(parts: list[Normalised], like: Tensor) -> Normalised:
        """Of blocks in order; of none, empty ones of the dtype of `like`."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return Normalised(*(like.new_empty(0) for _ in range(3)))
        log_probs, entropies, normaliser = zip(*parts, strict=True)
        return Normalised(
            torch.cat(log_probs),
            None if entropies[0] is None else torch.cat(entropies),
            torch.cat(normaliser),
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> Normalised:
        """All that are there, changed."""
        return Normalised(
            change(self.log_probs),
            None if self.entropies is None else change(self.entropies),
            change(self.normaliser),
        )

    @property
    def statistics(self) -> RowStatistics:
        """Without the normaliser."""
        return RowStatistics(self.log_probs, self.entropies)


def normalise(
    z: Tensor, p: Tensor, tokens: Tensor, of_token: Tensor, at: Lookup, away: Tensor | None, masked: bool
) -> Normalised:
    """softmax(z) `[n, V]` into `p`, and the statistics of the rows.

    p         may be z
    of_token  `[n]` the logits of the tokens
    at        for rows whose token is rare
    away      memory of z's size where entropies are wanted, None: they are not; z itself if p is not z
    masked    z may hold -inf
    """
    moments = None if away is None else z.new_empty(2, len(z), 1)
    softmax(z, p, away, masked, moments)
    return conclude(p, tokens, of_token, at, moments)


def softmax(
    z: Tensor,
    p: Tensor,
    away: Tensor | None,
    masked: bool,
    moments: Tensor | None,
    near: Tensor | None = None,
) -> None:
    """softmax(z) into `p`; into `moments` `[2, n, 1]` a logit of each row and the mean of z less that logit.

    near  `[n, 1]` this logit; None: the row's largest, from which the mean is exact however far logits spread
    """
    if away is None or moments is None:
        torch.softmax(z, 1, out=p)
        return
    if near is None:
        torch.amax(z, 1, keepdim=True, out=moments[0])
    else:
        moments[0].copy_(near)
    torch.sub(z, moments[0], out=away)
    torch.softmax(z, 1, out=p)
    if masked:
        away.clamp_(min=NEVER)
    torch.sum(away.mul_(p), 1, keepdim=True, out=moments[1])


def conclude(p: Tensor, tokens: Tensor, of_token: Tensor, at: Lookup, moments: Tensor | None) -> Normalised:
    """The statistics of rows of probabilities `[n, V]`; see `normalise` and `softmax`."""
    own = p.gather(1, tokens[:, None])[:, 0]
    log_probs = own.log()
    normaliser = of_token - log_probs
    entropies = None
    if moments is not None:
        entropies = of_token.sub(moments[0, :, 0]).sub_(log_probs).sub_(moments[1, :, 0])
    for rare in (own < RARE).nonzero()[:, 0].split(FEW):
        top, column = p[rare].max(1)
        near, log_top = at(rare, column), top.log()
        normaliser[rare] = near - log_top
        log_probs[rare] = of_token[rare] - near + log_top
        if entropies is not None:
            entropies[rare] = torch.special.entr(p[rare]).sum(1)
    return Normalised(log_probs, entropies, normaliser)


def logit_gradient(
    p: Tensor,
    log_p: Tensor,
    tokens: Tensor,
    found: Normalised,
    g: Tensor,
    c: Tensor | None,
    shape: Shape,
) -> Tensor:
    """g (onehot - p) - c p (log p + entropy), times the slope of the cap, in place of p; spends log p."""
    log_prob, entropies, normaliser = found
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
        p.mul_(shape.cap_slope_(log_p.add_(normaliser[:, None])))
        of_token *= shape.cap_slope_(log_prob + normaliser)
    put_(p, tokens, of_token)
    return p


def put_(table: Tensor, tokens: Tensor, values: Tensor) -> None:
    """table[i, tokens[i]] = values[i]; scatter_ would copy the table first."""
    rows = torch.arange(len(tokens), device=tokens.device)
    table.index_put_((rows, tokens), values.to(table.dtype))
