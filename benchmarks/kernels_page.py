"""The figures of docs/kernels.md, written from the history of bench_kernels.py."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kernels_methods import RESTRL

Row = dict[str, Any]
BEGIN, END = "<!-- written by bench_kernels.py --page -->", "<!-- end -->"
OURS = ("restrl", "restrl, with entropies", "restrl, 25 % masked", "restrl, forward", "restrl, in place")
ROOFS = ("matmuls alone", "matmuls in chunks", "copy of the bytes")


def newest(runs: Sequence[dict[str, Any]], gpu: bool = False) -> list[Row]:
    """Of every operation, shape and dtype, the rows of the last run that measured it on a CPU (or a GPU)."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for run in runs:
        if ("gpu" in run["machine"]) != gpu:
            continue
        load, cores = run["machine"]["load"][0], run["machine"]["cores"]
        on = " ".join(filter(None, (run["machine"]["cpu"], run["machine"].get("instructions"))))
        about = f"{run['date']}, commit {run['commit']}, {on}, load {load} on {cores} cores"
        rows = [{**row, "run": about} for row in run["rows"] if "method" in row]
        for key in dict.fromkeys(key_of(row) for row in rows):
            found[key] = [row for row in rows if key_of(row) == key]
    return [row for rows in found.values() for row in rows]


def key_of(row: Row) -> tuple[str, str, str]:
    return row["operation"], row["shape"], row["dtype"]


def write(runs: Sequence[dict[str, Any]], page: Path) -> None:
    """Replaces what stands between the two marks."""
    text = page.read_text(encoding="utf-8")
    new = f"{BEGIN}\n\n{figures(newest(runs))}\n\n{END}"
    page.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: new, text, flags=re.DOTALL), encoding="utf-8")


def figures(rows: Sequence[Row]) -> str:
    """When they were measured, and three tables, of what there is."""
    about = ";\n".join(dict.fromkeys(row["run"] for row in rows))
    return "\n\n".join(filter(None, (f"Measured {about}.", _fused(rows), _others(rows), _chunks(rows))))


def _fused(rows: Sequence[Row]) -> str:
    """Methods by cases."""
    rows = [r for r in rows if r["operation"] == "fused"]
    cases = list(dict.fromkeys((r["shape"], r["dtype"]) for r in rows))
    if not rows:
        return ""
    lines = [["loss and gradients", *(f"{shape}, {dtype}" for shape, dtype in cases)]]
    for method in dict.fromkeys(r["method"] for r in rows):
        found = {(r["shape"], r["dtype"]): r for r in rows if r["method"] == method}
        lines.append([method, *(_cell(found.get(case)) for case in cases)])
    return "Milliseconds, times the three matmuls, MB above the inputs:\n\n" + markdown(lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    parts = [f"{row['p50']:.0f}"]
    if row["method"] != "matmuls alone" and row["times_roof"] is not None:
        parts.append(f"{row['times_roof']:.2f}")
    if row["memory_mb"] is not None:
        parts.append(f"{row['memory_mb']:.0f} MB")
    return " / ".join(parts)


def _others(rows: Sequence[Row]) -> str:
    """restrl, its error, and the fastest peer of the other operations."""
    lines = [["operation", "restrl, ms", "fastest peer, ms", "restrl over it", "largest error of restrl"]]
    for key in dict.fromkeys(key_of(r) for r in rows if r["operation"] not in ("fused", "chunks")):
        of = {r["method"]: r for r in rows if key_of(r) == key}
        peers = [r for name, r in of.items() if name not in (*OURS, *ROOFS)]
        if RESTRL not in of or not peers:
            continue
        best, ours = min(peers, key=lambda r: r["p50"]), of[RESTRL]
        error = max(ours["errors"].items(), key=lambda item: item[1])
        lines.append(
            [
                ", ".join((key[0], key[2], key[1])),
                f"{ours['p50']:.3g}",
                f"{best['p50']:.3g} ({best['method']})",
                f"{ours['times_best_peer']:.2f}",
                f"{error[1]:.0e} ({error[0]})",
            ]
        )
    return markdown(lines) if len(lines) > 1 else ""


def _chunks(rows: Sequence[Row]) -> str:
    """Times the matmuls and MB, by the rows of a chunk."""
    rows = [r for r in rows if r["operation"] == "chunks" and r["method"].endswith(" rows")]
    if not rows:
        return ""
    cases = list(dict.fromkeys((r["shape"], r["dtype"]) for r in rows))
    sizes = sorted({int(r["method"].split()[0]) for r in rows})
    lines = [["rows of a chunk", *map(str, sizes)]]
    for case in cases:
        found = {int(r["method"].split()[0]): r for r in rows if (r["shape"], r["dtype"]) == case}
        lines.append([", ".join(case), *(_cell_of_chunk(found.get(size)) for size in sizes)])
    return "Times the three matmuls / MB:\n\n" + markdown(lines)


def _cell_of_chunk(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{row['times_roof']:.2f}" + (f" / {row['memory_mb']:.0f}" if row["memory_mb"] is not None else "")


def markdown(lines: Sequence[Sequence[str]]) -> str:
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([rows[0], "|" + "---|" * len(lines[0]), *rows[1:]])
