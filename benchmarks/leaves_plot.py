"""The picture of bench_leaves.py's rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Row = dict[str, Any]
COLOURS = ("#1b6ca8", "#d1495b", "#4c956c", "#8d6a9f", "#c98a1b")
TICKS = (1, 2, 4, 8, 16, 32)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Four panels; those of parts that were not run stay empty."""
    plt.rcParams.update({"font.size": 8, "svg.hashsalt": "leaves", "svg.fonttype": "none"})
    figure, axes = plt.subplots(2, 2, figsize=(8.4, 6))
    plain = [r for r in rows if r.get("trees") == 1 and r["c"] == 0.1 and r["budget"] == "simulations"]
    for ax, sims in zip(axes[0], (20, 100), strict=True):
        _over_leaves(ax, [r for r in plain if r["part"] == "simulated" and r["simulations"] == sims], "noise")
        ax.set_title(f"Simulated task, {sims} simulations")
    _over_rounds(axes[1][0], [r for r in plain if r["part"] == "rules" and r["simulations"] == 20])
    axes[1][0].set_title("Rules by rounds, 20 simulations, noise 0.5")
    _over_leaves(
        axes[1][1], [r for r in plain if r["part"] == "real" and r["simulations"] == 20], "temperature"
    )
    axes[1][1].set_title("Pipelines policy, 20 simulations")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _over_leaves(ax: Axes, rows: Sequence[Row], name: str) -> None:
    """Difference from F = 1 with its interval; solid "loss", dashed "unobserved", dotted with reuse."""
    levels = sorted({r[name] for r in rows if r["mode"] == "value"})
    for colour, level in zip(COLOURS, levels, strict=False):
        for style, keep, label in _STYLES:
            line = sorted((r for r in rows if r[name] == level and keep(r)), key=lambda r: r["leaves"])
            if len(line) < 2:
                continue
            xs = [r["leaves"] for r in line]
            ax.plot(
                xs, [r["right_minus"][0] for r in line], style, color=colour, label=f"{name} {level}{label}"
            )
            if not label:
                lows, highs = zip(*(r["right_minus"][1:] for r in line), strict=True)
                ax.fill_between(xs, lows, highs, color=colour, alpha=0.12, linewidth=0)
    ax.axhline(0, color="black", linewidth=0.6)
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -0.05), max(high, 0.05))  # a flat line should look flat
    ax.set_xscale("log", base=2)
    ax.set_xticks(TICKS, [str(tick) for tick in TICKS])
    ax.set_xlabel("leaves in flight F")
    ax.set_ylabel("right answers, minus F = 1")
    if levels:
        ax.legend(fontsize=6)


_STYLES: tuple[tuple[str, Callable[[Row], bool], str], ...] = (
    ("o-", lambda r: r["mode"] == "value" and not r["reuse"] and r["rule"] == "loss", ""),
    (
        "s--",
        lambda r: r["mode"] == "value" and not r["reuse"] and (r["rule"] == "unobserved" or r["leaves"] == 1),
        ", unobserved",
    ),
    ("^:", lambda r: r["part"] == "real" and r["reuse"], ", reuse"),
)


def _over_rounds(ax: Axes, rows: Sequence[Row]) -> None:
    """Right answers against the calls of the policy that must follow one another; F = 1, 2, 4, 8, 16."""
    rows = [r for r in rows if r["noise"] == 0.5]
    alone = [r for r in rows if r["leaves"] == 1]
    rules = sorted({(r["rule"], r["weight"]) for r in rows if r["leaves"] > 1})
    for colour, (rule, weight) in zip(COLOURS, rules, strict=False):
        line = [r for r in rows if (r["rule"], r["weight"]) == (rule, weight)] + alone
        line.sort(key=lambda r: r["leaves"])
        label = f"{rule}, weight {weight}"
        ax.plot([r["rounds"] for r in line], [r["right"] for r in line], "o-", color=colour, label=label)
    ax.set_xlabel("rounds (calls that follow one another)")
    ax.set_ylabel("right answers")
    if rules:
        ax.legend(fontsize=6)
