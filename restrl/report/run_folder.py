"""The folder of `restrl run`, as far as the run has come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from restrl.report import words
from restrl.report.contents import Contents, Part, Result, Spread, Steps, Tree, check, read_json, read_tree
from restrl.rows import read_rows
from restrl.training.checkpoint import read_metrics

REMEDY = "delete it and run the stage that writes it again"
VALUE_FIELDS = (
    "eval_auc",
    "eval_spearman",
    "eval_mse",
    "constant_mse",
    "best_step",
    "steps",
    "rows",
    "problems",
)


class _Results(Part):
    """results/results.json."""

    rows: list[Result]


def read(folder: Path) -> Contents:
    """What is there of a run. Raises RestrlError for a damaged file."""
    config = read_json(folder / "config.json", "restore the run's config.json")
    iterations = config.get("iterations")
    count = iterations if isinstance(iterations, int) else 1
    missing: list[str] = []
    assembled, spread = _assembled(folder, count, missing)
    training = _training(folder, count, missing)
    value_rows, value_loss = _value(folder, missing)
    results = _results(folder, missing)
    trees = _trees(folder, missing)
    facts = (
        read_json(folder / "run.json", "run the same command again") if (folder / "run.json").exists() else {}
    )
    versions = dict(facts.get("versions") or {})
    if facts.get("git_commit"):
        versions["git commit"] = facts["git_commit"]
    tables: dict[str, tuple[str, list[list[Any]]]] = {}
    if len(assembled) > 1:
        tables["Samples and training states"] = (words.ASSEMBLED, assembled)
    if len(value_rows) > 1:
        tables["Value model"] = (words.VALUE, value_rows)
    return Contents(
        kind="run",
        title="restrl run",
        summary=_summary(config, facts),
        missing=[f"Not there yet, so not on this page: {', '.join(missing)}."] if missing else [],
        results=results,
        curves=[row for row in results if row.decoding not in ("sample", "greedy")],
        training=training,
        reward_std=spread,
        spread_of=words.SPREAD_RUN,
        value_loss=value_loss,
        tables=tables,
        trees=trees,
        settings=config,
        versions=versions,
        command="restrl run config.toml",
        recipe=toml(config),
    )


def _summary(config: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    model, problems = config.get("model"), config.get("problems")
    lines = []
    if isinstance(model, dict) and isinstance(problems, dict):
        test = problems.get("test")
        tail = f", tested on {test}" if test else ", without test problems"
        lines.append(f"{model.get('path')} trained on {problems.get('train')}{tail}.")
    if facts.get("overlap"):
        lines.append(f"{facts['overlap']} of the test problems are also training problems.")
    return lines


def _assembled(
    folder: Path, iterations: int, missing: list[str]
) -> tuple[list[list[Any]], dict[str, Spread]]:
    """A row per iteration that was sampled, and the std of rewards within a problem."""
    rows: list[list[Any]] = [
        [
            "iteration",
            "problems",
            "completions",
            "mean reward",
            "kept",
            "dead",
            "bare states",
            "partial states",
        ]
    ]
    spread: dict[str, Spread] = {}
    for i in range(1, iterations + 1):
        samples, stats = (folder / f"iter-{i}" / name for name in ("samples.jsonl", "states.stats.json"))
        if not samples.exists():
            missing.append(f"sample (iteration {i})")
        if not stats.exists():
            missing.append(f"assemble (iteration {i})")
        if not samples.exists():
            continue
        drawn = read_rows(samples)
        rewards = [r for row in drawn for r in row.get("rewards", []) if isinstance(r, int | float)]
        mean = float(np.mean(rewards)) if rewards else None
        kept = read_json(stats, REMEDY) if stats.exists() else {}
        counts = [kept.get(name) for name in ("kept", "dead", "bare", "partial")]
        total = sum(len(row.get("completions", [])) for row in drawn)
        rows.append([i, len(drawn), total, mean, *counts])
        if isinstance(kept.get("reward_std"), dict):
            spread[f"iteration {i}"] = check(Spread, kept["reward_std"], stats, REMEDY)
    return rows, spread


def _training(folder: Path, iterations: int, missing: list[str]) -> dict[str, Steps]:
    training: dict[str, Steps] = {}
    for i in range(1, iterations + 1):
        policy = folder / f"iter-{i}" / "policy"
        if not (policy / "final").exists():
            missing.append(f"train-policy (iteration {i}{', not finished' if policy.exists() else ''})")
        steps = read_metrics(policy)
        if steps:
            training[f"iteration {i}"] = steps
    return training


def _value(folder: Path, missing: list[str]) -> tuple[list[list[Any]], Steps]:
    """The rows of a table about the value model, and the steps of its training."""
    if not (folder / "value" / "targets.jsonl").exists():
        missing.append("collect")
    model = folder / "value" / "model"
    if not (model / "final").exists():
        missing.append(f"train-value{' (not finished)' if model.exists() else ''}")
    rows: list[list[Any]] = [["value head", *VALUE_FIELDS]]
    if (model / "value.json").exists():
        value = read_json(model / "value.json", REMEDY)
        rows.append([value.get("head"), *(value.get(name) for name in VALUE_FIELDS)])
    return rows, read_metrics(model) or read_metrics(model / "train")


def _results(folder: Path, missing: list[str]) -> list[Result]:
    if not (folder / "decode" / "answers.jsonl").exists():
        missing.append("decode")
    path = folder / "results" / "results.json"
    if not path.exists():
        missing.append("evaluate")
        return []
    return check(_Results, read_json(path, REMEDY), path, REMEDY).rows


def _trees(folder: Path, missing: list[str]) -> dict[str, Tree]:
    """Trees of decode first: they are what the run is for."""
    trees = {
        f"decode, {path.name.removesuffix('.tree.json').partition('.')[2] or 'search'} head": read_tree(
            path, REMEDY
        )
        for path in sorted((folder / "decode").glob("*.tree.json"))
    }
    collected = folder / "value" / "targets.tree.json"
    if collected.exists():
        trees["collect, true rewards"] = read_tree(collected, REMEDY)
    if not trees:
        missing.append("search trees")
    return trees


def toml(config: dict[str, Any]) -> str:
    """A resolved config as the TOML that `restrl run` reads; what is None is left out, as its default."""
    top = [f"{key} = {_literal(value)}" for key, value in _set(config) if not isinstance(value, dict)]
    sections = [
        "\n".join([f"[{key}]", *(f"{name} = {_literal(v)}" for name, v in _set(value))])
        for key, value in _set(config)
        if isinstance(value, dict)
    ]
    return "\n\n".join(["\n".join(top), *sections]) + "\n"


def _set(section: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in section.items() if value is not None]


def _literal(value: Any) -> str:
    """JSON's literals of texts, numbers, booleans and lists are TOML's too."""
    return json.dumps(value, ensure_ascii=True)
