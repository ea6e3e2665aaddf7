"""The judge: holds the tests, runs them against candidates, answers with per-test statuses.

Started by the verifier as its own program (process.py), with the socket to it on descriptor 0. It handles one
item at a time: (number, program, tests, options) in, (number, statuses, seconds, detail, mode) out. Test code
is trusted and runs here; the program runs in a candidate (remote.py), and only plain data comes back.
"""

from __future__ import annotations

import builtins
import fcntl
import functools
import gc
import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from restrl.sandbox.compare import same_call, same_output
from restrl.sandbox.item import SLOWER, Enough, Item, Machinery, count_tests
from restrl.sandbox.link import Name
from restrl.sandbox.native import core
from restrl.sandbox.remote import CALLER, Candidate, Unjudgeable
from restrl.sandbox.zygotes import InfrastructureError, Zygote, keep_to

_CACHED_BYTES = 1 << 16


@functools.lru_cache(maxsize=512)
def _compiled(source: str) -> Any:
    return compile(source, "<tests>", "exec", dont_inherit=True)


_BY_TEXT = {"exec", "eval", "compile", "globals", "locals", "vars", "dir", "getattr"}


def names_for(program: str, imports: str) -> str:
    """Those lines of `imports` of which the program says a name; all if it may look names up as text."""
    words = set(re.findall(r"\w+", program))
    if words & _BY_TEXT:
        return imports
    lines = imports.splitlines(keepends=True)
    return "".join(line for line in lines if words & set(re.findall(r"\w+", line.partition("import")[2])))


def _same_answer(candidate: Candidate, want: Any, wrapped: bool) -> bool:
    return same_call(candidate.answer(), want, wrapped)


def _holds(source: str, names: dict[str, Any]) -> bool:
    exec(_compiled(source), names)
    return True


def judge_calls(item: Item) -> None:
    tests = item.tests
    arguments, expected = tests["inputs"], tests["expected"]
    before = names_for(item.program, tests["before"])
    while len(item.statuses) < len(arguments):
        first = len(item.statuses)
        candidate = item.start(("batch", item.program, before, tests["fn_name"], arguments[first:]))
        for want in expected[first:]:
            item.one(functools.partial(_same_answer, candidate, want, tests["wrapped"]))
            if not candidate.alive:
                break
        if not candidate.alive and item.spent:
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
            if item.spent:
                item.give_up(item.statuses[-1])
                return
            candidate = item.start(("serve", item.program, tests["before"], tests["after"]))
            names = {"__name__": "tests", "__builtins__": builtins}
            exec(_compiled(tests["setup"]), names)
            for name in tests["names"]:
                names.setdefault(name, Name(candidate, name))  # what the tests themselves import comes first
        item.one(functools.partial(_holds, source, names))


def _stdin(text: str) -> int:
    data = text.encode("utf-8", "surrogatepass")
    if sys.platform != "linux":
        import tempfile

        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(0)
            return os.dup(file.fileno())
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    # Not to be written to: its pages count against nobody's limit.
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def judge_stdio(item: Item) -> None:
    tests = item.tests
    for text, want in zip(tests["inputs"], tests["outputs"], strict=True):
        if item.statuses and item.spent:
            item.give_up(item.statuses[-1])
            return
        stdin = _stdin(text)
        out, into = os.pipe()
        try:
            item.finish()
            job = ("script", item.program, names_for(item.program, tests["before"]))
            candidate = item.candidate = Candidate(item.zygote, job, (stdin, into), None, item.cpu_seconds)
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


# Loaded by judges that meet such tests: it takes its time.
def judge_inputs(item: Item) -> None:
    from restrl.sandbox import gold

    gold.judge_inputs(item)


def judge_unittest(item: Item) -> None:
    from restrl.sandbox import unittests

    unittests.judge_unittest(item)


def judge_context(item: Item) -> None:
    from restrl.sandbox import unittests

    unittests.judge_context(item)


KINDS = {
    "calls": judge_calls,
    "check": judge_check,
    "asserts": judge_asserts,
    "stdio": judge_stdio,
    "inputs": judge_inputs,
    "unittest": judge_unittest,
    "context": judge_context,
}


def judge(item: Item) -> None:
    if not item.program.strip():
        item.detail = "empty program"
        item.give_up("error")
        return
    try:
        KINDS[item.tests["kind"]](item)
    except Enough:
        item.give_up("skipped")
    finally:
        item.finish()


def judge_all(item: Item) -> None:
    """Judge, and once more with a longer cap where it was too short for the reference solution itself."""
    key = item.key + b"time"
    known = item.machinery.known(key)
    if known is not None and SLOWER * known > item.seconds:
        item.longer(SLOWER * known + item.timeout)
        item.begin(SLOWER * known)
    judge(item)
    if known is not None or not item.capped or item.tests["kind"] not in ("calls", "asserts", "stdio"):
        return  # the other kinds run what they compare with before
    cap = SLOWER * item.machinery.once(key, functools.partial(_reference_seconds, item))
    if cap > item.seconds:
        item.longer(cap + item.timeout)
        item.statuses, item.detail = [], ""
        item.begin(cap)
        judge(item)


def _reference_seconds(item: Item) -> float:
    """How long the reference solution takes, every test with its whole limit; 0 where it does not pass."""
    if not item.tests["reference"]:
        return 0.0
    most = item.timeout * count_tests(item.tests)
    item.longer(most + item.timeout)
    limits = {**item.limits, "early_exit": True}
    reference = Item(item.machinery, item.tests["reference"], item.tests, limits, item.key, item.longer)
    reference.begin(most)
    begin = time.monotonic()
    judge(reference)
    return time.monotonic() - begin if set(reference.statuses) == {"passed"} else 0.0


def _requests() -> Iterator[tuple[int, str, bytes, dict[str, Any]]]:
    while True:
        data = core.receive(CALLER)
        if not isinstance(data, bytes):
            return
        yield core.decode(data)


def _end_with_caller() -> None:
    """Where no signal comes when the parent ends: its socket hangs up."""
    poll = select.poll()
    poll.register(CALLER, 0)
    poll.poll()
    os._exit(0)


def _longer(number: int, seconds: float) -> None:
    core.send(CALLER, core.encode(("longer", number, seconds)))


def main(settings: dict[str, Any], zygote: Zygote) -> None:
    """Serve one verifier until it hangs up. `zygote` is starting."""
    if not core.confines:
        import threading

        threading.Thread(target=_end_with_caller, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        machinery = Machinery(settings, zygote)
    except InfrastructureError as error:
        core.send(CALLER, core.encode(("refused", str(error))))
        return
    gc.collect()
    gc.freeze()  # what is there now stays: no later collection looks through it
    keep_to(settings["core"])  # as its zygote does; they started side by side
    core.send(CALLER, core.encode(("ready",)))
    decode = functools.lru_cache(maxsize=256)(core.decode)
    for number, program, payload, options in _requests():
        begin = time.monotonic()
        answer: tuple[Any, ...]
        try:
            tests = decode(payload) if len(payload) < _CACHED_BYTES else core.decode(payload)
            longer = functools.partial(_longer, number)
            item = Item(machinery, program, tests, {**settings, **options}, options["problem"], longer)
            judge_all(item)
            seconds = time.monotonic() - begin
            answer = ("verdict", number, item.statuses, seconds, item.detail, item.mode)
        except Unjudgeable as error:
            answer = ("unjudgeable", number, str(error))
        except InfrastructureError as error:
            machinery.restart()
            answer = ("infrastructure", number, str(error))
        except (
            Exception
        ) as error:  # a mistake of the judge's own must be heard of, not end in a silent restart
            answer = ("infrastructure", number, f"judge: {type(error).__name__}: {error}")
        core.send(CALLER, core.encode(answer))
    machinery.leave()
