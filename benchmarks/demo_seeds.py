"""Run the demo over seeds and compare its arms, problem by problem.

    python benchmarks/demo_seeds.py --out runs/seeds --seeds 5

Prints, for every comparison, the difference of accuracies in each seed with its paired standard error over
problems, and the mean over seeds with a 95 % bootstrap interval over seeds and problems. Writes the numbers
as JSON beside the demos; seeds that are there already are not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from restrl.pipeline import versions

Key = tuple[str, str, str | None]  # policy, decoding, value head

SAMPLE, GREEDY = "sample", "greedy"
COMPARISONS: list[tuple[Key, Key]] = [
    (("grpo", SAMPLE, None), ("base", SAMPLE, None)),
    (("filter-grpo", SAMPLE, None), ("base", SAMPLE, None)),
    (("rest-grpo", SAMPLE, None), ("base", SAMPLE, None)),
    (("filter-grpo", SAMPLE, None), ("grpo", SAMPLE, None)),
    (("rest-grpo", SAMPLE, None), ("grpo", SAMPLE, None)),
    (("rest-grpo", SAMPLE, None), ("filter-grpo", SAMPLE, None)),
    *(
        ((policy, "vm-mcts", "additive"), (policy, other, head))
        for policy in ("base", "rest-grpo")
        for other, head in [
            (SAMPLE, None), (GREEDY, None), ("vote", None), ("likelihood", None), ("orm", "additive"),
            ("orm-mcts", "additive"), ("vm-mcts", "scalar"),
        ]
    ),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    folders = [args.out / str(seed) for seed in range(args.seeds)]
    for seed, folder in enumerate(folders):
        if not (folder / "report.json").exists():
            command = ["-m", "restrl", "demo", "--seed", str(seed), "--out", str(folder)]
            subprocess.run([sys.executable, *command], check=True)
    results = [right(folder) for folder in folders]
    reports = [json.loads((folder / "report.json").read_text(encoding="utf-8")) for folder in folders]
    summary = {
        "versions": versions(),
        "settings": reports[0]["settings"],
        "seconds": [report["seconds"]["total"] for report in reports],
        "accuracy": {name(key): [float(r[key].mean()) for r in results] for key in results[0]},
        "reward_std": {
            arm: [r["reward_std"][arm]["mean"] for r in reports] for arm in reports[0]["reward_std"]
        },
        "comparisons": [compare(a, b, results) for a, b in COMPARISONS],
    }
    (args.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(table(summary))


def right(folder: Path) -> dict[Key, NDArray[np.float64]]:
    """`[problems]` share of right programs of every policy, decoding and head at the full budget."""
    found: dict[Key, tuple[int, NDArray[np.float64]]] = {}
    for path in sorted(folder.glob("*/*/results.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            key = (path.parts[-3], row["decoding"], row["value_head"])
            if key not in found or row["budget"] > found[key][0]:
                found[key] = (row["budget"], np.array(row["right"]))
    return {key: values for key, (_, values) in found.items()}


def compare(a: Key, b: Key, results: list[dict[Key, NDArray[np.float64]]]) -> dict[str, Any]:
    """Differences a - b by seed, with their paired standard errors, and their mean over seeds."""
    paired = [r[a] - r[b] for r in results]
    rng = np.random.default_rng(0)
    means = []
    for _ in range(4000):
        seeds = rng.integers(len(paired), size=len(paired))
        means.append(np.mean([rng.choice(paired[s], size=len(paired[s])).mean() for s in seeds]))
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "a": name(a),
        "b": name(b),
        "difference": [float(d.mean()) for d in paired],
        "stderr": [float(d.std(ddof=1) / np.sqrt(len(d))) for d in paired],
        "mean": float(np.mean([d.mean() for d in paired])),
        "interval": [float(low), float(high)],
    }


def name(key: Key) -> str:
    policy, decoding, head = key
    return f"{policy} {decoding}{f' ({head})' if head else ''}"


def table(summary: dict[str, Any]) -> str:
    """Both tables as Markdown."""
    count = len(summary["seconds"])
    lines = [f"| policy and decoding | mean of {count} seeds | by seed |", "|---|---|---|"]
    for key, values in summary["accuracy"].items():
        lines.append(f"| {key} | {np.mean(values):.3f} | {' '.join(f'{v:.3f}' for v in values)} |")
    lines += ["", "| difference | mean [95 %] | by seed (paired s.e.) |", "|---|---|---|"]
    for row in summary["comparisons"]:
        seeds = " ".join(f"{d:+.3f} ({s:.3f})" for d, s in zip(row["difference"], row["stderr"], strict=True))
        low, high = row["interval"]
        lines.append(f"| {row['a']} − {row['b']} | {row['mean']:+.3f} [{low:+.3f}, {high:+.3f}] | {seeds} |")
    lines += ["", "| arm | reward std within training groups, by seed |", "|---|---|"]
    for arm, values in summary["reward_std"].items():
        lines.append(f"| {arm} | {' '.join(f'{v:.3f}' for v in values)} |")
    lines.append(f"\nseconds of each demo: {' '.join(f'{s:.0f}' for s in summary['seconds'])}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
