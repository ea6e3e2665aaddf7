"""The judge's side of tests that need a process of their own: `unittest` classes and DS-1000's functions.

See beside.py for what runs there. Which way a method is run is settled once per problem, with the reference
solution: apart from the program where the reference passes so, else beside it. What passed beside it runs
again with mistakes in the tests (mutants.py): who passes those too, forges.
"""

from __future__ import annotations

import os
import time
from typing import Any

from restrl.sandbox import arrays, mutants
from restrl.sandbox.item import PATIENCE, SLOWER, Item, task_seconds
from restrl.sandbox.link import Refused, Stopped
from restrl.sandbox.mutants import NO_MISTAKES, Mistakes
from restrl.sandbox.native import core
from restrl.sandbox.remote import Candidate, Unjudgeable

Outcome = tuple[str, str]
_STATUSES = ("passed", "failed", "error", "timeout", "memory", "output_limit", "unserialisable")
_LOAD_SECONDS = 20.0  # for test code that imports large packages
_LOAD = "load"  # its entry among the times of the tests
_TAMPERED = "a wrong implementation passes beside this program: it changed the tests"
_FORGED = "it does not fail tests that expect something wrong: it forges outcomes"
_CONTROLS = 2  # runs with mistakes in the tests, of what passed beside the program
_TRIES = 4  # runs of the reference solution in search of places for mistakes

with open(arrays.__file__, encoding="utf-8") as _file:
    _ARRAYS = _file.read()

# In a candidate: runs what DS-1000's tests give to `exec`, and hands out its variables one by one.
_RUNNER = f"""\
{_ARRAYS}
_names = {{}}
def run(code, given):
    global _names
    _names = {{name: unpack(value) for name, value in given.items()}}
    exec(code, _names)
    return [name for name in _names if type(name) is str]
def get(name):
    return pack(_names[name])
"""


def judge_unittest(item: Item) -> None:
    methods = item.tests["methods"]
    plan = item.once(lambda: _plan(item))
    item.children, item.least = plan["children"], plan["least"]
    apart = [m for m in methods if m not in plan["guarded"]]
    beside = [m for m in methods if m in plan["guarded"]]
    words = ["split"] * bool(apart) + ["guarded"] * bool(beside) + ["processes"] * item.children
    item.mode = "+".join(words)
    outcomes = _run(item, "split", item.program, apart, [])
    begin = time.monotonic()
    outcomes |= _run(item, "guarded", item.program, beside, plan["controls"])
    outcomes |= _forged(item, plan["places"], outcomes, time.monotonic() - begin)
    for method in methods:
        item.note(*outcomes[method])


def judge_context(item: Item) -> None:
    methods = item.tests["methods"]
    if item.tests["reference"]:
        item.once(lambda: _check_context(item))
    outcomes = _run(item, "context", item.program, methods, [])
    for method in methods:
        item.note(*outcomes[method])


def _check_context(item: Item) -> bool:
    item.begin_reference()
    _must_pass(_run(item, "context", item.tests["reference"], item.tests["methods"], []))
    return True


def _must_pass(outcomes: dict[str, Outcome]) -> None:
    for method, (status, detail) in outcomes.items():
        if status != "passed":
            raise Unjudgeable(f"the reference solution does not pass {method}: {status} {detail}".rstrip())


def _plan(item: Item) -> dict[str, Any]:
    """How the tests are run. With programs that may start others only where the reference needs that, and the
    problem's own code says that it starts some.
    """
    item.least = dict.fromkeys(item.tests["methods"], PATIENCE * item.timeout)
    try:
        return _plan_alone(item)
    except Unjudgeable:
        if not item.tests["starts_programs"] or not item.machinery.allows_children:
            raise
    item.children = True
    return _plan_alone(item)


def _plan_alone(item: Item) -> dict[str, Any]:
    """Which methods run beside the program, which of these refuse a wrong implementation, which take long."""
    tests = item.tests
    methods = tests["methods"]
    guarded = list(tests["in_process"])
    if tests["reference"]:
        for _ in range(2):  # what passes by luck alone is not to be relied on
            apart = [m for m in methods if m not in guarded]
            item.begin_reference()
            outcomes = _run(item, "split", tests["reference"], apart, [])
            guarded += [m for m in apart if outcomes[m][0] != "passed"]
    controls: list[str] = []
    places: dict[str, list[int]] = {}
    if guarded:
        program = tests["reference"] or "\n".join(tests["prefix"])
        item.begin_reference()
        outcomes = _run(item, "guarded", program, guarded, guarded, controls)
        if tests["reference"]:
            _must_pass(outcomes)
    least = {m: SLOWER * s for m, s in item.took.items() if m == _LOAD or SLOWER * s > item.timeout}
    plan = {"guarded": guarded, "controls": controls, "least": least}
    if guarded:
        places = _places(item, guarded)
    item.detail = ""
    return {**plan, "places": places, "children": item.children}


def _places(item: Item, guarded: list[str]) -> dict[str, list[int]]:
    """Where a mistake in a method makes the reference solution fail; without one, where it must."""
    tests = item.tests
    known = mutants.places(tests["code"], guarded, tests["entry_point"])
    if not tests["reference"]:
        return {method: sure for method, (sure, _) in known.items()}
    left = {method: [*sure, *perhaps] for method, (sure, perhaps) in known.items()}
    found: dict[str, list[int]] = {method: [] for method in known}
    for _ in range(_TRIES):
        chosen = {m: places.pop(0) for m, places in left.items() if places and len(found[m]) < _CONTROLS}
        if not chosen:
            break
        item.begin_reference()
        outcomes = _run(item, "guarded", tests["reference"], [*chosen], [], mistakes=Mistakes.draw(chosen))
        for method, place in chosen.items():
            found[method] += [place] * (outcomes[method][0] in ("failed", "error"))
    return found


def _forged(
    item: Item, places: dict[str, list[int]], outcomes: dict[str, Outcome], seconds: float
) -> dict[str, Outcome]:
    """Other outcomes of methods that were passed, in `seconds`, where they are passed with a mistake too, and
    the reference solution does not pass with that very mistake.
    """
    forged: dict[str, Outcome] = {}
    for number in range(_CONTROLS):
        passed = [m for m, (status, _) in outcomes.items() if places.get(m) and status == "passed"]
        passed = [m for m in passed if m not in forged]
        if not passed:
            break
        mistakes = Mistakes.draw({m: places[m][number % len(places[m])] for m in passed})
        item.begin()
        most = max(item.timeout, SLOWER * seconds)
        item.end_of_all = time.monotonic() + most
        item.longer(most + task_seconds(item.timeout, item.tests))
        found = _run(item, "guarded", item.program, passed, [], mistakes=mistakes)
        suspect = [method for method, outcome in found.items() if outcome[0] == "passed"]
        forged |= {
            m: outcome for m, outcome in found.items() if outcome[0] not in ("passed", "failed", "error")
        }
        if suspect and item.tests["reference"]:
            item.begin_reference()
            true = _run(item, "guarded", item.tests["reference"], suspect, [], mistakes=mistakes)
            suspect = [method for method in suspect if true[method][0] != "passed"]
        forged |= dict.fromkeys(suspect, ("failed", _FORGED))
    return forged


def _run(
    item: Item,
    mode: str,
    program: str,
    methods: list[str],
    controls: list[str],
    refused: list[str] | None = None,
    mistakes: Mistakes = NO_MISTAKES,
) -> dict[str, Outcome]:
    """The outcome of every method. With `refused` the methods that the wrong implementation failed are added
    to it; without it, it must fail those in `controls`.
    """
    outcomes: dict[str, Outcome] = {}
    while len(outcomes) < len(methods):
        left = methods[len(outcomes) :]
        if outcomes and item.spent:
            last = next(reversed(outcomes.values()))
            outcomes |= dict.fromkeys(left, last)
            break
        begin = time.monotonic()
        group = _Group(item, mode, program, mistakes)
        try:
            group.start(left, controls)
            if mode == "guarded":
                item.took[_LOAD] = group.load_seconds
            for method in left:
                before = time.monotonic()
                outcomes[method], failed = group.outcome(method, item.least.get(method, 0.0))
                item.took[method] = time.monotonic() - before
                if refused is not None and failed:
                    refused.append(method)
                elif refused is None and method in controls and not failed:
                    outcomes[method] = ("failed", _TAMPERED)
                if not group.alive:
                    break
        except Refused as stop:  # the program does not load: no test of it can run
            outcomes |= dict.fromkeys(left, (stop.status, str(stop)))
        except Stopped as stop:  # it hung or ended before the tests came
            item.lost = float("inf")
            outcomes[left[0]] = (stop.status, str(stop))
        finally:
            if not group.alive:
                item.lose(time.monotonic() - begin)
            group.end()
    return outcomes


class _Group:
    """The processes of one run: the one with the tests, and the candidate where it is another one."""

    def __init__(self, item: Item, mode: str, program: str, mistakes: Mistakes) -> None:
        self.item, self.mode, self.program, self.mistakes = item, mode, program, mistakes
        self.candidate: Candidate | None = None
        self.tests: Candidate | None = None
        self.nonce = os.urandom(16).hex()
        self.alive = True
        self.load_seconds = 0.0  # what loading the tests took

    def start(self, methods: list[str], controls: list[str]) -> None:
        item, data = self.item, self.item.tests
        job = {"code": data["code"], "methods": methods}
        zygote = item.machinery.other(tests=True, children=item.children)
        most = item.cpu_seconds
        if self.mode == "guarded":
            self.tests = Candidate(zygote, ("guarded", self.program), scratch=True, cpu_seconds=most)
            self._expect("loaded", item.timeout)
            # In the same form with and without mistakes.
            job["code"] = self.mistakes.into(data["code"])
            job |= {"entry_point": data["entry_point"], "controls": controls, "nonce": self.nonce}
            self.tests.write(core.encode(job))
        else:
            source = _RUNNER if self.mode == "context" else self.program
            # Packages want a place for caches: matplotlib does not load without one.
            alone = item.machinery.other(tests=False, children=item.children)
            self.candidate = Candidate(alone, ("serve", source, "", ""), scratch=True, cpu_seconds=most)
            extra = ["program", "wanted"] if self.mode == "context" else ["prefix", "entry_point", "shares"]
            job |= {key: {**data, "program": self.program}[key] for key in extra}
            channel = os.dup(self.candidate.channel)
            try:
                self.tests = Candidate(zygote, (self.mode, job), (channel,), True, most)
            finally:
                os.close(channel)
            self.tests.beside = self.candidate
        begin = time.monotonic()
        # Beside a program it is the program that can hold this up: not much longer than the reference took.
        known = item.least.get(_LOAD) if self.mode == "guarded" else None
        self._expect("ready", _LOAD_SECONDS if known is None else max(item.timeout, known))
        self.load_seconds = time.monotonic() - begin

    def _read(self) -> tuple[Any, ...]:
        assert self.tests is not None
        try:
            message = core.decode(self.tests.read())
        except Stopped:
            self.alive = False
            raise
        except (core.Unserialisable, ValueError, TypeError, OverflowError):  # written by the program itself
            message = None
        if not isinstance(message, tuple) or not all(isinstance(m, str | bool) for m in message):
            self.alive = False
            raise Stopped("crashed", "malformed outcome")
        if message[:1] == ("refused",) and len(message) == 3:
            raise Refused(message[1] if message[1] in _STATUSES[1:] else "error", message[2])
        if message[:1] == ("broken",) and len(message) == 2 and self.mode != "guarded":
            raise Unjudgeable(message[1])
        return message

    def _expect(self, word: str, seconds: float) -> None:
        assert self.tests is not None
        self.tests.arm(time.monotonic() + seconds, self.item.spare)
        message = self._read()
        if message == ("asked",) and self.mode != "guarded":  # tests that call the program as they load
            self.item.arm(self.tests)
            message = self._read()
        if message != (word,):
            self.alive = False
            raise Stopped("failed", " ".join(map(str, message[1:2])) or "malformed outcome")

    def outcome(self, method: str, least: float) -> tuple[Outcome, bool]:
        """Of the next method, which may take `least` seconds, and whether the wrong implementation failed."""
        assert self.tests is not None
        self.item.arm(self.tests, least)
        try:
            message = self._read()
            if message == ("asked",) and self.mode != "guarded":
                message = self._read()
        except Stopped as stop:
            return (stop.status, str(stop)), True
        finally:
            self.item.spare = self.tests.spare
        guarded = self.mode == "guarded"
        # Its name too: a process that forks within a test tells everything twice.
        whole = message[:2] == ("outcome", method) and len(message) == (6 if guarded else 4)
        if not whole or (guarded and message[5] != self.nonce):
            self.alive = False
            return ("crashed", "malformed outcome"), True
        status, detail = str(message[2]), str(message[3])
        failed = bool(message[4]) if guarded else True
        if self.candidate is not None:
            if status.startswith("refused "):
                raise Refused(status.partition(" ")[2], detail)
            if status == "closed":
                self.alive = False
                try:
                    self.candidate.arm(time.monotonic() + 1.0, 0.0)
                    self.candidate.stopped()
                except Stopped as stop:
                    return (stop.status, str(stop)), True
            if status == "output_limit" and detail == "answer too long":
                self.alive = False
        return (status if status in _STATUSES else "failed", detail), failed

    def end(self) -> None:
        for process in (self.tests, self.candidate):
            if process is not None:
                process.end()
