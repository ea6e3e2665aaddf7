"""The demo's results: report.json, report.html and the table on the terminal."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from restrl.demo.jobs import ARMS, HEADS, SEARCHED, Settings, decode_parts
from restrl.pipeline import versions
from restrl.report import write_report
from restrl.rows import Row, read_rows, write_json
from restrl.training.rollout import STD_BIN_WIDTH, STD_BINS

KEPT = (
    "accuracy", "stderr", "problems", "generated_tokens", "value_tokens", "verifier_seconds", "seconds",
)  # fmt: skip


def write(folder: Path, settings: Settings, wall: float) -> None:
    """Write report.json and report.html from what the jobs left."""
    rows, curves = _rows(folder)
    training = {arm: read_rows(folder / arm / "policy" / "metrics.jsonl") for arm in ARMS}
    seconds = {path.stem: _json(path)["seconds"] for path in sorted((folder / "jobs").glob("*.json"))}
    write_json(
        folder / "report.json",
        {
            "seed": settings.seed,
            "rows": rows,
            "curves": curves,
            "reward_std": {arm: _histogram(metrics) for arm, metrics in training.items()},
            "training": training,
            "trees": {
                f"VM-MCTS on {policy}, {head} head": f"{policy}/search/answers.{head}.tree.json"
                for policy in SEARCHED
                for head in HEADS
            },
            "settings": dataclasses.asdict(settings),
            "seconds": {**seconds, "total": round(wall, 1)},
            "versions": versions(),
        },
    )
    write_report(folder)


def text(folder: Path) -> str:
    """The table: one line per policy and decoding."""
    report = _json(folder / "report.json")
    lines = [
        f"{'policy':<12} {'decoding':<11} {'value head':<10} {'budget':>6}  accuracy (s.e.)"
        f"  {'tokens':>9} {'seconds':>8}"
    ]
    for row in report["rows"]:
        lines.append(
            f"{row['policy']:<12} {row['decoding']:<11} {row['value_head'] or '-':<10} {row['budget']:>6}"
            f"  {row['accuracy']:.3f} ({row['stderr']:.3f})    {row['generated_tokens']:>9}"
            f" {row['seconds']:>8.1f}"
        )
    lines.append("\nstd of the rewards within the groups that GRPO trained on:")
    lines += [f"  {arm:<12} {entry['mean']:.3f}" for arm, entry in report["reward_std"].items()]
    count = report["rows"][0]["problems"]
    lines.append(
        f"\n{count} held-out problems, seed {report['seed']}; s.e.: standard error of the mean over "
        f"problems; {report['seconds']['total']:.0f} s. Details: {folder / 'report.html'}"
    )
    return "\n".join(lines)


def _rows(folder: Path) -> tuple[list[Row], list[Row]]:
    """(rows at the full budget, rows at every budget of the methods that have several)."""
    rows: list[Row] = []
    curves: list[Row] = []
    for policy, part in decode_parts():
        results = _json(folder / policy / part / "results.json")["rows"]
        for row in results:
            key = {"policy": policy, "decoding": row["decoding"], "value_head": row["value_head"]}
            kept = {**key, "budget": row["budget"], **{name: row[name] for name in KEPT}}
            group = [
                r["budget"] for r in results if (r["decoding"], r["value_head"]) == tuple(key.values())[1:]
            ]
            if row["budget"] == max(group):
                rows.append(kept)
            if len(group) > 1:
                curves.append({**key, **{name: row[name] for name in ("budget", "accuracy", "stderr")}})
    return rows, curves


def _histogram(metrics: list[Row]) -> dict[str, Any]:
    """Mean and histogram of the within-group reward std over all groups of a training run."""
    names = sorted(name for name in metrics[0] if name.startswith("reward_std/bin_"))
    counts = [sum(row[name] for row in metrics) for name in names]
    edges = [round(i * STD_BIN_WIDTH, 2) for i in range(STD_BINS + 1)]
    return {
        "mean": sum(row["reward_std"] for row in metrics) / len(metrics),
        "histogram": {"edges": edges, "counts": counts},
    }


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
