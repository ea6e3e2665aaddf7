"""Figures of bench_decode.py: what every arm took, how they compare, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from serial_decode import Outcome

from restrl.records import Problem
from restrl.sandbox import Verifier
from restrl.search import Timing
from restrl.stages.collect import known_reward

SHARES = ("generate", "score", "wait", "engine", "driver")
"""Fields of restrl.search.Timing that are reported."""

Right = dict[int, dict[str, bool]]
"""Whether the answer passes, by seed and problem."""


@dataclass(frozen=True)
class Share:
    """What one process did: start and end on the machine's clock (s), CPU seconds, peak memory (MiB).

    timing  where restrl's search spent its wall time; empty for the serial schedule
    """

    outcomes: list[Outcome]
    start: float
    end: float
    cpu: float
    timing: Timing
    threads: int
    peak_mib: float
    peak_gpu_mib: float


def right(shares: dict[str, list[Share]], problems: Sequence[Problem]) -> dict[str, Right]:
    """Whether the answer passes, by arm, seed and problem."""
    by_id = {p.task_id: p for p in problems}
    found: dict[str, Right] = {}
    with Verifier() as verifier:
        for arm, own in shares.items():
            outcomes = [o for share in own for o in share.outcomes]
            verdicts = verifier.verify([(by_id[o.task_id], o.program) for o in outcomes])
            for o, verdict in zip(outcomes, verdicts, strict=True):
                passed = known_reward(verdict, o.task_id) == 1.0
                found.setdefault(arm, {}).setdefault(o.seed, {})[o.task_id] = passed
    return found


def interval(rows: NDArray[np.float64]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of `[problems]`, problems drawn with replacement."""
    rng = np.random.default_rng(0)
    means = rows[rng.integers(len(rows), size=(4000, len(rows)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def by_problem(rows: Right, seeds: Sequence[int], names: Sequence[str]) -> Any:
    """`[problems]` mean over the seeds."""
    return np.array([[rows[seed][name] for name in names] for seed in seeds], dtype=float).mean(0)


def wall(shares: Sequence[Share]) -> float:
    """Seconds from the first start to the last end."""
    return max(s.end for s in shares) - min(s.start for s in shares)


def figures(shares: list[Share], rows: Right) -> dict[str, Any]:
    """What one arm took, per problem and in all."""
    outcomes = [o for share in shares for o in share.outcomes]
    count = len(outcomes)
    accuracy = by_problem(rows, list(rows), list(rows[0]))
    low, high = interval(accuracy)
    per_problem = {
        key: sum(getattr(o, key) for o in outcomes) / count
        for key in ("samples", "reused", "generated_tokens", "value_tokens")
    }
    return {
        "seconds": wall(shares) / count,
        "cpu_seconds": sum(s.cpu for s in shares) / count,
        **{key: round(value, 2) for key, value in per_problem.items()},
        "accuracy": round(float(accuracy.mean()), 4),
        "accuracy_95": [round(low, 4), round(high, 4)],
        "wall_shares": wall_shares([s.timing for s in shares]),
        "threads": shares[0].threads,
        "peak_mib": round(sum(s.peak_mib for s in shares)),
        "peak_gpu_mib": round(sum(s.peak_gpu_mib for s in shares)),
    }


def wall_shares(timings: Sequence[Timing]) -> dict[str, float]:
    """Parts of the processes' wall time; `score` may run beside the others, `wait` is waiting for it."""
    total = sum(t.wall for t in timings)
    return {name: round(sum(getattr(t, name) for t in timings) / total, 5) for name in SHARES if total}


def compare(a: str, b: str, all_rows: dict[str, Right], table: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Arm `a` against arm `b`: ratios b : a, and the paired difference of accuracy on what both decoded."""
    seeds = [seed for seed in all_rows[a] if seed in all_rows[b]]
    names = [name for name in all_rows[a][0] if name in all_rows[b][0]]
    difference = by_problem(all_rows[a], seeds, names) - by_problem(all_rows[b], seeds, names)
    low, high = interval(difference)
    return {
        "arms": [a, b],
        **{key: round(table[b][key] / table[a][key], 2) for key in ("seconds", "cpu_seconds")},
        "pairs": len(seeds) * len(names),
        "accuracy": round(float(difference.mean()), 4),
        "accuracy_95": [round(low, 4), round(high, 4)],
    }


def same_answers(a: Sequence[Share], b: Sequence[Share]) -> float:
    """Share of the problems that both decoded to which they gave the same program."""
    programs = [{(o.seed, o.task_id): o.program for s in shares for o in s.outcomes} for shares in (a, b)]
    common = programs[0].keys() & programs[1].keys()
    return sum(programs[0][key] == programs[1][key] for key in common) / len(common)


def show(table: dict[str, dict[str, Any]], comparisons: Sequence[dict[str, Any]]) -> str:
    """Both tables as Markdown."""
    lines = [
        "| arm | s/problem | CPU s | samples (reused) | generated | value tokens | accuracy [95 %] | MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in table.items():
        low, high = row["accuracy_95"]
        lines.append(
            f"| {name} | {row['seconds']:.4f} | {row['cpu_seconds']:.4f} "
            f"| {row['samples']:.1f} ({row['reused']:.1f}) | {row['generated_tokens']:.0f} "
            f"| {row['value_tokens']:.0f} | {row['accuracy']:.3f} [{low:.3f}, {high:.3f}] "
            f"| {row['peak_mib'] + row['peak_gpu_mib']} |"
        )
    lines += ["", "| arm | " + " | ".join(SHARES) + " |", "|---|" + "---|" * len(SHARES)]
    for name, row in table.items():
        if row["wall_shares"]:
            parts = " | ".join(f"{row['wall_shares'][part]:.2%}" for part in SHARES)
            lines.append(f"| {name} | {parts} |")
    lines += ["", "| first : second | times fewer seconds | CPU seconds | accuracy, paired | pairs |"]
    lines.append("|---|---|---|---|---|")
    for row in comparisons:
        low, high = row["accuracy_95"]
        lines.append(
            f"| {row['arms'][0]} : {row['arms'][1]} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} "
            f"| {row['accuracy']:+.3f} [{low:+.3f}, {high:+.3f}] | {row['pairs']} |"
        )
    return "\n".join(lines)
