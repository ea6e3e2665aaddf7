"""What a device must offer so that the engine (linear.py, logits.py) can compute losses on it.

The engine decides which rows are computed, in which order and in how many passes, and holds the gradients. A
backend turns rows into log-probabilities and entropies, and gradients of those into gradients of the inputs.
cpu.py implements these protocols in plain torch, triton_rows.py with Triton kernels.

One row is one token: z = cap((W h + b) * logit_scale) / temperature are its logits, with cap(x) = softcap
tanh(x / softcap), or the identity where softcap is None; p = softmax(z); l = log p[token]; the entropy is
-sum p log p, in nats. With g = dloss/dl and c = dloss/dentropy, the gradient of the logits is

    dloss/dz = g (onehot(token) - p) - c p (log p + entropy)

`C` rows of one chunk, `N` flat rows, `H` hidden size, `V` vocabulary. "float32" below reads "float64 where
the inputs are float64". Sources: docs/losses.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

if TYPE_CHECKING:
    import torch

    from restrl.reference.advantages import Scale
    from restrl.reference.derivatives import TokenGradients
    from restrl.reference.spec import LossSpec


@dataclass(frozen=True)
class Head:
    """The language-model head of one call, detached.

    weight       `[V, H]` contiguous, in the dtype of the hidden states; rows of padding (>= vocab_size) are
                 cut off already, so V may be odd, and every column counts
    bias         `[V]` or None
    """

    weight: Tensor
    bias: Tensor | None
    logit_scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0


class RowStatistics(NamedTuple):
    """`[C]` float32 log-probs of the tokens, and entropies (None where they were not asked for)."""

    log_probs: Tensor
    entropies: Tensor | None

    def map(self, change: Callable[[Tensor], Tensor]) -> RowStatistics:
        """Both, changed."""
        return RowStatistics(
            change(self.log_probs), None if self.entropies is None else change(self.entropies)
        )

    def at(self, rows: slice | Tensor) -> RowStatistics:
        """Both, of some rows."""
        return self.map(lambda x: x[rows])


class TokenInputs(NamedTuple):
    """What a token-level loss knows of each row: `[N]` float32, contiguous; `one_shot` finds anything in
    rows with token -1, elsewhere such rows are gone.

    advantages        A
    weights           W m, the row's share in the loss; entropy_weights: -dloss/dentropy (None: no bonus)
    lengths           n_i of the row's completion
    old, ref, sampler log-probs of the policies that the loss compares with (None: as LossSpec says)
    importance_ratio  the factor of the policy term for samples of another engine (None: 1)
    """

    advantages: Tensor
    weights: Tensor
    entropy_weights: Tensor | None
    lengths: Tensor
    old: Tensor | None
    ref: Tensor | None
    sampler: Tensor | None
    importance_ratio: Tensor | None

    def map(self, change: Callable[[Tensor], Tensor]) -> TokenInputs:
        """All that are there, changed."""
        return TokenInputs(*(None if x is None else change(x) for x in self))  # type: ignore[arg-type]


class TokenGradientsFn(Protocol):
    """`restrl.reference.derivatives.token_gradients`, or a kernel with its arguments and results."""

    def __call__(
        self,
        log_probs: Tensor,
        entropies: Tensor | None,
        mask: Tensor,
        advantages: Tensor,
        weights: Tensor,
        entropy_weights: Tensor | None,
        lengths: Tensor,
        spec: LossSpec,
        *,
        old: Tensor | None,
        ref: Tensor | None,
        sampler: Tensor | None,
        importance_ratio: Tensor | None,
        entropy_mask: Tensor | None = None,
    ) -> TokenGradients:
        """`[B, T]` closed-form derivatives; a token-level loss may be given flat rows as `[C, 1]`."""


class Chunks(Protocol):
    """Hidden states to log-probs and back, a chunk of rows at a time, through one `[C, V]` buffer.

    Made once per call by `chunks(head, rows, gradients)`: `rows` is the capacity C, the buffer is allocated
    then and freed with the object. `gradients` False promises that `backward` is never called.

    The engine calls `log_probs`, and then `backward` for the same rows at most once, before the next
    `log_probs`. Results must be bitwise repeatable: no atomics, a fixed order of summation.
    """

    def log_probs(self, hidden: Tensor, tokens: Tensor, entropy: bool) -> RowStatistics:
        """One matmul; fills the buffer.

        hidden  `[C', H]` contiguous rows, C' <= C, dtype of the weight; kept (not copied) until `backward`
        tokens  `[C']` int64 in [0, V)
        """

    def backward(
        self,
        g: Tensor,
        c: Tensor | None,
        d_hidden: Tensor | None,
        d_weight: Tensor | None,
        d_bias: Tensor | None,
        first: bool,
    ) -> None:
        """The gradients of the rows last given to `log_probs`: up to two matmuls; spends the buffer.

        g, c      `[C']` float32 dloss/dl and dloss/dentropy (None: 0)
        d_hidden  `[C', H]` contiguous, dtype of the hidden states (float16: float32), written; None: not
                  wanted (no matmul)
        d_weight  `[V, H]` float32: written if `first`, else added to; None: not wanted (no matmul). Of the
                  weight's type where there is one chunk and the backend can (cpu.py; see linear.Plan)
        d_bias    `[V]` float32, likewise; None: not wanted
        """


class LogitRows(Protocol):
    """Logits to log-probs and back. Made once per call by `logit_rows(logit_scale, softcap, temperature)`;
    here raw logits take the place of W h + b above.
    """

    def log_probs(self, logits: Tensor, tokens: Tensor, entropy: bool) -> tuple[RowStatistics, Tensor]:
        """Statistics of the rows, and `[N]` float32 log sum exp z, which `backward` takes.

        logits  `[N, V]` any float dtype, last dimension contiguous, rows `stride(0)` apart; never written
        tokens  `[N]` int64 in [0, V), or -1: the row is not read, and its results are 0
        """

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
        """dloss/dlogits into `d_logits` `[N, V]` (dtype of the logits, last dimension contiguous).

        `d_logits` may be `logits` itself. A row with token -1, or with g = 0 and c = 0, is written 0,
        whatever its logits hold.
        """

    def one_shot(
        self,
        logits: Tensor,
        tokens: Tensor,
        inputs: TokenInputs,
        spec: LossSpec,
        entropy: bool,
        d_logits: Tensor,
    ) -> tuple[RowStatistics, TokenGradients] | None:
        """Log-probs, token-level loss and `d_logits` (which may be `logits`) in one pass; results `[N]`, of
        rows with token -1: 0. None: not offered for this spec, nothing is written, and the engine calls the
        other two.
        """


class Backend(Protocol):
    """The module-level names of cpu.py and triton_rows.py, which the engine imports lazily."""

    token_gradients: TokenGradientsFn

    def grouped_advantages(self, rewards: Tensor, groups: Tensor, scale: Scale) -> Tensor:
        """`restrl.reference.advantages_by_group`, or a kernel with its arguments and result."""

    def chunks(self, head: Head, rows: int, gradients: bool) -> Chunks:
        """A `Chunks` for one call."""

    def chunk_rows(self, rows: int, vocabulary: int, hidden: int, dtype: torch.dtype) -> int:
        """The default capacity C for `rows` live rows and matmuls of `dtype`."""

    def scale_(self, gradient: Tensor, factor: Tensor) -> None:
        """Multiply in place by a 0-dim tensor on the same device; next to nothing is done where it is 1, and
        the host never waits.
        """

    def logit_rows(self, logit_scale: float, softcap: float | None, temperature: float) -> LogitRows:
        """A `LogitRows` for one call."""
