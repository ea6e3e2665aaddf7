"""How well scores rank the programs of one problem: what picking an answer depends on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Group = tuple[Sequence[float], Sequence[float]]  # scores and true rewards of one problem's programs


def within_auc(groups: Sequence[Group]) -> float | None:
    """P(score of the better > score of the worse) over all pairs of one problem with unequal rewards; a tie
    is 1/2.

    Every problem with such a pair weighs the same. None if there is no pair.
    """
    areas: list[float] = []
    for scores, rewards in groups:
        s, r = np.asarray(scores, float), np.asarray(rewards, float)
        better = r[:, None] > r[None, :]
        if better.any():
            ahead = (s[:, None] > s[None, :]) + 0.5 * (s[:, None] == s[None, :])
            areas.append(float(ahead[better].mean()))
    return float(np.mean(areas)) if areas else None


def within_spearman(groups: Sequence[Group]) -> float | None:
    """Mean over problems of the rank correlation (ties share their mean rank); None if no problem has one."""
    correlations: list[float] = []
    for scores, rewards in groups:
        a, b = _ranks(scores), _ranks(rewards)
        spread = float(a.std() * b.std())
        if spread > 0:
            correlations.append(float(((a - a.mean()) * (b - b.mean())).mean()) / spread)
    return float(np.mean(correlations)) if correlations else None


def _ranks(values: ArrayLike) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((2 * last - counts - 1) / 2.0)[inverse]
