"""Logits that exist already, in plain torch: rows.LogitRows of the CPU path."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from restrl.ops.cpu_rows import Normalised, Scratch, Shape, accumulator, logit_gradient, normalise, put_
from restrl.ops.rows import RowStatistics, TokenInputs
from restrl.reference.derivatives import TokenGradients, token_gradients
from restrl.reference.spec import LossSpec

LEAST_ROWS = 32  # whose loss is computed at a time in one pass: it has some 60 operations, however few rows


class CpuLogitRows:
    """rows.LogitRows."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def log_probs(self, logits: Tensor, tokens: Tensor, entropy: bool) -> tuple[RowStatistics, Tensor]:
        """See rows.LogitRows."""
        scratch = _scratch(logits)
        live = _live(tokens)
        parts = []
        for rows in _blocks(live, len(tokens), scratch):
            z = self._logits(logits, rows, scratch, spare=0)
            p = scratch.second(z)
            parts.append(self._normalise(logits, z, p, tokens[rows], rows, entropy, scratch))
        zero = torch.zeros(len(tokens), dtype=scratch.dtype, device=logits.device)
        found = Normalised.joined(parts, zero)
        if live is not None:
            found = found.map(lambda x: zero.index_copy(0, live, x))
        return found.statistics, found.normaliser

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
        scratch = _scratch(logits)
        moved = (g != 0) if c is None else (g != 0) | (c != 0)
        moved &= tokens >= 0
        found = Normalised(*statistics, log_normaliser)
        for number in moved.nonzero()[:, 0].split(scratch.rows):
            z = scratch.first(logits.index_select(0, number))
            self.shape.apply_(z)
            log_p = z.sub_(log_normaliser[number][:, None])
            dz = logit_gradient(
                torch.exp(log_p, out=scratch.second(log_p)),
                log_p,
                tokens[number],
                found.map(lambda x, number=number: x[number]),  # type: ignore[misc]
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
        """See rows.LogitRows: a block is read once, and its gradient written while it is in the cache."""
        if not bool((tokens >= 0).any()):
            return None
        scratch = _scratch(logits, LEAST_ROWS)
        live = _live(tokens)
        entropy = entropy or inputs.entropy_weights is not None
        # Probabilities can be formed where the gradient goes, unless the logits are still needed there.
        direct = live is None and d_logits.dtype == scratch.dtype and d_logits.data_ptr() != logits.data_ptr()
        found, results = [], []
        for rows in _blocks(live, len(tokens), scratch):
            z = self._logits(logits, rows, scratch, spare=1)
            p = d_logits[rows] if direct else scratch.block(0, len(z))
            part = self._normalise(logits, z, p, tokens[rows], rows, entropy, scratch)
            result = _token_gradients(part, inputs.map(lambda x, rows=rows: x[rows]), spec)  # type: ignore[misc]
            self._gradient(p, tokens[rows], part, result, scratch)
            if not direct:
                d_logits[rows] = p.to(d_logits.dtype)
            found.append(part)
            results.append(result)
        if live is not None:
            d_logits[tokens < 0] = 0
        return _spread(Normalised.joined(found, inputs.weights), results, live, inputs.weights)

    def _logits(self, logits: Tensor, rows: slice | Tensor, scratch: Scratch, spare: int) -> Tensor:
        """z of some rows: the logits themselves where they are that, else in the scratch block `spare`."""
        part = logits[rows]
        if part.dtype == scratch.dtype and self.shape.nothing:
            return part
        z = scratch.block(spare, len(part)).copy_(part)
        self.shape.apply_(z)
        return z

    def _normalise(
        self,
        logits: Tensor,
        z: Tensor,
        p: Tensor,
        tokens: Tensor,
        rows: slice | Tensor,
        entropy: bool,
        scratch: Scratch,
    ) -> Normalised:
        def at(found: Tensor, columns: Tensor) -> Tensor:
            near = logits[rows][found, columns].to(scratch.dtype)
            self.shape.apply_(near)
            return near

        of_token = at(torch.arange(len(tokens), device=tokens.device), tokens)
        away = scratch.block(2, len(z)) if entropy else None
        return normalise(z, p, tokens, of_token, at, away, masked=True)

    def _gradient(
        self, p: Tensor, tokens: Tensor, found: Normalised, result: TokenGradients, scratch: Scratch
    ) -> None:
        """Probabilities become dloss/dlogits."""
        g, c = result.d_log_prob, result.d_entropy
        if c is None and self.shape.softcap is None:
            g = g * -self.shape.slope
            p.mul_(g[:, None])
            put_(p, tokens, g * found.log_probs.expm1())
            return
        log_p = torch.log(p, out=scratch.block(2, len(p)))
        logit_gradient(p, log_p, tokens, found, g, c, self.shape).mul_(self.shape.slope)


def _scratch(logits: Tensor, least: int = 1) -> Scratch:
    return Scratch(len(logits), logits.shape[1], accumulator(logits.dtype), logits.device, least)


def _live(tokens: Tensor) -> Tensor | None:
    """Positions of the rows that count; None: all of them."""
    live = (tokens >= 0).nonzero()[:, 0]
    return None if len(live) == len(tokens) else live


def _blocks(live: Tensor | None, count: int, scratch: Scratch) -> Iterator[slice | Tensor]:
    return (
        scratch.blocks(count) if live is None else iter(live.split(scratch.rows)) if len(live) else iter(())
    )


def _token_gradients(found: Normalised, inputs: TokenInputs, spec: LossSpec) -> TokenGradients:
    """Of rows that stand alone, `[n]`."""
    columns = inputs.map(lambda x: x[:, None])
    result = token_gradients(
        found.log_probs[:, None],
        None if found.entropies is None else found.entropies[:, None],
        torch.ones_like(found.log_probs)[:, None],
        inputs.advantages,
        columns.weights,
        columns.entropy_weights,
        inputs.lengths,
        spec,
        old=columns.old,
        ref=columns.ref if spec.beta > 0 else None,
        sampler=columns.sampler,
        importance_ratio=columns.importance_ratio,
    )
    return TokenGradients(result.loss, *(None if x is None else x[:, 0] for x in result[1:]))  # type: ignore[arg-type]


def _spread(
    found: Normalised, results: list[TokenGradients], live: Tensor | None, like: Tensor
) -> tuple[RowStatistics, TokenGradients]:
    """All rows' results, 0 where a row does not count."""
    count = len(like)

    def spread(values: Tensor) -> Tensor:
        return values if live is None else values.new_zeros(count).index_copy(0, live, values)

    loss = sum((result.loss for result in results), like.new_zeros(()))
    columns = zip(*(result[1:] for result in results), strict=True)
    joined = [None if parts[0] is None else spread(torch.cat(parts)) for parts in columns]
    return found.map(spread).statistics, TokenGradients(loss, *joined)  # type: ignore[arg-type]
