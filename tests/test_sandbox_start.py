"""How a candidate begins: whether it was confined, and what a program finds there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from restrl.records import Calls, Problem
from restrl.sandbox import Verifier, plain
from restrl.sandbox.jobs import judge_tests
from restrl.sandbox.judge import names_for
from restrl.sandbox.link import Stopped
from restrl.sandbox.native import core
from restrl.sandbox.remote import Candidate
from restrl.sandbox.zygotes import InfrastructureError


class Zygote:
    """One whose candidate says `words` (or hangs up) and ends with code 125."""

    cpu_seconds, memory_bytes, max_bytes, children = 60, 1 << 30, 1 << 20, False

    def __init__(self, words: bytes | None, confined: bool) -> None:
        self.words, self.confined = words, confined
        self.process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    def ask(self, fds: tuple[int, ...], scratch: bool, cpu_seconds: int) -> int:
        ours, self.theirs = socket.socketpair()
        if self.words is None:
            self.theirs.shutdown(socket.SHUT_WR)
        else:
            core.send(self.theirs.fileno(), self.words)
        return ours.detach()

    def forked(self) -> tuple[int, float]:
        return os.pidfd_open(self.process.pid), time.monotonic()

    def ended(self, timeout: float) -> tuple[int, int, int, bool]:
        self.process.kill()
        self.process.communicate()
        self.theirs.close()
        return 125, 0, 0, self.confined


def answer(words: bytes | None, confined: bool) -> Any:
    zygote: Any = Zygote(words, confined)
    candidate = Candidate(zygote, ("serve", "f = int", "", ""))
    candidate.arm(time.monotonic() + 5, 0.0)
    return candidate.answer()


@pytest.mark.skipif(not core.confines, reason="a pidfd is Linux's")
def test_a_candidate_that_was_not_confined_is_the_machinerys_failure_and_no_other() -> None:
    with pytest.raises(InfrastructureError, match="could not be confined: landlock: not in this kernel"):
        answer(b"landlock: not in this kernel", confined=False)
    with pytest.raises(InfrastructureError, match="could not be confined: it ended with 125"):
        answer(None, confined=False)
    # What a program can do: say the same, and end with the same code.
    with pytest.raises(plain.Unserialisable, match="malformed answer"):
        answer(b"landlock: not in this kernel", confined=True)
    with pytest.raises(Stopped, match="ended itself with code 125"):
        answer(None, confined=True)


_SAYS = """
import os, struct
words = b"landlock: not in this kernel"
os.write(3, struct.pack("I", len(words)) + words)
"""
_LOOKS_LIKE = """
class Decimal: pass
Decimal.__module__ = "decimal"
def f(x): return Decimal()
"""
_NAMELESS = """
class Odd: pass
Odd.__module__ = []
def f(x): return Odd()
"""
_RARE = """
import datetime, decimal, fractions
def f(x):
    return [datetime.date(2026, 1, x), decimal.Decimal(x), fractions.Fraction(x, 3)]
"""


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("import os\nos._exit(125)", "crashed"),
        (_SAYS + "os._exit(125)", "unserialisable"),
        (_LOOKS_LIKE, "unserialisable"),
        (_NAMELESS, "unserialisable"),
        (_RARE, "failed"),  # it travels, and is not what was expected
        ("import os\ndef f(x): return dict(os.environ)", "failed"),
    ],
)
def test_no_program_is_taken_for_a_failure_of_the_machinery(program: str, status: str) -> None:
    tests = Calls(fn_name="f", args=[[1]], expected=["nothing"])
    what = Problem(task_id="p", source="test", prompt="", mode="instruct", tests=tests)
    with Verifier(workers=1, cache=False) as verifier:
        verdict = verifier.verify([(what, program)])[0]
        assert verdict.status == status, verdict
        assert verifier.stats.retries == 0


def test_a_program_finds_nothing_in_its_environment() -> None:
    tests = Calls(fn_name="f", args=[[]], expected=[[]])
    what = Problem(task_id="p", source="test", prompt="", mode="instruct", tests=tests)
    program = "import os\ndef f(): return [*os.environ] + [n for n in ('LD_BIND_NOW',) if os.getenv(n)]"
    with Verifier(workers=1, cache=False) as verifier:
        assert verifier.verify([(what, program)])[0].passed


def test_of_the_usual_names_a_program_gets_those_that_it_says() -> None:
    tests = Calls(fn_name="f", args=[[]], expected=[6])
    usual = judge_tests(
        Problem(task_id="p", source="livecodebench", prompt="", mode="instruct", tests=tests)
    )["before"]
    assert names_for("def f(): return 6", usual) == ""
    assert names_for("def f(): return gcd(12, 18)", usual).startswith("from math import ceil, comb, ")
    assert names_for("random.seed(1)\nx: List[int]", usual).splitlines() == [
        "import random", "from typing import Any, Dict, List, Optional, Set, Tuple, Union",
    ]  # fmt: skip
    assert names_for("def f(): return eval('gcd')(12, 18)", usual) == usual
    scope: dict[str, Any] = {}
    exec(usual, scope)
    for name in scope.keys() - {"__builtins__"}:  # each of them, alone
        found: dict[str, Any] = {}
        exec(names_for(f"print({name})", usual), found)
        assert found[name] is scope[name]
