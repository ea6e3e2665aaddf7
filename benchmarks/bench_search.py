"""The search engine: simulations per second, memory, threads, and what the same search costs elsewhere.

    python benchmarks/bench_search.py [--full] [--history] [--treequest DIR] [--only WORD]

Every row has the figure to reach and says whether it is met. One-thread rows are CPU time, so that other work
on the machine costs less than it would on the clock. Rows of two threads are wall time, but for the one that
says otherwise, and need two idle cores; their first run, which finds the memory, is left out. A ratio is
formed within each repeat, both sides one after the other. The synthetic tree: k = 5, the best 3 visible,
c = 0.2, eps = 0.1, depth at most 60, rewards 0 or 1; a simulation is select, expand five children, back up.

On a machine that others share a core runs at full speed only now and then. Rows of one thread are repeated
until there are enough repeats of such moments, or for --patience seconds more than they take, each on the
core that is the fastest at its start; "full speed" is the median of those, p50 that of the first repeats.

--full       also the row of 1e7 simulations in one tree (2 GB)
--history    append the run to benchmarks/history/search.json
--treequest  where `pip install --target DIR treequest==0.3.3` put the peer, if not in this environment
--only       rows whose name has this word
--patience   seconds that a row may look for moments of full speed (20)
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import harness
import numpy as np
import peers
from harness import Row

from restrl._core import Forest, SearchParams, bench_forest, bench_tree

HISTORY = Path(__file__).parent / "history" / "search.json"
CROWD = "10,000 trees x 16 leaves"
REWARDS = peers.draw_rewards(50_000)
SCORES = np.array(REWARDS)
SHORT = "x\n" * 3
PER_S = "simulations/s"
LONG = "    value = value * 2 + 1  # and so on\n" * 32  # 1.2 kB


@dataclass(frozen=True)
class Case:
    """A row to be: `run` gives one value; `why_not` says why it cannot be measured here."""

    name: str
    unit: str
    run: Callable[[], float]
    must: float | None = None
    stretch: float | None = None
    better: Literal["more", "less"] = "more"
    repeats: int = 7
    full: bool = False
    warm: bool = False  # the first run, which finds the machine's memory, is left out
    why_not: str | None = None

    @property
    def by_speed(self) -> bool:
        """Whether it is the speed of one thread, as that of the core is."""
        return self.unit in (PER_S, "ms") and "threads" not in self.name

    def measure(self, speed: harness.Speed, patience: float) -> Row:
        if self.warm:
            self.run()
        if self.by_speed:
            values, fast = speed.measure(self.run, self.repeats, patience)
        else:
            values, fast = [self.run() for _ in range(self.repeats)], []
        note = f"{min(values):.2f} to {max(values):.2f} in {len(values)}" if self.warm else ""
        return harness.row(self.name, self.unit, values, self.must, self.stretch, self.better, note, fast)


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


# -- the tree alone, in C++ (csrc/search/synthetic.h)


def rate(simulations: int, leaves: int = 1, scalar: bool = False) -> float:
    """One tree; with many leaves in flight, a window is gathered, then applied."""
    return simulations / bench_tree(simulations, leaves_in_flight=leaves, scalar=scalar)["cpu_seconds"]


def bytes_per_node(simulations: int, leaves: int) -> float:
    """Memory besides text."""
    found = bench_tree(simulations, leaves_in_flight=leaves)
    return found["bytes"] / found["nodes"]


def speed_up(simulations: int) -> float:
    """Two threads with a tree each over one thread with one tree; wall time."""
    return 2 * faster(
        lambda: bench_tree(simulations)["seconds"],
        lambda: bench_tree(simulations, trees=2, threads=2)["seconds"],
    )


def cpu_speed_up(simulations: int) -> float:
    """The same in CPU time: what two cores that are free all the time would make of it.

    Threads that share nothing lose to each other by the memory alone; what wall time loses besides is the
    machine's, which takes cores away.
    """
    return 4 * faster(
        lambda: bench_tree(simulations)["cpu_seconds"],
        lambda: bench_tree(simulations, trees=2, threads=2)["cpu_seconds"],
    )


@cache
def workers() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))


def against_processes(simulations: int) -> float:
    """Two threads with a tree each over two such processes: below 1 is what threads lose to each other."""
    return faster(
        lambda: max(workers().map(tree_seconds, (simulations, simulations))),
        lambda: bench_tree(simulations, trees=2, threads=2)["seconds"],
    )


def tree_seconds(simulations: int) -> float:
    return float(bench_tree(simulations)["seconds"])


def faster(one: Callable[[], float], two: Callable[[], float]) -> float:
    """Seconds of `one`, before and after `two`, over those of `two`: a machine that slows down slows both."""
    before, both, after = one(), two(), one()
    return (before + after) / 2 / both


def round_ms(simulations: int, part: Literal["gather", "round"], threads: int = 1) -> float:
    """1000 trees: gather 16 leaves of each, or gather and apply them; a tree is cold when its turn comes.

    CPU time with one thread, wall time with more.
    """
    found = bench_tree(simulations, trees=1000, leaves_in_flight=16, rounds=1, threads=threads)
    return 1e3 * found[f"{part}_cpu_seconds" if threads == 1 else f"{part}_seconds"]


# -- the forest, with texts


def forest_rate(trees: int, leaves: int, simulations: int) -> float:
    """All trees of a forest driven in C++ through next() and fulfil(), answers made beforehand."""
    found = bench_forest(simulations // trees, leaves_in_flight=leaves, trees=trees)
    return found["simulations"] / found["cpu_seconds"]


def forest_speed_up(
    trees: int, leaves: int, simulations: int, batch: int = 64, prepared: bool = True
) -> float:
    """Two threads that drive one forest, `batch` requests at a time each, over one that does; wall time.

    One tree: with no more leaves in flight than a batch, one thread holds them all and the other has none.
    Not `prepared`: a thread puts the five completions of a request together itself, the least that a policy
    does; else all it does is to call the forest.
    """

    def seconds(threads: int) -> float:
        found = bench_forest(
            simulations // trees, leaves_in_flight=leaves, trees=trees, threads=threads, batch=batch,
            prepared=prepared,
        )  # fmt: skip
        return found["seconds"]

    return faster(partial(seconds, 1), partial(seconds, 2))


def python_rate(
    simulations: int, text: str, arrays: bool = True, fresh: bool = False, trees: int = 16, leaves: int = 4
) -> float:
    """Trees with so many leaves in flight each, all of them requested at a time, driven from Python.

    Only the calls of the forest are timed. A completion is `text` with a first line of its own; all are made
    once, or `fresh` for every batch, as a policy would: cold, and in memory that the system first has to
    find. `arrays`: ids and scores as arrays, completions as one flat list.
    """
    forest = Forest(
        SearchParams(simulations=simulations // trees, leaves_in_flight=leaves, virtual_loss="loss"), 0
    )
    for i in range(trees):
        forest.add(f"tree {i}", "")
    made = completions(0, trees * leaves, text)
    seconds, done = 0.0, 0
    while True:
        start = time.process_time()
        if arrays:
            ids = forest.take(trees * leaves)[0]
        else:
            batch = forest.next(trees * leaves)
            ids = [request.id for request in batch]
        seconds += time.process_time() - start
        if not len(ids):
            return done / seconds
        values = SCORES[done : done + len(ids)]
        texts = completions(done, len(ids), text) if fresh else made[: peers.K * len(ids)]
        start = time.process_time()
        if arrays:
            forest.fulfil(ids, completions=texts, completion_values=values)
        else:
            rows = [texts[i : i + peers.K] for i in range(0, len(texts), peers.K)]
            forest.fulfil(ids, completions=rows, completion_values=values.tolist())
        seconds += time.process_time() - start
        done += len(ids)


def completions(number: int, requests: int, text: str) -> list[str]:
    return [f"{i} of {number}\n{text}" for i in range(peers.K * requests)]


def crowd(trees: int = 10_000) -> tuple[int, float, float]:
    """Leaves in flight once every tree has 16; CPU seconds to hand them out and take the answers; MB."""
    forest = Forest(SearchParams(simulations=1000, leaves_in_flight=16, virtual_loss="loss"), 0)
    before = resident_mb()
    for i in range(trees):
        forest.add(f"tree {i}", "def f(previous):\n")
    for _ in range(5):
        start = time.process_time()
        ids = forest.take(16 * trees)[0]
        states = forest.states(ids)
        seconds = time.process_time() - start
        texts = peers.COMPLETIONS * len(ids)
        values = np.resize(SCORES, (len(ids), peers.K))
        leaves, memory = forest.in_flight(), resident_mb() - before
        start = time.process_time()
        forest.fulfil(ids, completions=texts, completion_values=values)
        seconds += time.process_time() - start
        del states
    return leaves, seconds, memory


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def crowd_rows() -> list[Row]:
    """In a process of its own, whose memory is the forest's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        runs = [pool.apply(crowd)]
    leaves, seconds, memory = zip(*runs, strict=True)
    return [
        harness.row(f"{CROWD}: in flight at once", "leaves", leaves),
        harness.row(f"{CROWD}: a round through Python", "s", seconds, better="less"),
        harness.row(f"{CROWD}: memory with texts and requests", "MB", memory, better="less"),
    ]


# -- peers


def ratio(simulations: int, peer: Callable[[int, peers.Rewards], Any]) -> float:
    """How many times the peer's CPU time the engine saves at the same number of simulations."""
    ours = simulations / rate(simulations)
    return cpu_seconds(lambda: peer(simulations, REWARDS)) / ours


def peer_rate(simulations: int, peer: Callable[[int, peers.Rewards], Any]) -> float:
    return simulations / cpu_seconds(lambda: peer(simulations, REWARDS))


def cases(treequest: str | None) -> list[Case]:
    """Every row, in the order in which it is printed; `treequest`: why that peer cannot be compared."""
    per_s, times_one = PER_S, "times one"
    return [
        Case("C++, 1e4", per_s, partial(rate, 10_000), 2.5e6, 3.2e6, repeats=15),
        Case("C++, 1e5", per_s, partial(rate, 100_000), 2.0e6, 2.6e6),
        Case("C++, 1e6", per_s, partial(rate, 1_000_000), 1.5e6, 2.2e6, repeats=5),
        Case("C++, 1e7", per_s, partial(rate, 10_000_000), 1.1e6, 1.4e6, repeats=3, full=True),
        Case("C++ without AVX2, 1e5", per_s, partial(rate, 100_000, scalar=True)),
        Case("C++, 16 leaves gathered, then applied, 1e5", per_s, partial(rate, 100_000, 16), 1.0e6, 1.4e6),
        Case("memory, 1e6", "bytes/node", partial(bytes_per_node, 1_000_000, 1), 28, None, "less", 1),
        Case("memory, 16 leaves", "bytes/node", partial(bytes_per_node, 1_000_000, 16), 28, None, "less", 1),
        *(
            Case(f"two threads, a tree each, {name}{what}", unit, partial(measure, size), must, repeats=n,
                 warm=True)
            for name, size, n in (("1e5", 100_000, 31), ("1e6", 1_000_000, 9))
            for what, unit, measure, must in (
                ("", times_one, speed_up, 1.8),
                (", CPU time", times_one, cpu_speed_up, None),
                (", against processes", "times two processes", against_processes, None),
            )
        ),
        Case("two threads, a forest of 256 trees", times_one, partial(forest_speed_up, 256, 4, 500_000), 1.8,
             repeats=9, warm=True),
        Case("two threads, a forest of one tree", times_one, partial(forest_speed_up, 1, 256, 200_000), 1.5,
             repeats=9, warm=True),
        Case("two threads, a forest of one tree, completions made", times_one,
             partial(forest_speed_up, 1, 256, 200_000, prepared=False), 1.5, repeats=9, warm=True),
        *(
            Case(f"1000 x 16 leaves, {part} at {n}", "ms", partial(round_ms, n, part), must, None, "less")
            for part, musts in (("gather", (3, 8, 13)), ("round", (None, None, None)))
            for n, must in zip((77, 221, 925), musts, strict=True)
        ),
        *(
            Case(f"1000 x 16 leaves, round at {n}, two threads", "ms", partial(round_ms, n, "round", 2), None,
                 None, "less")
            for n in (77, 221, 925)
        ),
        Case("forest in C++, 16 trees x 4 leaves", per_s, partial(forest_rate, 16, 4, 50_000)),
        Case("Python, arrays, batches of 64", per_s, partial(python_rate, 50_000, SHORT), 1.5e6, 2.5e6),
        *(
            Case(f"Python, arrays, {n} trees x 1 leaf", per_s,
                 partial(python_rate, 50_000, SHORT, trees=n, leaves=1), 1.5e6, 2.5e6)
            for n in (64, 256)
        ),
        Case("Python, lists, batches of 64", per_s, partial(python_rate, 50_000, SHORT, arrays=False)),
        Case("Python, five strings of 1.2 kB", per_s, partial(python_rate, 50_000, LONG), 1.5e6),
        Case("Python, the same, fresh strings", per_s, partial(python_rate, 50_000, LONG, fresh=True)),
        Case("plain Python, 1e4", per_s, partial(peer_rate, 10_000, peers.plain), repeats=5),
        Case("whole prefixes in Python, 1e4", per_s, partial(peer_rate, 10_000, peers.prefix), repeats=5),
        Case("C++ over plain Python, 1e4", "times", partial(ratio, 10_000, peers.plain), repeats=5),
        Case("C++ over whole prefixes, 1e4", "times", partial(ratio, 10_000, peers.prefix), 150, repeats=5),
        Case("TreeQuest, 1e3", per_s, partial(peer_rate, 1000, peers.treequest), repeats=3,
             why_not=treequest),
        Case("C++ over TreeQuest, 1e3", "times", partial(ratio, 1000, peers.treequest), repeats=3,
             why_not=treequest),
    ]  # fmt: skip


def main() -> None:
    args = arguments()
    about = {"machine": harness.machine(), "versions": harness.versions("numpy")}
    print(f"commit {harness.commit()}; {about['machine']}; {about['versions']}", flush=True)
    rows, absent = [harness.calibrate()], []
    speed = harness.Speed(min(10.0, args.patience))
    for case in cases(peers.find_treequest(args.treequest)):
        if args.only not in case.name or (case.full and not args.full):
            continue
        if case.why_not is None:
            rows.append(case.measure(speed, args.patience))
            fast = f", at full speed {harness.short(rows[-1].fast)}" if rows[-1].fast else ""
            print(f"  {case.name}: {harness.short(rows[-1].p50)} {case.unit}{fast}", flush=True)
        else:
            absent.append(f"{case.name}: {case.why_not}")
    if args.only in CROWD:
        rows += crowd_rows()
    rows.append(harness.calibrate())
    print("", harness.table(rows), *absent, sep="\n")
    if args.history:
        harness.append(HISTORY, rows, about)
        print(f"appended to {HISTORY}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The search engine's figures.")
    parser.add_argument("--full", action="store_true", help="also 1e7 simulations in one tree")
    parser.add_argument("--history", action="store_true", help=f"append to {HISTORY.name}")
    parser.add_argument("--treequest", type=Path, help="folder of the peer, if not in this environment")
    parser.add_argument("--only", default="", help="rows whose name has this word")
    parser.add_argument("--patience", type=float, default=20, help="seconds a row may look for full speed")
    return parser.parse_args()


if __name__ == "__main__":
    main()
