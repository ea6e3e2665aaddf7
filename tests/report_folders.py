"""Made-up folders of a demo and of a run, for the tests of the report: real shapes, numbers from formulas."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

POLICIES = ("base", "grpo", "filter-grpo", "rest-grpo")
ONE_OF_N = ("vote", "likelihood", "orm", "prm", "orm-mcts", "vm-mcts", "oracle")
NEEDS_HEAD = ("orm", "prm", "orm-mcts", "vm-mcts")
SPEC = "# b: keep items at least 5; c: reverse the order; return the list\ndef f(a):\n"
HOSTILE = "</script></code><b onclick=x>&amp;'"


def write_json(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def accuracy(policy: str, decoding: str, head: str | None, budget: int) -> float:
    """Some accuracy that differs in every cell."""
    base = 0.34 + 0.07 * POLICIES.index(policy)
    gain = {"sample": 0, "greedy": 0.08}.get(decoding)
    if gain is None:
        gain = (
            0.012 * (ONE_OF_N.index(decoding) + 1) * math.log2(budget + 1) * (0.6 if head == "scalar" else 1)
        )
    return round(base + gain, 4)


def result(policy: str, decoding: str, head: str | None, budget: int) -> dict[str, Any]:
    return {
        "policy": policy, "decoding": decoding, "value_head": head, "budget": budget,
        "accuracy": accuracy(policy, decoding, head, budget), "stderr": 0.031, "problems": 200,
        "generated_tokens": 8123 * budget, "value_tokens": 8123 * budget if head == "scalar" else 0,
        "verifier_seconds": 1.25 if decoding == "oracle" else 0.0, "seconds": 0.731 * budget,
    }  # fmt: skip


def results(policy: str, budget: int = 16) -> list[dict[str, Any]]:
    rows = [result(policy, "sample", None, budget), result(policy, "greedy", None, 1)]
    for decoding in ONE_OF_N:
        for head in ("scalar", "additive") if decoding in NEEDS_HEAD else (None,):
            rows.append(result(policy, decoding, head, budget))
    return rows


def curve(policy: str) -> list[dict[str, Any]]:
    names = ("policy", "decoding", "value_head", "budget", "accuracy", "stderr")
    rows = [
        result(policy, row["decoding"], row["value_head"], budget)
        for row in results(policy)[2:]
        for budget in (1, 2, 4, 8, 16)
    ]
    return [{name: row[name] for name in names} for row in rows]


def training(seed: int, steps: int = 60) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {
            "step": i + 1, "loss": rng.gauss(0, 0.01), "reward": 0.45 + 0.004 * i + rng.gauss(0, 0.05),
            "reward_std": 0.25, "frac_reward_zero_std": 0.4 - 0.003 * i + rng.gauss(0, 0.04), "kl": None,
        }
        for i in range(steps)
    ]  # fmt: skip


def spread(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    return {
        "mean": 0.2 + 0.01 * seed,
        "histogram": {
            "edges": [i / 40 for i in range(21)],
            "counts": [rng.randrange(5, 40) + (80 if i == 0 else 0) for i in range(20)],
        },
    }


def tree(key: str = "pipelines/test/0123456789ab", mode: str = "value") -> dict[str, Any]:
    """Three simulations of a tree with a hidden child; the best completion stands below node 1."""

    def node(parent: int, depth: int, n: int, v: float, line: str, **marks: bool) -> dict[str, Any]:
        plain = {"simulation": 0, "W": n * v, "terminal": False, "expanded": False, "visible": True}
        return {"parent": parent, "depth": depth, "N": n, "V": v, "line": line, **plain, **marks}

    def sample(at: int, child: int, value: float, *lines: str) -> dict[str, Any]:
        text = "".join(f"    {line}\n" for line in lines)
        return {"node": at, "child": child, "value": value, "text": text, "tokens": 9 * len(lines)}

    return {
        "schema": 1,
        "key": key,
        "seed": 0,
        "best": 2,
        "params": {"mode": mode, "k": 2, "c": 0.1, "num_decisions": 1},
        "nodes": [
            node(-1, 0, 7, 0.512, SPEC, expanded=True),
            node(0, 1, 5, 0.634, "    b = [x for x in a if x >= 5]\n", expanded=True),
            node(1, 2, 2, 0.911, "    c = b[::-1]\n", expanded=True),
            node(2, 3, 1, 0.955, "    return c\n", terminal=True),
            node(1, 2, 0, 0.207, f"    c = sorted(b)  # {HOSTILE}\n", visible=False),
            node(0, 1, 0, 0.118, "    b = [x for x in a if x > 5]\n", visible=False),
        ],
        "completions": [
            sample(0, 1, 0.41, "b = [x for x in a if x >= 5]", "c = b", "return c"),
            sample(0, 5, 0.32, "b = [x for x in a if x > 5]", "return b"),
            sample(1, 2, 0.973, "c = b[::-1]", "return c"),
            sample(1, 4, 0.2, f"c = sorted(b)  # {HOSTILE}", "return c"),
            sample(2, 3, 0.955, "return c"),
        ],
        "stats": {
            "simulations": 4,
            "expansions": 3,
            "completions": 5,
            "generated_tokens": 94,
            "collisions": 0,
        },
    }


def demo_report(seed: int = 7) -> dict[str, Any]:
    arms = POLICIES[1:]
    return {
        "seed": seed,
        "rows": [row for policy in POLICIES for row in results(policy)],
        "curves": [row for policy in POLICIES for row in curve(policy)],
        "reward_std": {arm: spread(i) for i, arm in enumerate(arms)},
        "training": {arm: training(i) for i, arm in enumerate(arms)},
        "trees": {"rest-grpo, additive": "trees/additive.tree.json"},
        "settings": {"short": False, "grpo": {"learning_rate": 3e-4, "steps": 60}, "problems": 200},
        "seconds": {"grpo": 41.2, "collect": 63.7, "total": 1534.4},
        "versions": {"restrl": "0.1.0", "torch": "2.13.0"},
    }


def demo_folder(folder: Path, **changes: Any) -> Path:
    write_json(folder / "report.json", {**demo_report(), **changes})
    write_json(folder / "trees" / "additive.tree.json", tree())
    return folder


def config() -> dict[str, Any]:
    from restrl.config import parse

    return parse(
        {
            "out": "runs/tiny",
            "seed": 3,
            "iterations": 2,
            "model": {"path": "models/tiny"},
            "problems": {"train": 'data/"quoted".jsonl', "test": "data/test.jsonl"},
            "train": {"epsilon_high": 0.28},
        }
    ).model_dump()


def run_folder(folder: Path) -> Path:
    """A finished run of two iterations."""
    write_json(folder / "config.json", config())
    write_json(
        folder / "run.json",
        {"seed": 3, "versions": {"torch": "2.13.0"}, "git_commit": "abc123", "overlap": 4},
    )
    for i in (1, 2):
        one = folder / f"iter-{i}"
        samples = {"completions": ["x"] * 5, "rewards": [0.0, 0.5, 1.0, None, 0.25]}
        write_rows(one / "samples.jsonl", [{"task_id": str(n), **samples} for n in range(10 + i)])
        counts = {"prompts": 11, "kept": 7, "dead": 3, "unscored": 1, "bare": 7, "partial": 19}
        write_json(one / "states.stats.json", {**counts, "reward_std": spread(i)})
        write_rows(one / "policy" / "metrics.jsonl", training(i, 25))
        (one / "policy" / "final").mkdir()
    write_rows(folder / "value" / "targets.jsonl", [{"task_id": "0"}])
    write_json(folder / "value" / "targets.tree.json", tree(mode="collect"))
    model = folder / "value" / "model"
    (model / "final").mkdir(parents=True)
    write_json(
        model / "value.json",
        {"head": "additive", "eval_auc": 0.8137, "eval_mse": 0.05, "steps": 120, "rows": 3000},
    )
    write_rows(model / "train" / "metrics.jsonl", [{"step": i + 1, "loss": 0.6 / (i + 1)} for i in range(30)])
    write_rows(folder / "decode" / "answers.jsonl", [{"task_id": "0"}])
    write_json(folder / "decode" / "answers.additive.tree.json", tree())
    rows = [
        {k: v for k, v in row.items() if k != "policy"}
        for row in results("grpo")
        if row["value_head"] != "scalar"
    ]
    smaller = [
        {**row, "budget": 8, "accuracy": 0.111} for row in rows if row["decoding"] not in ("sample", "greedy")
    ]
    write_json(folder / "results" / "results.json", {"schema": 1, "rows": smaller + rows})
    return folder
