"""What happens when processes die, what is left behind, and what each tier of isolation holds back."""

from __future__ import annotations

import contextlib
import json
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
from sandbox_processes import alive, all_there, descendants, held_bytes, judges, zygotes

from restrl.errors import RestrlError
from restrl.records import Calls, Check, Problem, Stdio, Tests
from restrl.sandbox import Verdict, Verifier
from restrl.stages.verify import verify_file


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
        all_there(v)
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


# -- short versions of what benchmarks/bench_verifier.py --robust does for long


def numbered(count: int, seconds: float = 0.0) -> list[tuple[Problem, str]]:
    """Item n passes where a swapped program or verdict would not: its own problem asks for its own number."""
    return [
        (
            calls((0, n), (1, n + 1)),
            f"import time\ntime.sleep({seconds})\ndef f(x): return x + {n - n % 3 // 2}",
        )
        for n in range(count)
    ]


def expected(count: int) -> list[bool]:
    return [n % 3 != 2 for n in range(count)]


def test_no_verdict_is_lost_or_swapped_while_judges_and_zygotes_are_killed() -> None:
    others = set(judges()) | set(zygotes())
    with Verifier(workers=2, timeout=5, cache=False) as v:
        stop = threading.Event()
        killed = 0

        def kill() -> None:
            nonlocal killed
            while not stop.wait(0.3):
                for pid in sorted((set(judges()) | set(zygotes())) - others)[killed % 4 : killed % 4 + 1]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    killed += 1

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            verdicts = v.verify(numbered(120, 0.02))
        finally:
            stop.set()
            thread.join()
        assert killed >= 2
        lost = [n for n, x in enumerate(verdicts) if x.status == "infrastructure_error"]
        assert v.stats.infrastructure_errors == len(lost)  # hit three times in a row: said, not scored
        assert all(verdicts[n].reward is None for n in lost)
        assert len(lost) <= 3
        assert [x.passed for n, x in enumerate(verdicts) if n not in lost] == [
            p for n, p in enumerate(expected(120)) if n not in lost
        ]
        assert v.stats.retries + v.stats.judges_replaced >= 1


def test_hostile_programs_between_ordinary_ones_change_nothing() -> None:
    hostile = {
        "fork bomb": "import os\ndef f(x):\n    while True: os.fork()",
        "threads": "import threading, time\ndef f(x):\n    while True:\n"
        "        threading.Thread(target=time.sleep, args=(99,)).start()",
        "memory": "def f(x):\n    kept = []\n    while True: kept.append(bytearray(8 << 20))",
        "disk": "import os\ndef f(x):\n    with open('/tmp/x', 'wb') as file:\n"
        "        while True: file.write(bytes(1 << 20)); file.flush()",
        "output": "def f(x): return 'x' * (1 << 30)",
        "hang": "def f(x):\n    while True: pass",
    }
    statuses = {
        "fork bomb": ("error",),
        "threads": ("error", "memory", "timeout"),
        "memory": ("memory",),
        "disk": ("error",),
        "output": ("output_limit", "memory"),
        "hang": ("timeout",),
    }
    fresh = "import os\ndef f(x): return x + 1 + len(os.listdir('/tmp'))"  # nothing is left of the full disk
    before = set(descendants(os.getpid()))
    with Verifier(workers=2, timeout=0.5, memory_mb=128, cache=False) as v:
        all_there(v)
        ours = set(descendants(os.getpid())) - before
        items = [(calls((1, 2)), program) for bad in hostile.values() for program in (bad, fresh)]
        verdicts = v.verify(items)
        for name, verdict in zip(hostile, verdicts[::2], strict=True):
            assert verdict.status in statuses[name], (name, verdict)
            assert verdict.reward == 0
        if "tier1" in v.isolation:  # without a mount namespace there is no /tmp
            assert all(x.passed for x in verdicts[1::2])
        assert v.stats.infrastructure_errors == v.stats.retries == 0
        assert set(descendants(os.getpid())) - before == ours


def test_hanging_programs_end_at_their_limit() -> None:
    with Verifier(workers=4, timeout=0.5, cache=False) as v:
        items = [(calls((1, 1)), f"import time\ndef f(x): time.sleep(99) # {n}") for n in range(24)]
        begin = time.monotonic()
        verdicts = v.verify(items)
        assert {x.status for x in verdicts} == {"timeout"}
        assert time.monotonic() - begin < 24 / 4 * 0.5 * 2 + 1  # at most one limit more, for want of a core
        assert max(x.seconds for x in verdicts) < 2 * 0.5 + 1


def test_memory_descriptors_and_processes_stay_flat() -> None:
    with Verifier(workers=1, cache=False) as v:

        def state() -> tuple[int, int, dict[int, int]]:
            pids = [os.getpid(), *judges(), *zygotes()]
            open_files = sum(len(os.listdir(f"/proc/{p}/fd")) for p in (os.getpid(), *judges()))
            return open_files, len(pids), {p: held_bytes(p) for p in pids}

        v.verify(numbered(100))
        files, processes, held = state()
        assert [x.passed for x in v.verify(numbered(300))] == expected(300)
        files_after, processes_after, held_after = state()
        assert (files_after, processes_after) == (files, processes)
        assert all(held_after[p] < held[p] + (12 << 20) for p in held)


def test_restrl_verify_says_what_the_machinery_failed_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = ("import os\ndef check(c): os._exit(1)\n", "def check(c): assert c(1) == 1\n")
    rows = [
        {"task_id": f"HumanEval/{i}", "prompt": "def f(x):\n", "entry_point": "f", "test": test,
         "canonical_solution": "    return x\n"}
        for i, test in enumerate(checks)
    ]  # fmt: skip
    samples = [{"task_id": row["task_id"], "completion": "    return x\n"} for row in rows]
    for name, lines in (("problems", rows), ("samples", samples)):
        (tmp_path / name).with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out.jsonl"
    table = verify_file(tmp_path / "problems.jsonl", tmp_path / "samples.jsonl", out, workers=1)
    assert table["pass@1"] == 1.0  # over what is known: an error of the machinery is no wrong program
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["status"], row["reward"]) for row in written] == [
        ("infrastructure_error", None),
        ("passed", 1.0),
    ]
    shown = capsys.readouterr().out
    assert "infrastructure_error 1" in shown
    assert "3 programs were judged again after a failure of the machinery, 1 could not be judged" in shown


def test_a_zygote_killed_while_its_judge_starts_costs_nothing() -> None:
    others = set(zygotes()) | set(judges())
    with Verifier(workers=1, cache=False) as v:
        os.kill((set(judges()) - others).pop(), signal.SIGKILL)
        killed: set[int] = set()
        deadline = time.monotonic() + 10
        while len(killed) < 2 and time.monotonic() < deadline:
            for pid in set(zygotes()) - others - killed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
        assert one(v, INC, "def f(x): return x + 1").passed
        assert v.stats.infrastructure_errors == 0


def test_judges_for_every_core_have_one_each() -> None:
    cores = sorted(os.sched_getaffinity(0))
    with Verifier(workers=len(cores), cache=False) as v:
        all_there(v)
        mine = [judge.process.pid for judge in v._pool._judges]
        assert sorted(core for p in mine for core in os.sched_getaffinity(p)) == cores
        assert one(v, INC, "def f(x): return x + 1").passed
        below = [p for judge in mine for p in descendants(judge)]
        assert all(len(os.sched_getaffinity(p)) == 1 for p in below)
    if len(cores) > 1:
        with Verifier(workers=1, cache=False) as v:
            assert len(os.sched_getaffinity(v._pool._judges[0].process.pid)) == len(cores)
