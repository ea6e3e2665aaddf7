"""CPU-milliseconds per verdict of trivial programs, caller and all its processes, start-up subtracted.

    python benchmarks/bench_verifier.py [VERDICTS]

JSON rows for a HumanEval check of seven calls and for ten call-based cases, at the tier this machine gives.
"""

from __future__ import annotations

import json
import resource
import sys
import time

from restrl.records import Calls, Check, Problem
from restrl.sandbox import Verifier

PREFIX = "def f(x):\n"
CHECK = "def check(c):\n" + "".join(f"    assert c({i}) == {i + 1}\n" for i in range(7))
CASES = {
    "check, 7 calls": Check(code=CHECK, entry_point="f"),
    "calls, 10 cases": Calls(fn_name="f", args=[[i] for i in range(10)], expected=list(range(1, 11))),
}


def cpu() -> float:
    """CPU seconds of this process and of all children that have ended."""
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def run(problem: Problem, count: int, workers: int) -> tuple[float, float, float, str]:
    """(CPU seconds in all, seconds of the verdicts, seconds to start, tier)."""
    begin, start = cpu(), time.perf_counter()
    with Verifier(workers=workers, cache=False) as verifier:
        ready = time.perf_counter()
        verdicts = verifier.verify([(problem, PREFIX + "    return x + 1\n")] * count)
        done = time.perf_counter()
        if not all(verdict.passed for verdict in verdicts):
            raise SystemExit("a trivial program did not pass")
    return cpu() - begin, done - ready, ready - start, verifier.isolation


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
    for name, tests in CASES.items():
        problem = Problem(
            task_id=name, source="bench", prompt=PREFIX, mode="complete", prefix=PREFIX, tests=tests
        )
        for workers in (1, 2):
            idle = run(problem, 1, workers)[0]
            total, seconds, start_up, tier = run(problem, count, workers)
            row = {
                "case": name,
                "workers": workers,
                "cpu_ms_per_verdict": round((total - idle) / (count - 1) * 1e3, 2),
                "verdicts_per_s": round(count / seconds),
                "start_up_ms": round(start_up * 1e3),
                "isolation": tier,
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
