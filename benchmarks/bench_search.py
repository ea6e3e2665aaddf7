"""Simulations per second of the native forest with the dummy policy, one core.

    python benchmarks/bench_search.py [SIMULATIONS ...]

One JSON row per size and leaves in flight: a tree of that many simulations (collect mode, k = 5, 3 visible
children, no terminal nodes: every simulation is an expansion), driven in C++; the dummy policy's own time is
part of it. `depth` is the mean depth of the expanded nodes.
"""

from __future__ import annotations

import json
import platform
import sys
import time

from restrl._core import Forest, SearchParams, run_dummy


def mean_depth(forest: Forest, tree: int) -> float:
    depths = [node[1] for node in forest.view(tree)["nodes"] if node[7]]
    return sum(depths) / len(depths)


def measure(simulations: int, leaves_in_flight: int, repeats: int = 5) -> dict[str, object]:
    seconds = []
    for _ in range(repeats):
        params = SearchParams(simulations=simulations, leaves_in_flight=leaves_in_flight)
        forest = Forest(params, 0)
        tree = forest.add("bench", "")
        start = time.perf_counter()
        run_dummy(forest, seed=0, batch=64, ends=0)
        seconds.append(time.perf_counter() - start)
    stats = forest.stats(tree)
    seconds.sort()
    return {
        "bench": "forest",
        "simulations": simulations,
        "leaves_in_flight": leaves_in_flight,
        "depth": round(mean_depth(forest, tree), 1),
        "nodes": stats["nodes"],
        "seconds_p50": round(seconds[repeats // 2], 5),
        "simulations_per_second": round(simulations / seconds[repeats // 2]),
        "bytes_of_text": stats["text_bytes"],
        "machine": platform.machine(),
    }


if __name__ == "__main__":
    for size in [int(argument) for argument in sys.argv[1:]] or [10_000, 100_000]:
        for leaves in (1, 16):
            print(json.dumps(measure(size, leaves)))
