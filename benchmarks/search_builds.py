"""Rows of bench_search.py in two builds of restrl, in turns: what a change is worth on a shared machine.

    python benchmarks/search_builds.py DIR [--only WORD] [--pairs N]

DIR holds the other build: `pip install --no-deps --target DIR .` in a checkout of its commit. Each build has
a process. A row runs in the other build, in this one and in the other again, all on one core, and the ratio
is this one's speed over the mean of its neighbours': a machine that slows down slows all three. Above 1 this
build is faster, whatever the row's unit. Rows of one thread only; peers are left out.

--only   rows whose name has this word
--pairs  ratios per row (21), rounded up to a multiple of the cores
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import harness  # which imports restrl: a build's process first says where that is

OTHERS = ("plain Python", "whole prefixes", "TreeQuest", " over ")  # rows that say nothing of the build alone
FULL = "1e7"


class Build:
    """A process with the restrl of `folder` (None: this environment's) that runs rows by their names."""

    def __init__(self, folder: Path | None) -> None:
        words = [sys.executable, __file__, "serve", *([] if folder is None else [str(folder)])]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.folder = self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a build's process ended; what it printed stands above")
        return str(json.loads(line))

    def run(self, name: str) -> float:
        """The row's value; LookupError if this build cannot run it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(name) + "\n")
        self.process.stdin.flush()
        answer = self.answer()
        try:
            return float(answer)
        except ValueError:
            raise LookupError(answer) from None

    def pin(self, core: int) -> None:
        if hasattr(os, "sched_setaffinity") and core >= 0:
            os.sched_setaffinity(self.process.pid, {core})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()


def serve(folder: str | None) -> None:
    """Says where its restrl is, then for every name of a row on a line its value or what went wrong."""
    sys.path.insert(0, str(Path(__file__).parent))
    if folder is not None:  # before what an editable install puts in front of the path
        sys.path.insert(0, folder)
        sys.meta_path[:] = [f for f in sys.meta_path if f is PathFinder or not knows_restrl(f)]
    bench = importlib.import_module("bench_search")
    runs = {case.name: case.run for case in bench.cases(None)}
    print(json.dumps(str(Path(str(sys.modules["restrl"].__file__)).parent)), flush=True)
    for line in sys.stdin:
        try:
            answer: object = runs[json.loads(line)]()
        except Exception as error:  # this build may be older than the row
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)


def knows_restrl(finder: object) -> bool:
    find = getattr(finder, "find_spec", None)
    return find is not None and find("restrl", None) is not None


def ratios(
    other: Callable[[], float], this: Callable[[], float], pairs: int, more_is_better: bool
) -> list[float]:
    """Speeds of `this` over the mean of those of `other` before and after; the first run of each is lost."""
    from bench_search import faster

    other(), this()
    found = [faster(other, this) for _ in range(pairs)]
    return [1 / ratio for ratio in found] if more_is_better else found


def compare(other: Build, this: Build, only: str, pairs: int) -> list[harness.Row]:
    import harness
    from bench_search import cases

    cores = sorted(harness.cores())
    rows = []
    for case in cases(None):
        if only not in case.name or not case.by_speed or any(word in case.name for word in (*OTHERS, FULL)):
            continue
        found: list[float] = []
        try:
            for core in cores:
                other.pin(core)
                this.pin(core)
                runs = (lambda: other.run(case.name)), (lambda: this.run(case.name))  # noqa: B023
                found += ratios(*runs, -(-pairs // len(cores)), case.better == "more")
        except LookupError as error:
            print(f"  {case.name}: one build cannot run it ({error})", flush=True)
            continue
        rows.append(harness.row(case.name, "times the other", found))
        print(f"  {case.name}: {harness.short(rows[-1].p50)}", flush=True)
    return rows


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The search engine in two builds, in turns.")
    parser.add_argument("folder", type=Path, help="where the other build was installed (pip --target)")
    parser.add_argument("--only", default="", help="rows whose name has this word")
    parser.add_argument("--pairs", type=int, default=21, help="ratios per row")
    args = parser.parse_args(words)
    if not (args.folder / "restrl").is_dir():
        parser.error(f"no restrl in {args.folder}; pip install --no-deps --target {args.folder} CHECKOUT")
    import harness

    with Build(args.folder) as other, Build(None) as this:
        print(f"this: {this.folder}\nother: {other.folder}", flush=True)
        print("", harness.table(compare(other, this, args.only, args.pairs)), sep="\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2] if len(sys.argv) > 2 else None)
    else:
        main()
