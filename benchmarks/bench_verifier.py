"""Speed of the verifier; every row is JSON on a line of its own.

    python benchmarks/bench_verifier.py [VERDICTS]     everything below, about two minutes
    python benchmarks/bench_verifier.py --robust       what lasts (verifier_robust.py)

    cost      CPU-milliseconds per verdict of trivial programs (the caller and all its processes, start-up
              subtracted), verdicts/s and start-up, at the tier this machine gives
    scaling   verdicts/s of one pool on all cores over the same pool pinned to one: paired rounds, the median
    latency   a batch of one, and a verdict that the cache knows
    calling   the same problem by the pattern of the reference implementation, one completion per call: a
              process pool, a manager and a process each; and how many times its rate the verifier has

CPU time hardly depends on what else the machine does; verdicts/s, start-up and latency do.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from typing import Any

from restrl.records import Calls, Check, Problem
from restrl.sandbox import Verifier

PREFIX = "def f(x):\n"
RIGHT = PREFIX + "    return x + 1\n"
CHECK = "def check(c):\n" + "".join(f"    assert c({i}) == {i + 1}\n" for i in range(7))
CASES = {
    "check, 7 calls": Check(code=CHECK, entry_point="f"),
    "calls, 10 cases": Calls(fn_name="f", args=[[i] for i in range(10)], expected=list(range(1, 11))),
}


def problem(name: str) -> Problem:
    return Problem(
        task_id=name, source="bench", prompt=PREFIX, mode="complete", prefix=PREFIX, tests=CASES[name]
    )


def cpu() -> float:
    """CPU seconds of this process and of all children that have ended."""
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def show(**row: Any) -> None:
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


def run(name: str, count: int, workers: int) -> tuple[float, float, float, str]:
    """(CPU seconds in all, seconds of the verdicts, seconds to start, tier)."""
    what = problem(name)
    begin, start = cpu(), time.perf_counter()
    with Verifier(workers=workers, cache=False) as verifier:
        ready = time.perf_counter()
        verdicts = verifier.verify([(what, RIGHT)] * count)
        done = time.perf_counter()
        if not all(verdict.passed for verdict in verdicts):
            raise SystemExit("a trivial program did not pass")
    return cpu() - begin, done - ready, ready - start, verifier.isolation


def cost(count: int) -> float:
    """CPU seconds per verdict of the first case with one worker."""
    costs = []
    for name in CASES:
        for workers in (1, 2):
            idle = run(name, 1, workers)[0]
            total, seconds, start_up, tier = run(name, count, workers)
            costs.append((total - idle) / (count - 1))
            show(
                row="cost", case=name, workers=workers, cpu_ms_per_verdict=costs[-1] * 1e3,
                verdicts_per_s=count / seconds, start_up_ms=start_up * 1e3, isolation=tier,
            )  # fmt: skip
    return costs[0]


def scaling(count: int, rounds: int = 5) -> None:
    """Pinned and not, turn by turn: what else runs on the machine then hits both."""
    cores = sorted(os.sched_getaffinity(0))
    for workers in (len(cores), 2 * len(cores)):
        rates: dict[str, list[float]] = {"pinned": [], "free": []}
        costs: dict[str, list[float]] = {"pinned": [], "free": []}
        for _ in range(rounds):
            for name, where in (("pinned", cores[:1]), ("free", cores)):
                os.sched_setaffinity(0, where)
                try:
                    idle = run("check, 7 calls", 1, workers)[0]
                    total, seconds, _, _ = run("check, 7 calls", count, workers)
                finally:
                    os.sched_setaffinity(0, cores)
                rates[name].append(count / seconds)
                costs[name].append((total - idle) / (count - 1) * 1e3)
        ratios = [free / pinned for free, pinned in zip(rates["free"], rates["pinned"], strict=True)]
        show(
            row="scaling", cores=len(cores), workers=workers, rounds=rounds,
            times_one_core=statistics.median(ratios), least=min(ratios), most=max(ratios),
            pinned_per_s=statistics.median(rates["pinned"]), free_per_s=statistics.median(rates["free"]),
            pinned_cpu_ms=statistics.median(costs["pinned"]), free_cpu_ms=statistics.median(costs["free"]),
        )  # fmt: skip


def latency(count: int) -> None:
    what = problem("check, 7 calls")
    with Verifier(workers=1) as verifier:
        ones, hits, batches = [], [], []
        for number in range(count):
            begin = time.perf_counter()
            verifier.verify([(what, f"{RIGHT}# {number}")])
            ones.append(time.perf_counter() - begin)
        for _ in range(2000):
            begin = time.perf_counter()
            verifier.submit(what, RIGHT + "# 0").result()
            hits.append(time.perf_counter() - begin)
        for _ in range(20):
            begin = time.perf_counter()
            verifier.verify([(what, RIGHT + "# 0")] * 200)
            batches.append((time.perf_counter() - begin) / 200)
        ones.sort()
        show(
            row="latency", batch_of_one_ms_p20=ones[len(ones) // 5] * 1e3,
            batch_of_one_ms_p50=statistics.median(ones) * 1e3,
            batch_of_one_ms_p80=ones[4 * len(ones) // 5] * 1e3,
            cache_hit_us_p50=statistics.median(hits) * 1e6,
            cache_hit_in_a_batch_us_p50=statistics.median(batches) * 1e6,
        )  # fmt: skip


# -- the reference implementation's way of calling, rebuilt from its description


def _execute(source: str, results: Any) -> None:
    """In a process of its own: program and tests in one text, run to its end."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            exec(source, {})
            results.append("passed")
        except BaseException as error:
            results.append(f"failed: {error}")


def _judge(source: str, timeout: float) -> str:
    """In the pool's worker: a manager for the result, a process for the program."""
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager:
        results = manager.list()
        process = context.Process(target=_execute, args=(source, results))
        process.start()
        process.join(timeout + 1)
        if process.is_alive():
            process.kill()
            process.join()
        return str(results[0]) if len(results) else "timed out"


def one_by_one(source: str) -> str:
    """One completion as it calls it: a pool for it alone."""
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_judge, source, 6.0).result()


def calling(count: int, ours: float, held: int = 0) -> None:
    """`ours`: CPU seconds per verdict of the verifier, from the same run. `held`: MiB that the caller holds,
    as one with a model does: every fork of it copies their page tables."""
    memory = bytearray(os.urandom(1 << 20) * held)
    source = f"{RIGHT}\n{CHECK}\ncheck(f)\n"
    one_by_one(source)
    begin, start = cpu(), time.perf_counter()
    for _ in range(count):
        if one_by_one(source) != "passed":
            raise SystemExit("a trivial program did not pass")
    seconds, wall = (cpu() - begin) / count, (time.perf_counter() - start) / count
    _, batch, _, _ = run("check, 7 calls", 10 * count, len(os.sched_getaffinity(0)))
    show(
        row="calling", calls=count, caller_holds_mib=len(memory) >> 20,
        cpu_ms_per_verdict=seconds * 1e3, verdicts_per_s=1 / wall,
        times_its_cpu=seconds / ours, times_its_rate=wall * 10 * count / batch,
    )  # fmt: skip


def main() -> None:
    if "--robust" in sys.argv:
        from verifier_robust import robust

        robust(float(sys.argv[sys.argv.index("--robust") + 1]) if sys.argv[-1] != "--robust" else 1.0)
        return
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
    ours = cost(count)
    latency(min(count, 300))
    for held in (0, 1024):
        calling(max(10, count // 25), ours, held)
    scaling(count)


if __name__ == "__main__":
    main()
