"""`Verifier`: whole programs in, verdicts out, all at once or as they come.

submit ──► known already? ──► cache
   │              no
   ├──► the same one under way? ──► waits with it
   ▼              no
one task per program (at most `queue` of them) ──► pool ──► verdict ──► cache, all that wait for it
"""

from __future__ import annotations

import hashlib
import itertools
import math
import platform
import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from restrl.errors import RestrlError
from restrl.records import Problem
from restrl.sandbox.cache import VerdictCache
from restrl.sandbox.item import count_tests, task_seconds
from restrl.sandbox.jobs import judge_tests
from restrl.sandbox.native import core
from restrl.sandbox.pool import Counts, Pool
from restrl.sandbox.probes import leaks
from restrl.sandbox.process import Task
from restrl.sandbox.settings import NOT_HERE, TIERS, UNSAFE, VERSION, Limits, sandbox_settings
from restrl.sandbox.verdict import Pending, Verdict

__all__ = ["Pending", "Stats", "Verdict", "Verifier"]

_KNOWN_PROBLEMS = 4096
_PYTHON = platform.python_version()


class Stats(NamedTuple):
    """What a verifier has done since it was made.

    judged                 programs that were run
    cache_hits             verdicts that were known already
    cancelled              tasks given up before their verdict
    retries                programs judged again after a failure of the machinery
    judges_replaced        judges that ended, hung or were cut short
    infrastructure_errors  programs that could not be judged at all: their reward is None
    """

    judged: int
    cache_hits: int
    cancelled: int
    retries: int
    judges_replaced: int
    infrastructure_errors: int


@dataclass(frozen=True)
class _Known:
    """What is worked out once for a problem. digest: of all that a verdict depends on but the program."""

    problem: Problem  # holding it keeps its id its own
    payload: bytes
    seconds: float
    tests: int
    digest: Any


@dataclass
class _Work:
    """One program under way and all that wait for its verdict."""

    task: Task
    waiters: list[Pending] = field(default_factory=list)


class Verifier:
    """Judges programs in `workers` parallel sandboxes; a context manager. Safe to share between threads.

    timeout       seconds per test
    memory_mb     address space of one candidate beyond the interpreter's own (MiB)
    cache         False: none; True: in memory; a path: a JSONL file as well
    queue         most programs waiting or being judged; `submit` waits while there are as many
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
        queue: int = 4096,
    ) -> None:
        if workers < 1 or queue < 1 or not 0 < timeout < math.inf:
            raise RestrlError(
                f"a verifier needs workers, queue >= 1 and timeout > 0, not {workers}, {queue} and {timeout}"
            )
        if isolation != "auto" and isolation not in TIERS:
            raise RestrlError(f"unknown isolation {isolation!r}: one of auto, {', '.join(TIERS)}")
        self.limits = Limits(timeout=timeout, memory_mb=memory_mb)
        self.workers, self.queue = workers, queue
        self._cache = None if cache is False else VerdictCache(None if cache is True else Path(cache))
        self._problems: dict[int, _Known] = {}
        self._works: dict[str, _Work] = {}
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)  # told when a program leaves `_works`
        self._numbers = itertools.count()
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
            found = leaks(pool) if tier != "none" else ""
            if not found:
                pool.counts = Counts()  # the self-test is not the user's
                return tier, pool
            pool.close()
            reasons.append(f"{tier}: {found}")
        if not core.confines:
            raise RestrlError(f"programs cannot be confined here: {NOT_HERE}")
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
        """Cancel what is under way and end all judges. No process of the verifier is left afterwards."""
        with self._lock:
            open_ones = [pending for work in self._works.values() for pending in work.waiters]
        for pending in open_ones:
            pending.cancel()
        self._pool.close()
        if self._cache is not None:
            self._cache.close()

    @property
    def stats(self) -> Stats:
        counts = self._pool.counts
        return Stats(
            judged=counts.judged,
            cache_hits=self.cache_hits,
            cancelled=counts.cancelled,
            retries=counts.retries,
            judges_replaced=counts.replaced,
            infrastructure_errors=counts.given_up,
        )

    @property
    def retries(self) -> int:
        """How often an item was judged again after a failure of the machinery."""
        return self._pool.counts.retries

    @property
    def cache_hits(self) -> int:
        return self._cache.hits if self._cache is not None else 0

    def verify(
        self, items: Iterable[tuple[Problem, str]], *, priority: int = 0, early_exit: bool = False
    ) -> list[Verdict]:
        """A verdict for each (problem, whole program), in the order of `items`; see `submit`.

        What ends it early (Ctrl-C) cancels the rest. Raises RestrlError for a problem whose tests cannot be
        run.
        """
        pending: list[Pending] = []
        try:
            for problem, program in items:
                pending.append(self.submit(problem, program, priority=priority, early_exit=early_exit))
            wait(pending)  # one wake-up for all of them
            return [one.result() for one in pending]
        except BaseException:
            for one in pending:
                one.cancel()
            raise

    def stream(
        self, items: Iterable[tuple[Problem, str]], *, priority: int = 0, early_exit: bool = False
    ) -> Iterator[tuple[int, Verdict]]:
        """(position in `items`, verdict) of each, as they come.

        `items` are taken as there is room for them (`queue`), so they may be made on the way. Closing the
        iterator cancels the rest.
        """
        numbers: dict[Pending, int] = {}
        ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        source = enumerate(items)
        try:
            while True:
                for number, (problem, program) in itertools.islice(source, self.queue - len(numbers)):
                    one = self.submit(problem, program, priority=priority, early_exit=early_exit)
                    numbers[one] = number
                    one.add_done_callback(ready.put)
                    while not ready.empty():
                        one = ready.get()
                        yield numbers.pop(one), one.result()
                if not numbers:
                    return
                one = ready.get()
                yield numbers.pop(one), one.result()
        finally:
            for one in numbers:
                one.cancel()

    def submit(
        self, problem: Problem, program: str, *, priority: int = 0, early_exit: bool = False
    ) -> Pending:
        """The handle of the verdict of a whole program. Waits while the queue is full.

        priority    programs of a higher one are begun first
        early_exit  stop at the first test that does not pass: the tests after it are "skipped", and the
                    reward is 1 or 0

        Raises RestrlError for a problem whose tests cannot be run, and after `close`.
        """
        known = self._known(problem)
        pending = Pending(self._withdraw)
        key = self._key(known, program)
        with self._lock:
            found = self._find(key, early_exit)
            if found is None:
                self._join(
                    pending, f"{key}:early" if early_exit else key, known, program, priority, early_exit
                )
        if found is not None:
            pending.settle(found)
        return pending

    def _find(self, key: str, early_exit: bool) -> Verdict | None:
        if self._cache is None:
            return None
        found = self._cache.get(key)
        if early_exit:  # a whole verdict says as much
            return _shortened(found) if found is not None else self._cache.get(f"{key}:early")
        return found

    def _join(
        self, pending: Pending, key: str, known: _Known, program: str, priority: int, early_exit: bool
    ) -> None:
        """Wait with those that wait for the same, or begin it. Under the lock."""
        while len(self._works) >= self.queue and key not in self._works and not self._pool.inside:
            self._room.wait()
        pending.key = key
        work = self._works.get(key)
        if work is not None:
            work.waiters.append(pending)
            if priority > work.task.priority:
                self._pool.raise_priority(work.task, priority)
            return

        def done(answer: dict[str, Any]) -> None:
            self._finish(key, task, known.tests, answer)

        options = {"problem": known.digest.digest(), "early_exit": early_exit}
        task = Task(program, known.payload, known.seconds, done, options, priority)
        try:
            self._pool.submit(task)
        except RuntimeError as error:
            raise RestrlError(f"nothing can be verified any more: {error}") from None
        self._works[key] = _Work(task, [pending])

    def _finish(self, key: str, task: Task, tests: int, answer: dict[str, Any]) -> None:
        """In the pool's thread: the answer to one task."""
        verdict = self._verdict(answer, tests, bool(task.options["early_exit"]))
        with self._lock:
            work = self._works.get(key)
            if work is None or work.task is not task:
                return  # cancelled, and perhaps begun anew
            # Known before it is no longer under way: a program is not judged twice.
            if self._cache is not None and verdict.reward is not None:
                self._cache.put(key, verdict)
            del self._works[key]
            self._room.notify_all()
        for pending in work.waiters:
            pending.settle(verdict)

    def _withdraw(self, pending: Pending) -> bool:
        """A handle was cancelled; False if its verdict is on the way."""
        with self._lock:
            work = self._works.get(pending.key)
            if work is None or pending not in work.waiters:
                return False
            work.waiters.remove(pending)
            if not work.waiters:
                del self._works[pending.key]
                self._room.notify_all()
                self._pool.cancel(work.task)
        return True

    def _known(self, problem: Problem) -> _Known:
        known = self._problems.get(id(problem))
        if known is None:
            data = judge_tests(problem)
            payload = core.encode(data)
            what = (payload, str(self.limits), self.isolation, VERSION, _PYTHON)
            known = _Known(
                problem,
                payload,
                task_seconds(self.limits.timeout, data),
                count_tests(data),
                hashlib.sha256(core.encode(what)),
            )
            with self._lock:
                if len(self._problems) >= _KNOWN_PROBLEMS:
                    self._problems.clear()
                self._problems[id(problem)] = known
        return known

    def _key(self, known: _Known, program: str) -> str:
        if self._cache is None:
            return str(next(self._numbers))  # every program is judged, repeated ones too
        digest = known.digest.copy()
        digest.update(program.encode("utf-8", "surrogatepass"))
        return str(digest.hexdigest())

    def _verdict(self, answer: dict[str, Any], count: int, early_exit: bool) -> Verdict:
        seconds, detail = float(answer["seconds"]), str(answer["detail"])
        if answer.get("infrastructure"):
            return Verdict("infrastructure_error", False, None, (), seconds, self.isolation, detail)
        tests = tuple(answer["tests"] if answer["tests"] is not None else ["timeout"] * count)
        status = next((s for s in tests if s != "passed"), "passed")
        reward = tests.count("passed") / len(tests)
        mode = str(answer.get("mode", ""))
        verdict = Verdict(status, status == "passed", reward, tests, seconds, self.isolation, detail, mode)
        return _shortened(verdict) if early_exit else verdict


def _shortened(verdict: Verdict) -> Verdict:
    """What early exit would have said."""
    first = next((i for i, test in enumerate(verdict.tests) if test != "passed"), len(verdict.tests))
    skipped = ("skipped",) * (len(verdict.tests) - first - 1)
    return replace(verdict, reward=float(verdict.passed), tests=verdict.tests[: first + 1] + skipped)
