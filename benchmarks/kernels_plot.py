"""The picture of bench_kernels.py's rows: time over the matmuls, memory, and the rows of a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from kernels_page import newest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Row = dict[str, Any]
COLOURS = {
    "restrl": "#1b6ca8",
    "naive": "#b8b8b8",
    "naive, compiled": "#8a8a8a",
    "TRL selective": "#c98a1b",
    "TRL chunked": "#d1495b",
    "Liger": "#4c956c",
}
MANY = 6  # times the roof; bars beyond are cut and labelled


def plot(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """The newest rows of the CPU, or of a GPU if there are none; panels of what they have not stay empty."""
    rows = newest(runs) or newest(runs, gpu=True)
    plt.rcParams.update({"font.size": 8, "svg.hashsalt": "kernels", "svg.fonttype": "none"})
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), width_ratios=(1.4, 1.4, 1))
    fused = [r for r in rows if r["operation"] == "fused"]
    _bars(axes[0], fused, "times_roof", "time / the three matmuls")
    axes[0].axhline(1, color="black", linewidth=0.6)
    axes[0].set_ylim(0, MANY)
    _bars(axes[1], fused, "memory_mb", "MB above the inputs")
    if any(r["memory_mb"] for r in fused):
        axes[1].set_yscale("log")
    _chunks(axes[2], [r for r in rows if r["operation"] == "chunks"])
    axes[0].set_title("Loss and gradients from hidden states")
    axes[1].set_title("Peak memory")
    axes[2].set_title("Rows of a chunk")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _bars(ax: Axes, rows: Sequence[Row], field: str, label: str) -> None:
    cases = list(dict.fromkeys((r["shape"], r["dtype"]) for r in rows))
    width = 0.8 / len(COLOURS)
    for k, (method, colour) in enumerate(COLOURS.items()):
        found = {(r["shape"], r["dtype"]): r[field] for r in rows if r["method"] == method and r[field]}
        xs = [i + (k - len(COLOURS) / 2 + 0.5) * width for i, case in enumerate(cases) if case in found]
        values = [found[case] for case in cases if case in found]
        ax.bar(xs, values, width, color=colour, label=method)
        if field == "times_roof":
            for x, value in zip(xs, values, strict=True):
                if value > MANY:
                    ax.text(x, MANY * 0.97, f"{value:.1f}", ha="center", va="top", fontsize=6, rotation=90)
    ax.set_xticks(range(len(cases)), [f"{shape.replace(' ', chr(10))}\n{dtype}" for shape, dtype in cases])
    ax.tick_params("x", labelsize=6)
    ax.set_ylabel(label)
    ax.legend(fontsize=6)


def _chunks(ax: Axes, rows: Sequence[Row]) -> None:
    """Solid: time over the matmuls; the memory stands in the table."""
    lines = [r for r in rows if r["method"].endswith(" rows")]
    for shape, dtype in dict.fromkeys((r["shape"], r["dtype"]) for r in lines):
        line = [r for r in lines if (r["shape"], r["dtype"]) == (shape, dtype)]
        sizes = [int(r["method"].split()[0]) for r in line]
        ax.plot(sizes, [r["times_roof"] for r in line], "o-", markersize=3, label=f"{shape} {dtype}")
    ax.set_xscale("log", base=2)
    ax.axhline(1, color="black", linewidth=0.6)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("rows")
    ax.set_ylabel("time / the three matmuls")
    if lines:
        ax.legend(fontsize=6)
