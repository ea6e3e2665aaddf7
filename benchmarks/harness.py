"""Rows of a benchmark: percentiles over repeats, the figure that must be reached, a history of runs.

A quantity is measured `repeats` times; p50 is what counts, p20 and p80 say how noisy the machine was.

A core that is shared with somebody else's work runs at half speed for most of the time, and nothing on the
machine says so but a fixed loop that takes longer. Speed.measure() looks at one around every repeat and tells
the repeats of the fast moments apart; it moves to the core that is the fastest at the moment.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import restrl

ROOT = Path(__file__).parents[1]
FULL_SPEED = 1.15  # times the shortest probe: up to it a moment is a fast one


@dataclass(frozen=True)
class Row:
    """One quantity. `met` compares p50 with `must`, None where nothing is asked.

    `fast` is the median of the `fast_repeats` repeats that the machine ran at full speed; None without any,
    and where nobody looked.
    """

    name: str
    unit: str
    p20: float
    p50: float
    p80: float
    repeats: int
    must: float | None = None
    stretch: float | None = None
    better: Literal["more", "less"] = "more"
    note: str = ""
    fast: float | None = None
    fast_repeats: int = 0

    @property
    def met(self) -> bool | None:
        return self.reaches(self.p50)

    def reaches(self, value: float | None) -> bool | None:
        """Whether `value` is what the row must be."""
        if self.must is None or value is None:
            return None
        return value >= self.must if self.better == "more" else value <= self.must


def row(
    name: str,
    unit: str,
    values: Iterable[float],
    must: float | None = None,
    stretch: float | None = None,
    better: Literal["more", "less"] = "more",
    note: str = "",
    fast: Sequence[float] = (),
) -> Row:
    """A row of the values of all repeats, and of the `fast` ones, which ran at full speed."""
    ordered = sorted(values)
    p20, p50, p80 = (quantile(ordered, q) for q in (0.2, 0.5, 0.8))
    full = quantile(sorted(fast), 0.5) if fast else None
    return Row(name, unit, p20, p50, p80, len(ordered), must, stretch, better, note, full, len(fast))


def quantile(ordered: Sequence[float], q: float) -> float:
    """Linear between the two neighbours."""
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def short(value: float | None) -> str:
    """Three figures: 2.31M, 512k, 26.4, 0.031; empty for None."""
    if value is None:
        return ""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


class Speed:
    """How fast the machine's cores are at the moment, against the fastest that this process has seen one."""

    def __init__(self, seconds: float) -> None:
        """Looks at them for so long; a busy neighbour leaves one alone for some milliseconds now and then."""
        self.cores = cores()
        self.shortest = probe()
        end = time.monotonic() + seconds
        with self.pinned():
            while time.monotonic() < end:
                self.choose()

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """What changes the core of this thread ends with it."""
        try:
            yield
        finally:
            pin(self.cores)

    def look(self) -> float:
        """CPU milliseconds of the fixed loop now, on the core that this thread is on."""
        now = probe()
        self.shortest = min(self.shortest, now)
        return now

    def choose(self) -> float:
        """Moves this thread to the core that is the fastest now; what look() says there."""
        looks = []
        for core in sorted(self.cores):
            pin({core})
            looks.append((self.look(), core))
        now, core = min(looks)
        pin({core})
        return now

    def is_full(self, probed: float) -> bool:
        return probed <= FULL_SPEED * self.shortest

    def measure(
        self, run: Callable[[], float], repeats: int, patience: float
    ) -> tuple[list[float], list[float]]:
        """`repeats` values of `run`, each on the core that is the fastest at its start; and those of fast
        moments: `repeats` of these too if they come within `patience` seconds more. `run` is one thread.
        """
        probed, values = [], []
        end = None
        with self.pinned():
            while True:
                before = self.choose()
                values.append(run())
                probed.append(max(before, self.look()))
                fast = [v for v, p in zip(values, probed, strict=True) if self.is_full(p)]
                if len(values) < repeats:
                    continue
                end = end or time.monotonic() + patience
                if len(fast) >= repeats or time.monotonic() >= end:
                    return values[:repeats], fast


def cores() -> set[int]:
    """Those that this thread may use; one of no number where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {-1}


def pin(to: set[int]) -> None:
    """Keeps this thread on these cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, to)


def probe() -> float:
    """CPU milliseconds of a fixed loop, some 2 of them."""
    start = time.process_time()
    sum(i * i for i in range(30_000))
    return (time.process_time() - start) * 1e3


HEADINGS = ("quantity", "unit", "p50", "p20 .. p80", "full speed", "must", "stretch", "")


def table(rows: Sequence[Row]) -> str:
    """The rows for people, one line each."""
    lines = [HEADINGS]
    for r in rows:
        verdict = {None: "", True: "met", False: "NOT MET"}[r.met]
        if r.met is False and r.reaches(r.fast):
            verdict = "met at full speed"
        sign = "" if r.must is None else {"more": ">= ", "less": "<= "}[r.better]
        name = f"{r.name} ({r.note})" if r.note else r.name
        spread = f"{short(r.p20)} .. {short(r.p80)}"
        figures = (short(r.p50), spread, short(r.fast), sign + short(r.must), short(r.stretch))
        lines.append((name, r.unit, *figures, verdict))
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def calibrate(repeats: int = 15) -> Row:
    """CPU time of a fixed piece of Python: its spread is the machine's noise, whatever is measured."""
    values = []
    for _ in range(repeats):
        start = time.process_time()
        sum(i * i for i in range(100_000))
        values.append((time.process_time() - start) * 1e3)
    return row("calibration: a fixed loop of Python", "ms", values, better="less")


def machine() -> dict[str, Any]:
    """What was measured on."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def versions(*packages: str) -> dict[str, str]:
    return {
        "restrl": restrl.__version__,
        "python": sys.version.split()[0],
        **{name: version(name) for name in packages},
    }


def commit() -> str:
    """Of the checkout this file lies in; "+" where it holds changes; "unknown" outside git."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def append(path: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Adds one run to the list of runs in `path`."""
    runs = json.loads(path.read_text()) if path.exists() else []
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    runs.append(
        {"date": now, "commit": commit(), **about, "rows": [{**asdict(r), "met": r.met} for r in rows]}
    )
    path.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
