"""What happens when processes die, what is left behind, and what each tier of isolation holds back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from restrl.errors import RestrlError
from restrl.records import Calls, Check, Problem, Stdio, Tests
from restrl.sandbox import Verdict, Verifier


def problem(tests: Tests, **fields: Any) -> Problem:
    return Problem(task_id="p", source="test", prompt="", mode="instruct", tests=tests, **fields)


def calls(*pairs: tuple[Any, Any], **fields: Any) -> Problem:
    """f(argument) == value for every pair."""
    args, values = [[a] for a, _ in pairs], [v for _, v in pairs]
    return problem(Calls(fn_name="f", args=args, expected=values), **fields)


ECHO = problem(Stdio(inputs=["3\n4\n"], outputs=["7\n"]))
INC = calls((1, 2), (2, 3), (3, 4), (4, 5))


def one(verifier: Verifier, what: Problem, program: str) -> Verdict:
    return verifier.verify([(what, textwrap.dedent(program))])[0]


def test_a_program_that_does_not_load_is_an_error_however_fast_it_ends() -> None:
    what = problem(Check(code="def check(candidate):\n    candidate(1)\n", entry_point="f"))
    with Verifier(workers=2) as verifier:
        verdicts = verifier.verify([(what, f"def f(:  # {i}\n") for i in range(600)])
    assert {(v.status, v.detail[:11]) for v in verdicts} == {("error", "SyntaxError")}


def descendants(pid: int) -> list[int]:
    """Processes below `pid`, zombies too."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def judges() -> list[int]:
    return [
        p
        for p in descendants(os.getpid())
        if b"restrl.sandbox.judge" in Path(f"/proc/{p}/cmdline").read_bytes()
    ]


def zygotes() -> list[int]:
    return [p for p in descendants(os.getpid()) if b"zygote.py" in Path(f"/proc/{p}/cmdline").read_bytes()]


@pytest.mark.parametrize("victims", [judges, zygotes])
def test_killed_processes_are_replaced_and_their_items_redone(victims: Any) -> None:
    others = set(victims())
    with Verifier(workers=1, timeout=5, cache=False) as v:
        killed: list[int] = []

        def kill() -> None:
            time.sleep(0.5)
            killed.append(min(set(victims()) - others))
            os.kill(killed[0], signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        slow = "import time\ntime.sleep(0.3)\ndef f(x): return x + 1"
        programs = [slow, "def f(x): return 0", slow, "def f(x): return x + 1", slow]
        verdicts = v.verify([(INC, p) for p in programs])
        thread.join()
        assert killed
        assert [x.passed for x in verdicts] == [True, False, True, True, True]
        assert v.retries >= 1


def test_an_item_that_cannot_be_judged_has_no_reward() -> None:
    # The judge itself ends each time: test code is trusted, so only a bug or a kill does that.
    fatal = problem(Check(code="import os\ndef check(c): os._exit(1)", entry_point="f"))
    with Verifier(workers=1, cache=True) as v:
        verdicts = v.verify([(fatal, "def f(x): return x"), (INC, "def f(x): return x + 1")])
        assert verdicts[0].status == "infrastructure_error"
        assert verdicts[0].reward is None
        assert verdicts[1].passed
        assert v.retries == 3
        v.verify([(fatal, "def f(x): return x")])
        assert (v.cache_hits, v.retries) == (0, 6)  # never cached


def test_nothing_is_left_behind() -> None:
    before = set(descendants(os.getpid()))
    files = set(os.listdir("/proc/self/fd"))
    with Verifier(workers=2, timeout=1.0, cache=False) as v:
        ours = set(descendants(os.getpid())) - before
        v.verify([(ECHO, "import os, time\nos.fork()\ntime.sleep(9)"), (INC, "while True: pass")])
        v.verify(
            [(INC, "import threading, time\nthreading.Thread(target=time.sleep, args=(9,)).start()\nf = int")]
        )
        assert {p for judge in ours for p in descendants(judge)} <= ours
    assert not ours & set(descendants(os.getpid()))
    assert set(os.listdir("/proc/self/fd")) == files


_CALLER = """
import sys, time
from restrl.records import Calls, Problem
from restrl.sandbox import Verifier
tests = Calls(fn_name="f", args=[[1]], expected=[1])
problem = Problem(task_id="p", source="t", prompt="", mode="instruct", tests=tests)
with Verifier(workers=2, timeout=60) as v:
    print("up", flush=True)
    v.verify([(problem, "while True: pass")] * 2)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_everything_ends_with_the_caller(how: signal.Signals) -> None:
    caller = subprocess.Popen(
        [sys.executable, "-c", _CALLER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert caller.stdout is not None
    assert caller.stdout.readline() == b"up\n"
    time.sleep(0.5)
    below = descendants(caller.pid)
    assert len(below) >= 4
    caller.send_signal(how)
    caller.wait(10)
    caller.stdout.close()
    deadline = time.monotonic() + 5
    while any(map(alive, below)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [p for p in below if alive(p)]


def test_a_candidate_sees_no_environment_and_no_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTRL_SECRET", "hunter2")
    program = """
    import os, sys
    def f(x):
        seen = repr(dict(os.environ)) + repr(sys.argv)
        for p in ("/proc/self/environ", "/proc/1/environ", "/proc/%d/environ" % os.getppid(), "/etc/passwd"):
            try:
                seen += open(p).read()
            except OSError:
                pass
        return "hunter2" in seen or "root:" in seen
    """
    with Verifier(workers=1, cache=False) as v:
        assert one(v, calls((1, False)), program).passed


@pytest.mark.parametrize("tier", ["tier2", "tier1", "tier1+tier2"])
def test_each_tier_alone(tier: str) -> None:
    try:
        v = Verifier(workers=1, timeout=1.0, isolation=tier, cache=False, allow_unsafe=tier == "tier1")
    except RestrlError as error:
        pytest.skip(str(error))
    with v:
        assert v.isolation == tier
        hostile = """
        import os, socket
        def f(x):
            def kill(): return os.kill(1, 0) if os.getpid() != 1 else 1 / 0
            for attempt in (lambda: open("/etc/passwd"), kill, lambda: socket.socket(), os.fork):
                try:
                    attempt()
                except (OSError, ZeroDivisionError):
                    continue
                return attempt.__name__
            return "sealed"
        """
        assert one(v, calls((0, "sealed")), hostile).passed
        assert one(v, INC, "def f(x): return x + 1").isolation == tier


def test_unsafe_is_possible_only_when_asked_for() -> None:
    with Verifier(workers=1, isolation="none", allow_unsafe=True, cache=False) as v:
        assert one(v, INC, "def f(x): return x + 1").isolation == "none"
