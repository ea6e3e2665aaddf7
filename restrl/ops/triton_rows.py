"""The rows of rows.py on a GPU: matmuls by cuBLAS, everything between them by the kernels of restrl.kernels.

Logits are float32 whatever the model's type: 16-bit operands, float32 sums and results. The gradient of the
logits is handed to the next matmuls in the model's type. bfloat16 gradients take the first half of the memory
of their own row of logits: there is one buffer, of C V 4 bytes (kernels/rows.py says why this is safe).
float16 models are computed in float32: their gradients of logits would be too small for float16.

Under TRITON_INTERPRET=1 everything here also runs on a CPU, for tests.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from restrl.kernels.advantages import grouped_advantages
from restrl.kernels.loss import token_gradients
from restrl.kernels.one_shot import one_shot
from restrl.kernels.rows import Transform, gradient, statistics
from restrl.kernels.scale import scale_
from restrl.ops.rows import Chunks, Head, LogitRows, RowStatistics, TokenInputs
from restrl.reference.derivatives import TokenGradients
from restrl.reference.spec import LossSpec

__all__ = ["chunk_rows", "chunks", "grouped_advantages", "logit_rows", "scale_", "token_gradients"]

BUFFER_BYTES = 1_300_000_000
CHUNK_ROWS = 4096  # more do not pay: what a chunk costs is one more pass over the weight gradient
ALIGNMENT = 32  # logits: rows of the buffer begin at multiples of 128 bytes


def chunk_rows(rows: int, vocabulary: int, hidden: int, dtype: torch.dtype) -> int:
    """The default capacity: a buffer of at most 1.3 GB."""
    fit = BUFFER_BYTES // (4 * _padded(vocabulary))
    return max(1, min(rows, CHUNK_ROWS, fit - fit % 128 if fit >= 128 else fit))


def chunks(head: Head, rows: int, gradients: bool) -> Chunks:
    """See rows.Backend."""
    return TritonChunks(head, rows)


def logit_rows(logit_scale: float, softcap: float | None, temperature: float) -> LogitRows:
    """See rows.Backend."""
    return TritonLogitRows(Transform.of(logit_scale, softcap, temperature))


class TritonChunks:
    """rows.Chunks."""

    def __init__(self, head: Head, capacity: int) -> None:
        self.weight = head.weight.float() if head.weight.dtype == torch.float16 else head.weight
        self.transform = Transform.of(head.logit_scale, head.softcap, head.temperature)
        self.vocabulary = self.weight.shape[0]
        self.width = _padded(self.vocabulary)
        self.bias = None if head.bias is None else pad(head.bias.float(), (0, self.width - self.vocabulary))
        self.memory = torch.empty(capacity, self.width, dtype=torch.float32, device=self.weight.device)

    def log_probs(self, hidden: Tensor, tokens: Tensor, entropy: bool) -> RowStatistics:
        """See rows.Chunks."""
        self.hidden, self.tokens = hidden.to(self.weight.dtype), tokens
        self.logits = self.memory[: len(tokens), : self.vocabulary]
        _matmul(self.hidden, self.weight.T, out=self.logits, add=False)
        self.known = statistics(
            self.logits, tokens, self.transform, entropy, bias=self.bias, split=True, width=self.width
        )
        return RowStatistics(self.known[0], self.known[1])

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
        dtype = self.weight.dtype
        d_logits = self.memory.view(dtype)[: len(g), : self.vocabulary]
        gradient(
            self.logits,
            d_logits,
            self.tokens,
            self.transform,
            self.known,
            g,
            c,
            bias=self.bias,
            width=self.width,
        )
        if d_hidden is not None and d_hidden.dtype == dtype:
            torch.mm(d_logits, self.weight, out=d_hidden)
        elif d_hidden is not None:
            d_hidden.copy_(torch.mm(d_logits, self.weight))
        if d_weight is not None:
            _matmul(d_logits.T, self.hidden, out=d_weight, add=not first)
        if d_bias is not None:
            total = d_logits.sum(0, dtype=torch.float32)
            if first:
                d_bias.copy_(total)
            else:
                d_bias.add_(total)


class TritonLogitRows:
    """rows.LogitRows."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def log_probs(self, logits: Tensor, tokens: Tensor, entropy: bool) -> tuple[RowStatistics, Tensor]:
        """See rows.LogitRows."""
        log_probs, entropies, _, log_normaliser = statistics(logits, tokens, self.transform, entropy)
        return RowStatistics(log_probs, entropies), log_normaliser

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
        known = (*statistics, None, log_normaliser)
        gradient(logits, d_logits, tokens, self.transform, known, g, c)

    def one_shot(
        self,
        logits: Tensor,
        tokens: Tensor,
        inputs: TokenInputs,
        spec: LossSpec,
        entropy: bool,
        d_logits: Tensor,
    ) -> tuple[RowStatistics, TokenGradients] | None:
        """See rows.LogitRows."""
        return one_shot(logits, tokens, self.transform, inputs, spec, entropy, d_logits)


def _matmul(a: Tensor, b: Tensor, *, out: Tensor, add: bool) -> None:
    """The float32 `out` becomes, or grows by, the product; 16-bit factors have float32 sums."""
    if a.dtype != torch.float32 and not a.is_cuda:  # the interpreter's: torch has no such product on a CPU
        a, b = a.float(), b.float()
    if a.dtype == torch.float32:
        out.addmm_(a, b, beta=1 if add else 0)
    elif add:
        torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    else:
        torch.mm(a, b, out_dtype=torch.float32, out=out)


def _padded(vocabulary: int) -> int:
    return triton.cdiv(vocabulary, ALIGNMENT) * ALIGNMENT
