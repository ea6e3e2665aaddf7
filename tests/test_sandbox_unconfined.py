"""Isolation `none`, which is all that other systems than Linux have.

With the usual build it is the Linux zygote without confinement; CI runs this file again on a build with
-DRESTRL_CONFINEMENT=OFF, whose zygote has POSIX calls alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sandbox_processes import alive, all_there, descendants

from restrl.errors import RestrlError
from restrl.records import Calls, Problem, Stdio, Tests, Unittest
from restrl.sandbox import Verifier
from restrl.sandbox.native import core
from restrl.sandbox.settings import TIERS

CALLS = Calls(fn_name="f", args=[[1], [2]], expected=[2, 3])
ECHO = Stdio(inputs=["3\n4\n", "1\n1\n"], outputs=["7\n", "2\n"])
UNIT = """
import unittest
from unittest.mock import patch
class T(unittest.TestCase):
    def test_apart(self): self.assertEqual(f(1), 2)
    def test_beside(self):
        with patch("builtins.len"): self.assertEqual(f(2), 3)
"""


def problem(tests: Tests, **fields: Any) -> Problem:
    return Problem(task_id="p", source="test", prompt="", mode="instruct", tests=tests, **fields)


UNITTEST = problem(Unittest(code=UNIT, entry_point="f"), reference="def f(x): return x + 1")


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(
        workers=2, timeout=1.0, memory_mb=512, isolation="none", allow_unsafe=True, cache=False
    ) as v:
        yield v


@pytest.mark.parametrize(
    ("what", "program", "status"),
    [
        (problem(CALLS), "def f(x): return x + 1", "passed"),
        (problem(CALLS), "def f(x): return 1", "failed"),
        (problem(CALLS), "def f(x): return 1 / 0", "error"),
        (problem(CALLS), "def f(x):\n    while True: pass", "timeout"),
        (problem(CALLS), "import time\ndef f(x): time.sleep(99)", "timeout"),
        (problem(CALLS), "import os\ndef f(x): os._exit(0)", "crashed"),
        (problem(CALLS), "import os\ndef f(x): os.abort()", "crashed"),
        (problem(CALLS), "def f(x): return 'y' * (1 << 26)", "output_limit"),
        (problem(ECHO), "print(int(input()) + int(input()))", "passed"),
        (problem(ECHO), "print(8)", "failed"),
        (problem(ECHO), "while True: print('x' * 1000)", "output_limit"),
        (UNITTEST, "def f(x): return x + 1", "passed"),
        (UNITTEST, "def f(x): return x + 2", "failed"),
        pytest.param(
            problem(CALLS),
            "def f(x): return bytearray(1 << 40)",
            "memory",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="no limit of address space"),
        ),
    ],
)
def test_verdicts(verifier: Verifier, what: Problem, program: str, status: str) -> None:
    verdict = verifier.verify([(what, program)])[0]
    assert verdict.status == status, verdict
    assert verdict.isolation == "none"


def test_order_is_kept_and_nothing_is_left(verifier: Verifier) -> None:
    verifier.verify([(problem(CALLS), "def f(x): return 0")])
    all_there(verifier)
    before = set(descendants(os.getpid()))
    programs = [f"def f(x): return x + {n % 3}" for n in range(60)]
    programs[7] = "import os, time\ndef f(x):\n    os.fork()\n    time.sleep(99)"
    verdicts = verifier.verify([(problem(CALLS), p) for p in programs])
    assert [v.passed for v in verdicts] == [n % 3 == 1 and n != 7 for n in range(60)]
    assert verifier.stats.retries == 0
    assert set(descendants(os.getpid())) == before


_CALLER = f"""
from restrl.records import Calls, Problem
from restrl.sandbox import Verifier
problem = Problem(task_id="p", source="t", prompt="", mode="instruct", tests={CALLS!r})
with Verifier(workers=2, timeout=60, isolation="none", allow_unsafe=True) as v:
    print("up", flush=True)
    v.verify([(problem, "import time\\ndef f(x): time.sleep(60)"), (problem, "while True: pass")])
"""


def test_everything_ends_with_the_caller() -> None:
    caller = subprocess.Popen([sys.executable, "-c", _CALLER], stdout=subprocess.PIPE)
    assert caller.stdout is not None
    assert caller.stdout.readline() == b"up\n"
    deadline = time.monotonic() + 10
    while len(below := descendants(caller.pid)) < 6 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(below) == 6  # two judges, their zygotes, their candidates
    caller.send_signal(signal.SIGKILL)
    caller.wait(10)
    caller.stdout.close()
    deadline = time.monotonic() + 5
    while any(map(alive, below)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [p for p in below if alive(p)]


@pytest.mark.skipif(core.confines, reason="a build with confinement")
def test_a_build_without_confinement_says_so() -> None:
    from restrl import doctor

    assert list(TIERS) == ["none"]
    for isolation in ("auto", "none"):
        with pytest.raises(RestrlError, match=r"Linux container|allow_unsafe"):
            Verifier(isolation=isolation)
    with pytest.raises(RestrlError, match="one of auto, none"):
        Verifier(isolation="tier2", allow_unsafe=True)
    with Verifier(workers=1, allow_unsafe=True) as v:
        assert v.isolation == "none"
    lines, well = doctor.examine()
    assert not well
    assert "Linux container" in "\n".join(lines)
