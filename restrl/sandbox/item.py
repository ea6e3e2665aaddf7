"""One program and its tests while they are judged, and the processes that serve it."""

from __future__ import annotations

import collections
import contextlib
import resource
import time
from collections.abc import Callable
from typing import Any

from restrl.sandbox import plain
from restrl.sandbox.link import Refused, Stopped
from restrl.sandbox.native import core
from restrl.sandbox.remote import Candidate, Unjudgeable, can_watch_children
from restrl.sandbox.zygotes import InfrastructureError, Zygote

LOST = 3.0  # time limits that tests which hang or crash may use up before the rest share their fate
LEAST = 16  # part of its time limit that a test has at least, however many hung before it
_DETAIL = 300
_KEPT_BYTES = 256 << 20  # of what is known of problems
# Runs that come before a problem's first verdict: of its gold solution, contract, reference and control.
_RUNS = {"inputs": 3, "unittest": 12, "context": 2}
SLOWER = 2.0  # a program may take so much longer than what had to be run before it
PATIENCE = 20  # time limits that one test may take with the reference solution
_MODES = {"stdio": "stdio", "context": "harness", "unittest": "split"}


def count_tests(tests: dict[str, Any]) -> int:
    if tests["kind"] == "check":
        return 1
    return len(tests.get("asserts", tests.get("methods", tests.get("inputs", ()))))


def verdict_seconds(timeout: float, tests: int) -> float:
    """The cap on one verdict (s): a few tests may use their full limit, many share a quarter of theirs."""
    return timeout * max(min(tests, 3), tests / 4)


def task_seconds(timeout: float, tests: dict[str, Any]) -> float:
    """The cap on one verdict and on what has to be found out about its problem before (s)."""
    count = count_tests(tests)
    if tests["kind"] in _RUNS:
        return _RUNS[tests["kind"]] * timeout * (count + 2)
    return verdict_seconds(timeout, count) + timeout  # `Item.spare`


class Machinery:
    """The zygotes of a judge, and what it knows of the problems it has met."""

    def __init__(self, settings: dict[str, Any], zygote: Zygote) -> None:
        self.settings, self.zygote = settings, zygote
        with contextlib.nullcontext() if core.confines else contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (settings["judge_bytes"],) * 2)
        self.zygote.wait_ready()
        self._more: dict[tuple[bool, bool], Zygote] = {}
        self._known: collections.OrderedDict[bytes, bytes] = collections.OrderedDict()

    def other(self, tests: bool, children: bool) -> Zygote:
        """The zygote of processes that hold test code, or may start programs; it starts when asked for."""
        if not tests and not children:
            return self.zygote
        key = (tests, children)
        if key not in self._more:
            self._more[key] = zygote = Zygote(self.settings, tests, children)
            zygote.wait_ready()
        return self._more[key]

    @property
    def allows_children(self) -> bool:
        """Whether a program may be let start others: only where its own pid namespace ends them all."""
        return bool(self.settings["namespaces"]) and can_watch_children()

    def once(self, key: bytes, make: Callable[[], Any]) -> Any:
        """What `make` returned for this problem; it is plain data."""
        if key not in self._known:
            self._known[key] = core.encode(make(), plain.export)
            while len(self._known) > 1 and sum(map(len, self._known.values())) > _KEPT_BYTES:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return core.decode(self._known[key], plain.restore)

    def known(self, key: bytes) -> Any:
        """What `once` found out before; None where it was not asked."""
        return core.decode(self._known[key], plain.restore) if key in self._known else None

    def restart(self) -> None:
        """After a failure of the machinery: zygotes that are whole."""
        self.zygote.close()
        self.zygote = Zygote(self.settings)
        self.zygote.wait_ready()
        for zygote in self._more.values():
            zygote.close()
        self._more.clear()

    def leave(self) -> None:
        """The caller is gone: let the zygotes end."""
        for zygote in (self.zygote, *self._more.values()):
            zygote.leave()


class Enough(BaseException):
    """Early exit: a test did not pass, and no more is asked."""


def _timed(make: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.monotonic()
    return make(), time.monotonic() - begin


def message(error: BaseException) -> str:
    """Its text. What it was made with may refuse to become text: huge numbers, handles."""
    try:
        return str(error)
    except BaseException:
        return "(a message that cannot be shown)"


def printable(text: str) -> str:
    """On one line; a program's words go to terminals and log files."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


class Item:
    """One program and its tests while they are judged."""

    def __init__(
        self,
        machinery: Machinery,
        program: str,
        tests: dict[str, Any],
        limits: dict[str, Any],
        key: bytes,
        longer: Callable[[float], None],
    ) -> None:
        self.machinery, self.zygote = machinery, machinery.zygote
        self.program, self.tests, self.limits, self.key = program, tests, limits, key
        self.longer = longer  # tells the caller that the verdict takes up to so many seconds from now
        self.timeout = float(limits["timeout"])
        self.statuses: list[str] = []
        self.detail = ""
        self.mode = _MODES.get(tests["kind"], "function")
        self.candidate: Candidate | None = None
        self.children = False  # whether its processes may start others
        self.least: dict[str, float] = {}  # by test: time it may take (s) though that is more than the limit
        self.took: dict[str, float] = {}  # by test: time it took (s) when it was last run
        self.stops = 0  # tests that hung or ended their candidate
        self.lost = 0.0  # the time they took (s); infinite where the program does not load
        self.capped = False  # a test ended at the verdict's cap, not at its own limit
        self.spare = self.timeout  # what waiting for a core may add to the whole verdict (s)
        self.begin()

    def begin(self, seconds: float = 0.0) -> None:
        """The verdict's time begins; it is at least `seconds` long."""
        self.seconds = max(verdict_seconds(self.timeout, count_tests(self.tests)), seconds)
        self.end_of_all = time.monotonic() + self.seconds
        self.stops, self.lost, self.capped = 0, 0.0, False

    @property
    def spent(self) -> bool:
        """Whether the tests that are left share the last one's fate."""
        return self.lost > LOST * self.timeout - 0.01 or time.monotonic() >= self.end_of_all

    @property
    def cpu_seconds(self) -> float:
        """At least what a verdict that is allowed to be so long may use."""
        return self.seconds + 2

    def lose(self, seconds: float) -> None:
        """A test hung or ended its candidate after `seconds`."""
        self.stops += 1
        self.lost += seconds

    def begin_reference(self) -> None:
        """The time of the reference solution begins: every test may use `PATIENCE` times its limit."""
        self.begin(PATIENCE * self.timeout * count_tests(self.tests))
        self.longer(self.seconds + task_seconds(self.timeout, self.tests))

    def once(self, make: Callable[[], Any]) -> Any:
        """What is known of the problem, found out at its first verdict."""
        value, seconds = self.machinery.once(self.key, lambda: _timed(make))
        self.begin(SLOWER * seconds)
        if self.seconds > verdict_seconds(self.timeout, count_tests(self.tests)):
            self.longer(self.seconds + task_seconds(self.timeout, self.tests))
        return value

    def start(self, job: tuple[Any, ...]) -> Candidate:
        self.finish()
        self.candidate = Candidate(self.zygote, job, cpu_seconds=self.cpu_seconds)
        return self.candidate

    def finish(self) -> None:
        if self.candidate is not None:
            self.candidate.end()
            self.candidate = None

    def arm(self, candidate: Candidate, least: float = 0.0) -> None:
        """A test begins. From the third on that hangs, each has half of the time that the last one had.

        least  seconds that it may take whatever the time limit says
        """
        limit = max(self.timeout, least) / min(2 ** max(self.stops - 1, 0), LEAST)
        candidate.arm(min(time.monotonic() + limit, self.end_of_all), self.spare)

    def note(self, status: str, detail: str) -> None:
        self.statuses.append(status)
        if status == "passed":
            return
        self.capped |= status == "timeout" and time.monotonic() >= self.end_of_all
        if not self.detail:
            self.detail = printable(detail[:_DETAIL])
        if self.limits.get("early_exit"):
            raise Enough

    def give_up(self, status: str) -> None:
        self.statuses += [status] * (count_tests(self.tests) - len(self.statuses))

    def one(self, test: Callable[[], bool]) -> str:
        """Run one test and note its status; after `Stopped` the candidate is gone."""
        candidate = self.candidate
        assert candidate is not None
        begin = time.monotonic()
        self.arm(candidate)
        try:
            passed = test()
            if passed and self.tests["kind"] in ("check", "asserts"):
                candidate.loaded()
            if candidate.stop is not None and self.tests["kind"] != "stdio":
                raise candidate.stop  # tests with a bare `except` do not notice
            status, detail = ("passed", "") if passed else ("failed", "wrong answer")
        except Refused as stop:
            self.lost = float("inf")
            status, detail = stop.status, str(stop)
        except Stopped as stop:
            status, detail = stop.status, str(stop)
        except plain.Unserialisable as error:
            status, detail = "unserialisable", str(error)
        except (InfrastructureError, Unjudgeable):
            raise
        except BaseException as error:
            theirs = any(error is e for e in candidate.raised)
            kinds: dict[type, str] = {
                MemoryError: "memory",
                RecursionError: "unserialisable",
            }  # the judge's own, comparing the result
            status = "error" if theirs else kinds.get(type(error), "failed")
            detail = message(error) if theirs else f"{type(error).__name__}: {message(error)}"
        self.spare = candidate.spare
        # A script ends after every input; what counts there is only that it hung.
        if status == "timeout" if self.tests["kind"] == "stdio" else not candidate.alive:
            self.lose(time.monotonic() - begin)
        self.note(status, detail)
        return status
