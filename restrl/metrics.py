"""Numbers about sets of verdicts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from restrl.errors import RestrlError


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples passes, from `correct` of n that did.

    1 if n - correct < k, else 1 - prod over i = n - correct + 1 .. n of (1 - k / i) (Chen et al. 2021, arXiv
    2107.03374). Raises RestrlError for k outside 1..n.
    """
    if not 1 <= k <= n:
        raise RestrlError(f"pass@{k} needs at least {k} samples of every problem, and one has {n}")
    if n - correct < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - correct + 1, n + 1)))


def mean_pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> float:
    """Mean of pass@k over problems, given as (samples, correct). Raises RestrlError as `pass_at_k`."""
    if not counts:
        raise RestrlError("pass@k of no problem at all")
    return float(np.mean([pass_at_k(n, c, k) for n, c in counts]))


def pass_table(counts: Sequence[tuple[int, int]], ks: Sequence[int] = (1, 10, 100)) -> dict[str, float]:
    """{"pass@k": value} for those of `ks` that every problem has samples for."""
    least = min((n for n, _ in counts), default=0)
    return {f"pass@{k}": mean_pass_at_k(counts, k) for k in ks if k <= least}
