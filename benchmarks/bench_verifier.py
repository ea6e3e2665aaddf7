"""Speed of the verifier; every row is JSON on a line of its own.

    python benchmarks/bench_verifier.py [VERDICTS] [--only ROW,...]     what is below, about two minutes
    python benchmarks/bench_verifier.py --robust                        what lasts (verifier_robust.py)

    start     seconds until a verifier takes programs, with one worker and with one per core, and until all of
              its judges are there
    cost      CPU-milliseconds per verdict of trivial programs (the caller and all its processes, start-up
              subtracted) and verdicts/s, at the tier this machine gives
    scaling   verdicts/s of one pool on all cores over the same pool pinned to one: paired rounds, the median
    latency   a batch of one, and a verdict that the cache knows
    calling   the same problem by the pattern of the reference implementation, one completion per call: a
              process pool, a manager and a process each; and how many times its rate the verifier has. Every
              fork copies the page tables of who calls: a process that holds nothing, one that has imported
              torch and transformers' trainer, as one that trains has, and one that holds 1 GiB

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
import subprocess
import sys
import time
from typing import Any

from verifier_robust import all_there, robust

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


def start(rounds: int = 15) -> None:
    for workers in sorted({1, len(os.sched_getaffinity(0))}):
        usable, whole = [], []
        for _ in range(rounds):
            begin = time.perf_counter()
            with Verifier(workers=workers, cache=False) as verifier:
                usable.append((time.perf_counter() - begin) * 1e3)
                all_there(verifier)
                whole.append((time.perf_counter() - begin) * 1e3)
        show(
            row="start", workers=workers, usable_ms_p50=statistics.median(usable), usable_ms_most=max(usable),
            all_judges_ms_p50=statistics.median(whole), all_judges_ms_most=max(whole),
        )  # fmt: skip


def run(name: str, count: int, workers: int) -> tuple[float, float, str]:
    """(CPU seconds in all, seconds of the verdicts, tier)."""
    what = problem(name)
    begin = cpu()
    with Verifier(workers=workers, cache=False) as verifier:
        all_there(verifier)
        ready = time.perf_counter()
        verdicts = verifier.verify([(what, RIGHT)] * count)
        done = time.perf_counter()
        if not all(verdict.passed for verdict in verdicts):
            raise SystemExit("a trivial program did not pass")
    return cpu() - begin, done - ready, verifier.isolation


def cost(count: int) -> None:
    for name in CASES:
        for workers in (1, 2):
            idle = run(name, 1, workers)[0]
            total, seconds, tier = run(name, count, workers)
            each = (total - idle) / (count - 1)
            show(
                row="cost", case=name, workers=workers, cpu_ms_per_verdict=each * 1e3,
                verdicts_per_s=count / seconds, isolation=tier,
            )  # fmt: skip


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
                    total, seconds, _ = run("check, 7 calls", count, workers)
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


CALLERS = ("bare", "torch and transformers", "1 GiB")


def calling(count: int) -> None:
    for caller in CALLERS:
        subprocess.run([sys.executable, __file__, str(count), "--caller", caller], check=True)


def called_by(caller: str, count: int) -> None:
    """In a process of its own: both ways of calling, turn by turn."""
    memory = bytearray(os.urandom(1 << 20) * 1024 if caller == "1 GiB" else b"")
    if caller == "torch and transformers":
        import torch
        import transformers

        assert torch.is_tensor(torch.zeros(1))
        assert transformers.Trainer is not None  # lazy: this loads what a trainer loads
    source = f"{RIGHT}\n{CHECK}\ncheck(f)\n"
    one_by_one(source)
    begin, start = cpu(), time.perf_counter()
    for _ in range(count):
        if one_by_one(source) != "passed":
            raise SystemExit("a trivial program did not pass")
    theirs, wall = (cpu() - begin) / count, (time.perf_counter() - start) / count
    workers = len(os.sched_getaffinity(0))
    idle = run("check, 7 calls", 1, workers)[0]
    total, batch, _ = run("check, 7 calls", 20 * count, workers)
    ours = (total - idle) / (20 * count - 1)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    show(
        row="calling", caller=caller, caller_mib=resident, calls=count, held=len(memory) >> 20,
        its_cpu_ms=theirs * 1e3, our_cpu_ms=ours * 1e3, its_verdicts_per_s=1 / wall,
        our_verdicts_per_s=20 * count / batch, times_its_cpu=theirs / ours,
        times_its_rate=wall * 20 * count / batch,
    )  # fmt: skip


def main() -> None:
    if "--robust" in sys.argv:
        robust(float(sys.argv[sys.argv.index("--robust") + 1]) if sys.argv[-1] != "--robust" else 1.0)
        return
    count = int(sys.argv[1]) if sys.argv[1:] and sys.argv[1].isdigit() else 1500
    if "--caller" in sys.argv:
        called_by(sys.argv[-1], count)
        return
    rows = {
        "start": start,
        "cost": lambda: cost(count),
        "latency": lambda: latency(min(count, 300)),
        "calling": lambda: calling(max(10, count // 25)),
        "scaling": lambda: scaling(count),
    }
    wanted = sys.argv[sys.argv.index("--only") + 1].split(",") if "--only" in sys.argv else rows
    for name in wanted:
        rows[name]()


if __name__ == "__main__":
    main()
