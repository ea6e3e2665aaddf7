"""The GRPO loss as a rule of the engine: statistics of rows in, their gradients out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from restrl.errors import RestrlError
from restrl.ops.rows import RowStatistics, TokenGradientsFn, TokenInputs
from restrl.reference import (
    Level,
    LossSpec,
    TokenGradients,
    Totals,
    entropy_mask,
    entropy_weights,
    loss_weights,
)

Mapping = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layout:
    """Which completion each flat row belongs to.

    tokens  as they were given, `[B, T]`, or `[N]` with `lengths` `[B]`
    row     `[N]` completion of each token, ascending
    rows    B
    """

    tokens: Tensor
    row: Tensor
    rows: int

    @staticmethod
    def of(tokens: Tensor, lengths: Tensor | None) -> Layout:
        """Raises RestrlError where the completions cannot be told apart."""
        if tokens.dim() == 2:
            if lengths is not None:
                raise RestrlError("lengths is for packed tokens [N]; with tokens [B, T] give a mask")
            row = torch.arange(tokens.shape[0], device=tokens.device).repeat_interleave(tokens.shape[1])
            return Layout(tokens, row, tokens.shape[0])
        if lengths is None:
            raise RestrlError("tokens is [N]: give the completions' lengths, or tokens [B, T] and a mask")
        integers = not (lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool)
        if lengths.dim() != 1 or not integers or int(lengths.sum()) != len(tokens):
            raise RestrlError(
                f"lengths must be [B] integers that add up to the {len(tokens)} tokens; they are "
                f"{lengths.dtype} of shape {list(lengths.shape)} and add up to {lengths.sum().item()}"
            )
        if len(lengths) and int(lengths.min()) < 0:
            raise RestrlError(f"lengths holds {int(lengths.min())}; completions have 0 tokens or more")
        lengths = lengths.to(tokens.device, torch.long)
        row = torch.arange(len(lengths), device=tokens.device).repeat_interleave(lengths)
        return Layout(tokens, row, len(lengths))

    def flat(self, values: Tensor | None, name: str) -> Tensor | None:
        """`[N]` of what has the tokens' shape, detached."""
        if values is None:
            return None
        if values.shape != self.tokens.shape:
            raise RestrlError(
                f"{name} has shape {list(values.shape)} and tokens {list(self.tokens.shape)}; they must agree"
            )
        return values.detach().to(self.tokens.device).reshape(-1)

    def of_rows(self, values: Tensor, name: str) -> Tensor:
        """`[B]` values, detached. Raises RestrlError for another shape."""
        if values.shape != (self.rows,):
            raise RestrlError(f"{name} has shape {list(values.shape)}; there are {self.rows} completions")
        return values.detach().to(self.tokens.device)


class Batch(NamedTuple):
    """What the loss knows before any log-prob: per completion `[B]` and per token `[N]`, flat and detached.

    mask                   None: every token counts
    importance_ratio       per token, `ratio_of_rows`: it was given as `[B, 1]`
    entropy_mask           of the optimiser's batch, if the caller has it
    """

    layout: Layout
    advantages: Tensor
    mask: Tensor | None
    old: Tensor | None
    ref: Tensor | None
    sampler: Tensor | None
    importance_ratio: Tensor | None
    ratio_of_rows: bool
    entropy_mask: Tensor | None
    totals: Totals | None

    def live(self, spec: LossSpec, drop_zero_advantages: bool) -> Tensor | None:
        """`[N]` bool: rows that can have a gradient, or whose entropies the batch needs; None: all."""
        live = None if self.mask is None else self.mask > 0
        whole = spec.needs_batch and self.entropy_mask is None
        if drop_zero_advantages and spec.beta == 0 and spec.entropy_coef == 0 and not whole:
            pulls = (self.advantages != 0)[self.layout.row]
            live = pulls if live is None else live & pulls
        return live

    def by_token(self, spec: LossSpec) -> LossSpec | None:
        """The spec that treats each token alone, if there is one. An entropy mask is not among its needs."""
        level: Level | None = (
            None if self.importance_ratio is None else "sequence" if self.ratio_of_rows else "token"
        )
        return spec.by_token(
            old=self.old is not None, sampler=self.sampler is not None, importance_ratio=level
        )


class GrpoRule:
    """dloss/dl and dloss/dentropy of live rows, a slice at a time; remembers what it has seen.

    spec  of the loss; with `by_token`, each row stands alone, else slices hold whole completions
    """

    def __init__(
        self,
        batch: Batch,
        spec: LossSpec,
        live: Tensor | None,
        dtype: torch.dtype,
        token_gradients: TokenGradientsFn,
    ) -> None:
        layout, self.token_gradients = batch.layout, token_gradients
        by_token = batch.by_token(spec)
        self.spec, self.by_token = by_token or spec, by_token is not None
        self.batch, self.dtype, self.live = batch, dtype, live
        counted = torch.ones_like(layout.row) if batch.mask is None else (batch.mask > 0).long()
        self.lengths = torch.zeros(layout.rows, dtype=torch.long, device=layout.row.device)
        self.lengths.index_add_(0, layout.row, counted)  # n_i
        self.row = self._pick(layout.row)
        self.live_lengths = self.row.bincount(minlength=layout.rows)  # n_i, or 0 where dropped
        self.column = torch.arange(len(self.row), device=self.row.device)
        self.column -= (self.live_lengths.cumsum(0) - self.live_lengths)[self.row]
        self.totals = batch.totals or Totals(layout.rows, float(self.lengths.sum()))
        self.entropy_mask = self._optional(batch.entropy_mask, torch.bool)
        if self.entropy_mask is not None:
            self._count_entropies()
        weights = loss_weights(self.lengths[:, None].to(dtype), spec, self.totals).expand(layout.rows, 1)[
            :, 0
        ]
        self.inputs = TokenInputs(
            batch.advantages.to(dtype)[self.row],
            weights[self.row].contiguous(),
            None,
            self.lengths[self.row].to(dtype),
            self._optional(batch.old, dtype),
            self._optional(batch.ref, dtype),
            self._optional(batch.sampler, dtype),
            self._optional(batch.importance_ratio, dtype),
        )
        if not self.waits_for_batch:
            self._weigh_entropies()
        self.parts: list[tuple[RowStatistics, TokenGradients]] = []

    def _pick(self, values: Tensor) -> Tensor:
        return values if self.live is None else values[self.live]

    def _optional(self, values: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        return None if values is None else self._pick(values).to(dtype).contiguous()

    def _weigh_entropies(self) -> None:
        """Needs the entropy mask, if there is one."""
        if self.spec.entropy_coef == 0:
            return
        counted = torch.ones_like(self.inputs.weights)
        weights = entropy_weights(counted, self.spec, self.totals, self.entropy_mask)
        self.inputs = self.inputs._replace(entropy_weights=weights)

    def see_batch(self, entropies: Tensor) -> None:
        """The entropies of all rows, of which the entropy mask is made."""
        counted = torch.ones_like(entropies)
        self.entropy_mask = entropy_mask(entropies, counted, self.spec.top_entropy_quantile)
        self._count_entropies()
        self._weigh_entropies()

    def _count_entropies(self) -> None:
        """This call is the whole batch, unless the caller gave totals."""
        if self.batch.totals is None and self.spec.entropy_coef != 0:
            assert self.entropy_mask is not None
            self.totals = self.totals._replace(entropy_tokens=float(self.entropy_mask.sum()))

    def __call__(self, span: slice, found: RowStatistics) -> tuple[Tensor, Tensor | None]:
        """See linear.Rule."""
        table, back = self._tables(span)
        inputs = self.inputs.map(lambda x: table(x[span]))
        result = self.token_gradients(
            table(found.log_probs),
            None if found.entropies is None else table(found.entropies),
            table(torch.ones_like(found.log_probs)),
            inputs.advantages[:, 0],
            inputs.weights,
            inputs.entropy_weights,
            inputs.lengths[:, 0],
            self.spec,
            old=inputs.old,
            ref=inputs.ref,
            sampler=inputs.sampler,
            importance_ratio=inputs.importance_ratio,
            entropy_mask=None if self.entropy_mask is None else table(self.entropy_mask[span]),
        )
        columns = (None if x is None else back(x).contiguous() for x in result[1:])
        flat = TokenGradients(result.loss, *columns)  # type: ignore[arg-type]
        self.remember(found, flat)
        return flat.d_log_prob, flat.d_entropy

    def remember(self, found: RowStatistics, result: TokenGradients) -> None:
        """What the next slice's rows have given, flat."""
        self.parts.append((found, result))

    @property
    def waits_for_batch(self) -> bool:
        """Nothing can be said before `see_batch`."""
        return self.spec.needs_batch and self.entropy_mask is None

    @property
    def loss(self) -> Tensor:
        """Of all slices so far; a scalar, detached."""
        start = torch.zeros((), dtype=self.dtype, device=self.row.device)
        return sum((result.loss for _, result in self.parts), start)

    def column_of(self, pick: Callable[[RowStatistics, TokenGradients], Tensor | None]) -> Tensor | None:
        """`[n]` of the live rows, from the slices in order; None where they have none."""
        found = [pick(statistics, result) for statistics, result in self.parts]
        there = [x for x in found if x is not None]
        return torch.cat(there) if there else None

    def _tables(self, span: slice) -> tuple[Mapping, Mapping]:
        """From flat rows to the rows and columns of the loss, and back."""
        if self.by_token:
            return lambda x: x[:, None], lambda x: x[:, 0]
        row, column = self.row[span], self.column[span]
        row = row - row[:1]
        shape = (int(row[-1]) + 1, int(column.max()) + 1) if len(row) else (0, 1)

        def table(values: Tensor) -> Tensor:
            return values.new_zeros(shape).index_put((row, column), values)

        return table, lambda x: x[row, column]
