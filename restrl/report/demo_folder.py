"""The folder of `restrl demo`: report.json and the trees it names."""

from __future__ import annotations

from pathlib import Path

from restrl.report import words
from restrl.report.contents import Contents, DemoFile, Tree, check, read_json, read_tree

REMEDY = "run the same `restrl demo` command again"


def read(folder: Path) -> Contents:
    """What folder/report.json says. Raises RestrlError for a missing or damaged file."""
    path = folder / "report.json"
    demo = check(DemoFile, read_json(path, REMEDY), path, REMEDY)
    parts = {
        "curves": demo.curves,
        "training": demo.training,
        "reward_std": demo.reward_std,
        "trees": demo.trees,
        "seconds": demo.seconds,
        "settings": demo.settings,
        "versions": demo.versions,
    }
    absent = [name for name, part in parts.items() if not part]
    missing = [f"Not in report.json, so not on this page: {', '.join(absent)}."] if absent else []
    trees: dict[str, Tree] = {}
    for name, place in demo.trees.items():
        if (folder / place).exists():
            trees[name] = read_tree(folder / place, REMEDY)
        else:
            missing.append(f"The search tree “{name}” is left out: {place} is not in the folder.")
    short = demo.settings.get("short") is True
    return Contents(
        kind="demo",
        title="restrl demo" + ("" if demo.seed is None else f", seed {demo.seed}"),
        summary=_summary(short),
        missing=missing,
        results=demo.rows,
        curves=demo.curves,
        training=demo.training,
        reward_std=demo.reward_std,
        spread_of=words.SPREAD_DEMO,
        trees=trees,
        seconds=demo.seconds,
        settings=demo.settings,
        versions=demo.versions,
        command="restrl demo" + ("" if demo.seed is None else f" --seed {demo.seed}") + " --short" * short,
    )


def _summary(short: bool) -> list[str]:
    lines = [
        "A small policy, three ways to train it further with the same number of optimiser steps, and ways to "
        "decode held-out problems with each. The numbers are those of this one run with this one seed."
    ]
    if short:
        lines.append(
            "This was the short form: everything is small, and nothing about effects follows from it."
        )
    return lines
