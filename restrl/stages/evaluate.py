"""Verify the answers of every decoding method and say how good they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from restrl.records import SCHEMA_VERSION, Problem
from restrl.rows import Row, write_json, write_rows
from restrl.sandbox import Verifier
from restrl.stages.collect import known_reward


def evaluate(
    answers: Sequence[Row], problems: Mapping[str, Problem], verifier: Verifier, out: Path, *, seed: int
) -> list[Row]:
    """Verify decoded answers; writes to the folder `out`

    samples.jsonl   the answers of the first method in the form of EvalPlus and human-eval:
                    {"task_id", "solution", "completion", "sample_id", "seed", "reward"}
    <method>.samples.jsonl   the same for every other method
    results.json    {"schema", "rows": [{"decoding", "budget", "accuracy", "stderr", "reward", "problems",
                    "generated", "generated_tokens", "value_tokens", "verifier_seconds", "seconds"}],
                    "eval": {task_id: [{"task_id", "decoding", "budget", "solution", "status", "reward"}]}}

    accuracy is the share of problems solved (all tests passed) by the method's answer, or, where a row has
    several programs ("sample"), the mean over problems of the share of them that is right; stderr is the
    standard error of that mean over problems. Returns the rows.
    """
    verdicts = iter(
        verifier.verify([(problems[row["task_id"]], text) for row in answers for text in row["programs"]])
    )
    groups: dict[tuple[str, int], list[Row]] = {}
    details: dict[str, list[Row]] = {}
    for row in answers:
        own = [next(verdicts) for _ in row["programs"]]
        rewards = [known_reward(verdict, row["task_id"]) for verdict in own]
        scored = {
            **row,
            "right": float(np.mean([v.passed for v in own])),
            "reward": float(np.mean(rewards)),
        }
        groups.setdefault((row["decoding"], row["budget"]), []).append(scored)
        details.setdefault(row["task_id"], []).extend(
            {
                "task_id": row["task_id"],
                "decoding": row["decoding"],
                "budget": row["budget"],
                "solution": program,
                "status": verdict.status,
                "reward": verdict.reward,
            }
            for program, verdict in zip(row["programs"], own, strict=True)
        )
    rows = [_summary(decoding, budget, members) for (decoding, budget), members in groups.items()]
    largest = {decoding: max(b for d, b in groups if d == decoding) for decoding, _ in groups}
    for number, (decoding, budget) in enumerate(largest.items()):
        name = "samples.jsonl" if number == 0 else f"{decoding}.samples.jsonl"
        write_rows(out / name, _samples(groups[decoding, budget], problems, seed))
    write_json(out / "results.json", {"schema": SCHEMA_VERSION, "rows": rows, "eval": details})
    return rows


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (sample std over the root of the count; 0 for fewer than two)."""
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(np.mean(values)), spread


def _summary(decoding: str, budget: int, members: Sequence[Row]) -> Row:
    accuracy, stderr = mean_and_stderr([m["right"] for m in members])
    totals: dict[str, Any] = {
        key: sum(m[key] for m in members)
        for key in ("generated", "generated_tokens", "value_tokens", "verifier_seconds", "seconds")
    }
    return {
        "decoding": decoding,
        "budget": budget,
        "accuracy": accuracy,
        "stderr": stderr,
        "reward": float(np.mean([m["reward"] for m in members])),
        "problems": len(members),
        **totals,
    }


def _samples(members: Sequence[Row], problems: Mapping[str, Problem], seed: int) -> list[Row]:
    return [
        {
            "task_id": m["task_id"],
            "solution": program,
            "completion": program[len(problems[m["task_id"]].prefix) :],
            "sample_id": i,
            "seed": seed,
        }
        for m in members
        for i, program in enumerate(m["programs"])
    ]
