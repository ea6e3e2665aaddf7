"""Stage 1, steps 3 and 4: keep the prompts whose rewards vary and add partial programs as starting states."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from restrl.config import AssembleConfig
from restrl.errors import RestrlError
from restrl.records import SCHEMA_VERSION, Problem
from restrl.rows import Row, write_json, write_rows


def assemble(
    samples: Sequence[Row], problems: Mapping[str, Problem], cfg: AssembleConfig, out: Path, *, seed: int
) -> list[Row]:
    """Write the training states to `out` and what was kept to `out` with the suffix .stats.json.

    Row: {"schema", "task_id", "kind": "bare" | "partial", "state": prefix + whole lines, "lines": int}.
    Raises RestrlError if nothing is left to train on.
    """
    rows: list[Row] = []
    counts = {"prompts": 0, "kept": 0, "dead": 0, "unscored": 0, "bare": 0, "partial": 0}
    stds: list[float] = []
    for position, row in enumerate(samples):
        problem = problems[row["task_id"]]
        counts["prompts"] += 1
        scored = [(c, r) for c, r in zip(row["completions"], row["rewards"], strict=True) if r is not None]
        if not scored and cfg.mode != "naive":
            counts["unscored"] += 1
            continue
        std = float(np.std([r for _, r in scored])) if scored else 0.0
        stds.append(std)
        counts["dead"] += len({r for _, r in scored}) == 1  # np.std of equal rewards may be 1e-17
        if cfg.mode != "naive" and std < cfg.sigma0:
            continue
        counts["kept"] += 1
        rows.append(_state(problem, "bare", problem.prefix, 0))
        if cfg.mode == "rest":
            best, reward = max(scored, key=lambda pair: pair[1])  # the first maximum
            if reward >= cfg.r0:
                rng = np.random.default_rng([seed, position])
                for lines, state in partial_states(problem.prefix, best, cfg, rng):
                    rows.append(_state(problem, "partial", state, lines))
    counts["bare"] = sum(row["kind"] == "bare" for row in rows)
    counts["partial"] = len(rows) - counts["bare"]
    if not rows:
        raise RestrlError(
            f"{out}: no prompt is left to train on: none of {counts['prompts']} has a reward std of at least "
            f"assemble.sigma0 = {cfg.sigma0}; use more samples, easier problems or assemble.mode = 'naive'"
        )
    write_json(out.with_suffix(".stats.json"), {**counts, "reward_std": _summary(stds)})
    write_rows(out, rows)
    return rows


def partial_states(
    prefix: str, completion: str, cfg: AssembleConfig, rng: np.random.Generator
) -> list[tuple[int, str]]:
    """Line-prefixes of the best completion as (number of lines, state), drawn with weight alpha^i.

    With L lines, prefix i = 0..L-1 is `prefix` and the first i + 1 lines, each ending in a newline; the last
    is the whole program. ceil(partial_ratio * L) or partial_count draws with replacement; "all" is every one.
    """
    lines = completion.rstrip().split("\n")
    if lines == [""]:
        return []
    count = len(lines)
    if cfg.partial_count == "all":
        chosen = list(range(count))
    else:
        draws = math.ceil(cfg.partial_ratio * count) if cfg.partial_count is None else cfg.partial_count
        weights = cfg.alpha ** np.arange(count)
        chosen = rng.choice(count, size=draws, replace=True, p=weights / weights.sum()).tolist()
        if not cfg.keep_duplicates:
            chosen = list(dict.fromkeys(chosen))
    return [(i + 1, prefix + "\n".join(lines[: i + 1]) + "\n") for i in chosen]


def _state(problem: Problem, kind: str, state: str, lines: int) -> Row:
    return {
        "schema": SCHEMA_VERSION,
        "task_id": problem.task_id,
        "kind": kind,
        "state": state,
        "lines": lines,
    }


def _summary(stds: list[float]) -> dict[str, Any]:
    counts, edges = np.histogram(stds, bins=20, range=(0.0, 0.5))
    return {
        "mean": float(np.mean(stds)) if stds else 0.0,
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
    }
