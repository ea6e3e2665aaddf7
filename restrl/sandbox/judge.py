"""The judge: holds the tests, runs them against candidates, answers with per-test statuses.

Started by the verifier as its own program (`main`), with the socket to it on descriptor 0. It handles one
item at a time: (number, program, tests) in, (number, statuses, seconds, detail) out. Test code is trusted and
runs here; the program runs in a candidate (remote.py), and only plain data comes back.
"""

from __future__ import annotations

import builtins
import functools
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from restrl.sandbox import plain
from restrl.sandbox.compare import same_call, same_output
from restrl.sandbox.native import core
from restrl.sandbox.remote import CALLER, Candidate, InfrastructureError, Name, Refused, Stopped, Zygote

MAX_RESTARTS = 1  # candidates that may hang or crash before the remaining tests share their fate
_DETAIL = 300
_CACHED_BYTES = 1 << 16


class Item:
    """One program and its tests while they are judged."""

    def __init__(self, zygote: Zygote, program: str, tests: dict[str, Any], limits: dict[str, Any]) -> None:
        self.zygote, self.program, self.tests, self.limits = zygote, program, tests, limits
        self.timeout = float(limits["timeout"])
        self.statuses: list[str] = []
        self.detail = ""
        self.candidate: Candidate | None = None
        self.stops = 0
        self.spare = self.timeout  # what waiting for a core may add to the whole verdict (s)
        self.end_of_all = time.monotonic() + verdict_seconds(self.timeout, count_tests(tests))

    def start(self, job: tuple[Any, ...]) -> Candidate:
        self.finish()
        self.candidate = Candidate(self.zygote, job)
        return self.candidate

    def finish(self) -> None:
        if self.candidate is not None:
            self.candidate.end()
            self.candidate = None

    def note(self, status: str, detail: str) -> None:
        self.statuses.append(status)
        if status != "passed" and not self.detail:
            self.detail = detail[:_DETAIL]

    def give_up(self, status: str) -> None:
        self.statuses += [status] * (count_tests(self.tests) - len(self.statuses))

    def one(self, test: Callable[[], bool]) -> str:
        """Run one test and note its status; after `Stopped` the candidate is gone."""
        candidate = self.candidate
        assert candidate is not None
        candidate.arm(min(time.monotonic() + self.timeout, self.end_of_all), self.spare)
        try:
            passed = test()
            status, detail = ("passed", "") if passed else ("failed", "wrong answer")
        except Refused as stop:
            self.stops = MAX_RESTARTS
            status, detail = stop.status, str(stop)
        except Stopped as stop:
            status, detail = stop.status, str(stop)
        except plain.Unserialisable as error:
            status, detail = "unserialisable", str(error)
        except InfrastructureError:
            raise
        except BaseException as error:
            theirs = any(error is e for e in candidate.raised)
            kinds: dict[type, str] = {
                MemoryError: "memory",
                RecursionError: "unserialisable",
            }  # the judge's own, comparing the result
            status = "error" if theirs else kinds.get(type(error), "failed")
            detail = str(error) if theirs else f"{type(error).__name__}: {error}"
        self.spare = candidate.spare
        self.note(status, detail)
        # A script ends after every input; what counts there is only that it hung.
        self.stops += status == "timeout" if self.tests["kind"] == "stdio" else not candidate.alive
        return status


def count_tests(tests: dict[str, Any]) -> int:
    return {"check": 1, "asserts": len(tests.get("asserts", ()))}.get(
        tests["kind"], len(tests.get("inputs", ()))
    )


def verdict_seconds(timeout: float, tests: int) -> float:
    """The cap on one verdict (s): a few tests may use their full limit, many share a quarter of theirs."""
    return timeout * max(min(tests, 3), tests / 4)


@functools.lru_cache(maxsize=512)
def _compiled(source: str) -> Any:
    return compile(source, "<tests>", "exec", dont_inherit=True)


def _same_answer(candidate: Candidate, want: Any, wrapped: bool) -> bool:
    return same_call(candidate.answer(), want, wrapped)


def _holds(source: str, names: dict[str, Any]) -> bool:
    exec(_compiled(source), names)
    return True


def judge_calls(item: Item) -> None:
    tests = item.tests
    arguments, expected = tests["inputs"], tests["expected"]
    while len(item.statuses) < len(arguments):
        first = len(item.statuses)
        candidate = item.start(("batch", item.program, tests["before"], tests["fn_name"], arguments[first:]))
        for want in expected[first:]:
            item.one(functools.partial(_same_answer, candidate, want, tests["wrapped"]))
            if not candidate.alive:
                break
        if not candidate.alive and item.stops > MAX_RESTARTS:
            item.give_up(item.statuses[-1])


def judge_check(item: Item) -> None:
    tests = item.tests
    candidate = item.start(("serve", item.program, "", ""))
    entry = Name(candidate, tests["entry_point"])

    def run() -> bool:
        # The prefix is the problem's own code: HumanEval's tests use helpers that it defines.
        names: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
        for source in tests["prefix"]:
            exec(_compiled(source), names)
        names[tests["entry_point"]] = entry
        exec(_compiled(tests["code"]), names)
        names["check"](entry)
        return True

    item.one(run)


def judge_asserts(item: Item) -> None:
    tests = item.tests
    names: dict[str, Any] = {}
    candidate: Candidate | None = None
    for source in tests["asserts"]:
        if candidate is None or not candidate.alive:
            if item.stops > MAX_RESTARTS:
                item.give_up(item.statuses[-1])
                return
            candidate = item.start(("serve", item.program, tests["before"], tests["after"]))
            names = {"__name__": "tests", "__builtins__": builtins}
            exec(_compiled(tests["setup"]), names)
            for name in tests["names"]:
                names.setdefault(name, Name(candidate, name))  # what the tests themselves import comes first
        item.one(functools.partial(_holds, source, names))


def _stdin(text: str) -> int:
    fd = os.memfd_create("stdin")
    with open(fd, "wb", closefd=False) as file:
        file.write(text.encode("utf-8", "surrogatepass"))
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def judge_stdio(item: Item) -> None:
    tests = item.tests
    for text, want in zip(tests["inputs"], tests["outputs"], strict=True):
        if item.stops > MAX_RESTARTS:
            item.give_up(item.statuses[-1])
            return
        stdin = _stdin(text)
        out, into = os.pipe()
        try:
            item.finish()
            candidate = item.candidate = Candidate(item.zygote, ("script", item.program), (stdin, into))
        finally:
            os.close(stdin)
            os.close(into)

        def run(candidate: Candidate = candidate, out: int = out, want: str = want) -> bool:
            data = candidate.output(out, int(item.limits["output_bytes"]))
            candidate.finished()
            return same_output(data.decode("utf-8", "replace"), want, tests["tolerant"])

        try:
            item.one(run)
        finally:
            os.close(out)


KINDS = {"calls": judge_calls, "check": judge_check, "asserts": judge_asserts, "stdio": judge_stdio}


def judge(item: Item) -> None:
    if not item.program.strip():
        item.detail = "empty program"
        item.give_up("error")
        return
    try:
        KINDS[item.tests["kind"]](item)
    finally:
        item.finish()


def _requests() -> Iterator[tuple[int, str, bytes]]:
    while True:
        data = core.receive(CALLER)
        if not isinstance(data, bytes):
            return
        yield core.decode(data)


def main() -> None:
    """Serve one verifier until it hangs up; its first message holds the settings."""
    core.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    data = core.receive(CALLER)
    if not isinstance(data, bytes):
        return
    settings = core.decode(data)
    zygote = Zygote(settings)
    resource.setrlimit(resource.RLIMIT_AS, (settings["judge_bytes"],) * 2)
    try:
        zygote.wait_ready()
    except InfrastructureError as error:
        core.send(CALLER, core.encode(("refused", str(error))))
        return
    core.send(CALLER, core.encode(("ready",)))
    decode = functools.lru_cache(maxsize=256)(core.decode)
    for number, program, payload in _requests():
        begin = time.monotonic()
        try:
            tests = decode(payload) if len(payload) < _CACHED_BYTES else core.decode(payload)
            item = Item(zygote, program, tests, settings)
            judge(item)
            answer: tuple[Any, ...] = (
                "verdict",
                number,
                item.statuses,
                time.monotonic() - begin,
                item.detail,
            )
        except InfrastructureError as error:
            zygote.close()
            zygote = Zygote(settings)
            zygote.wait_ready()
            answer = ("infrastructure", number, str(error))
        except (
            Exception
        ) as error:  # a mistake of the judge's own must be heard of, not end in a silent restart
            answer = ("infrastructure", number, f"judge: {type(error).__name__}: {error}")
        core.send(CALLER, core.encode(answer))
    zygote.socket.close()
    os.waitpid(zygote.pid, 0)
