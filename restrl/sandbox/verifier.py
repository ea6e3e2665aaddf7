"""`Verifier`: whole programs in, verdicts out."""

from __future__ import annotations

import hashlib
import math
import platform
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from restrl.errors import RestrlError
from restrl.records import Calls, Problem
from restrl.sandbox.cache import VerdictCache
from restrl.sandbox.item import count_tests, task_seconds
from restrl.sandbox.jobs import judge_tests
from restrl.sandbox.native import core
from restrl.sandbox.pool import Pool, Task
from restrl.sandbox.settings import TIERS, UNSAFE, VERSION, Limits, sandbox_settings

_KNOWN_PROBLEMS = 4096


@dataclass(frozen=True)
class Verdict:
    """What became of one program.

    status     "passed", or the status of the first test that did not pass: failed, error, timeout, memory,
               crashed, output_limit, unserialisable; infrastructure_error where nothing could be found out
    reward     fraction of tests passed, in [0, 1]; None for infrastructure_error
    tests      status of every test, in order
    seconds    wall time in the judge
    isolation  tier it ran under: tier1+tier2, tier2, tier1 or none
    detail     one line on the first failure
    mode       how the tests were run: function, stdio, harness or split (apart from the program), guarded
               (unittest, beside it), split+guarded; "" where nothing came back
    """

    status: str
    passed: bool
    reward: float | None
    tests: tuple[str, ...]
    seconds: float
    isolation: str
    detail: str = ""
    mode: str = ""


class Verifier:
    """Judges programs in `workers` parallel sandboxes; a context manager. Safe to share between threads.

    timeout       seconds per test
    memory_mb     address space of one candidate beyond the interpreter's own (MiB)
    cache         False: none; True: in memory; a path: a JSONL file as well
    isolation     "auto" takes the strongest tier that works here; or a tier's name
    allow_unsafe  go on with less than tier 2 where that cannot be had: tier1, or none at all

    Raises RestrlError where no sufficient isolation can be had.
    """

    def __init__(
        self,
        workers: int = 2,
        timeout: float = 6.0,
        cache: bool | str | Path = True,
        allow_unsafe: bool = False,
        *,
        memory_mb: int = 1024,
        isolation: str = "auto",
    ) -> None:
        if workers < 1 or not 0 < timeout < math.inf:
            raise RestrlError(f"a verifier needs workers >= 1 and timeout > 0, not {workers} and {timeout}")
        if isolation != "auto" and isolation not in TIERS:
            raise RestrlError(f"unknown isolation {isolation!r}: one of auto, {', '.join(TIERS)}")
        self.limits = Limits(timeout=timeout, memory_mb=memory_mb)
        self.workers = workers
        self._cache = None if cache is False else VerdictCache(None if cache is True else Path(cache))
        self._payloads: dict[int, tuple[Problem, bytes, float, int]] = {}
        self._lock = threading.Lock()
        if isolation in UNSAFE and not allow_unsafe:
            raise RestrlError(f"isolation {isolation!r} is less than tier 2: it needs allow_unsafe=True")
        tiers = [t for t in TIERS if allow_unsafe or t not in UNSAFE] if isolation == "auto" else [isolation]
        self.isolation, self._pool = self._open(tiers)

    def _open(self, tiers: list[str]) -> tuple[str, Pool]:
        reasons = []
        for tier in tiers:
            try:
                pool = Pool(sandbox_settings(tier, self.limits), self.limits, self.workers)
            except RuntimeError as error:
                reasons.append(f"{tier}: {error}")
                continue
            leaks = _leaks(pool) if tier != "none" else ""
            if not leaks:
                return tier, pool
            pool.close()
            reasons.append(f"{tier}: {leaks}")
        raise RestrlError(
            f"no sandbox can be set up here ({'; '.join(reasons)}); use a kernel with Landlock and seccomp "
            "(Linux 5.13), or allow_unsafe to run programs with less"
        )

    def __enter__(self) -> Verifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all judges. No process of the verifier is left afterwards."""
        self._pool.close()
        if self._cache is not None:
            self._cache.close()

    @property
    def retries(self) -> int:
        """How often an item was judged again after a failure of the machinery."""
        return self._pool.retries

    @property
    def cache_hits(self) -> int:
        return self._cache.hits if self._cache is not None else 0

    def verify(self, items: list[tuple[Problem, str]]) -> list[Verdict]:
        """A verdict for each (problem, whole program), in the order of `items`.

        Raises RestrlError for a problem whose tests cannot be run.
        """
        results: dict[str, Verdict] = {}
        keys: list[str] = []
        tasks: list[Task] = []
        done = threading.Semaphore(0)
        for number, (problem, program) in enumerate(items):
            payload, seconds, count = self._payload(problem)
            # Without a cache every item is judged, repeated ones too.
            key = self._key(payload, program) if self._cache is not None else str(number)
            keys.append(key)
            if key in results:
                continue
            row = self._cache.get(key) if self._cache is not None else None
            if row is not None:
                results[key] = Verdict(**{**row, "tests": tuple(row["tests"])})
                continue
            results[key] = _PENDING

            def finish(answer: dict[str, Any], key: str = key, count: int = count) -> None:
                results[key] = self._verdict(answer, count)
                done.release()

            tasks.append(Task(program, payload, seconds, finish))
        if tasks:
            self._pool.submit(tasks)
            for _ in tasks:
                done.acquire()
            if self._cache is not None:
                for key in dict.fromkeys(keys):
                    verdict = results[key]
                    if verdict.reward is not None and self._cache.get(key) is None:
                        self._cache.put(key, {**verdict.__dict__, "tests": list(verdict.tests)})
        return [results[key] for key in keys]

    def _payload(self, problem: Problem) -> tuple[bytes, float, int]:
        with self._lock:
            known = self._payloads.get(id(problem))
            if known is not None:
                return known[1:]
            data = judge_tests(problem)
            payload = core.encode(data)
            count = count_tests(data)
            if len(self._payloads) >= _KNOWN_PROBLEMS:
                self._payloads.clear()
            # Holding the problem keeps its id its own.
            self._payloads[id(problem)] = (problem, payload, task_seconds(self.limits.timeout, data), count)
            return self._payloads[id(problem)][1:]

    def _key(self, payload: bytes, program: str) -> str:
        what = (program, payload, str(self.limits), self.isolation, VERSION, platform.python_version())
        return hashlib.sha256(core.encode(what)).hexdigest()

    def _verdict(self, answer: dict[str, Any], count: int) -> Verdict:
        seconds, detail = float(answer["seconds"]), str(answer["detail"])
        if answer.get("infrastructure"):
            return Verdict("infrastructure_error", False, None, (), seconds, self.isolation, detail)
        tests = tuple(answer["tests"] if answer["tests"] is not None else ["timeout"] * count)
        status = next((s for s in tests if s != "passed"), "passed")
        reward = tests.count("passed") / len(tests)
        mode = str(answer.get("mode", ""))
        return Verdict(status, status == "passed", reward, tests, seconds, self.isolation, detail, mode)


_PENDING = Verdict("infrastructure_error", False, None, (), 0.0, "", "pending")

# What a candidate must not be able to do; run through the real path before anything else is.
_PROBES = """
import os, socket
def alive(pid):
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
def probe(what):
    try:
        if what == "read a file":
            open("/etc/passwd").close()
        elif what == "connect":
            socket.create_connection(("127.0.0.1", 9), 1).close()
        elif what == "fork":
            if os.fork() == 0:
                os._exit(0)
        elif what == "kill":
            others = {os.getppid(), *range(1, 20)} - {0, os.getpid()}
            return "allowed" if any(map(alive, others)) else "denied"
        elif what == "read the environment":
            return "denied" if set(os.environ) <= {"LC_CTYPE"} else "allowed"
    except ConnectionRefusedError:
        return "allowed"
    except OSError:
        return "denied"
    return "allowed"
"""
_WHAT = ["read a file", "connect", "fork", "kill", "read the environment"]


def _leaks(pool: Pool) -> str:
    """What the probes got away with, as text; "" if nothing."""
    tests = Calls(fn_name="probe", args=[[w] for w in _WHAT], expected=["denied"] * len(_WHAT))
    data = judge_tests(Problem(task_id="self-test", source="restrl", prompt="", mode="instruct", tests=tests))
    answers: list[dict[str, Any]] = []
    done = threading.Event()

    def finish(answer: dict[str, Any]) -> None:
        answers.append(answer)
        done.set()

    pool.submit([Task(_PROBES, core.encode(data), task_seconds(pool.limits.timeout, data), finish)])
    done.wait()
    statuses = answers[0]["tests"]
    if statuses is None:
        return f"the self-test did not run: {answers[0]['detail']}"
    failed = [
        f"{what} ({status})" for what, status in zip(_WHAT, statuses, strict=True) if status != "passed"
    ]
    return f"the self-test could {', '.join(failed)}" if failed else ""
