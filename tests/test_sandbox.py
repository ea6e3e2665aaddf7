"""The verifier on real processes: verdicts, limits, order, robustness, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from restrl.errors import RestrlError
from restrl.records import Asserts, Calls, Check, Problem, Stdio, Tests
from restrl.sandbox import Verdict, Verifier


def problem(tests: Tests, **fields: Any) -> Problem:
    return Problem(task_id="p", source="test", prompt="", mode="instruct", tests=tests, **fields)


def calls(*pairs: tuple[Any, Any], **fields: Any) -> Problem:
    """f(argument) == value for every pair."""
    args, values = [[a] for a, _ in pairs], [v for _, v in pairs]
    return problem(Calls(fn_name="f", args=args, expected=values), **fields)


ECHO = problem(Stdio(inputs=["3\n4\n"], outputs=["7\n"]))
INC = calls((1, 2), (2, 3), (3, 4), (4, 5))


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(workers=2, timeout=1.0, cache=False) as v:
        yield v


def one(verifier: Verifier, what: Problem, program: str) -> Verdict:
    return verifier.verify([(what, textwrap.dedent(program))])[0]


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


# -- verdict kinds


@pytest.mark.parametrize(
    ("program", "tests", "reward"),
    [
        ("def f(x): return x + 1", ["passed"] * 4, 1.0),
        ("def f(x): return 3", ["failed", "passed", "failed", "failed"], 0.25),
        ("def f(x): return x + 1 if x < 3 else 1 / 0", ["passed", "passed", "error", "error"], 0.5),
        (
            "def f(x):\n    while x == 2: pass\n    return x + 1",
            ["passed", "timeout", "passed", "passed"],
            0.75,
        ),
        (
            "def f(x): return x + 1 if x < 3 else bytearray(1 << 50)",
            ["passed", "passed", "memory", "memory"],
            0.5,
        ),
        (
            "import os\ndef f(x):\n    if x == 2: os._exit(0)\n    return x + 1",
            ["passed", "crashed", "passed", "passed"],
            0.75,
        ),
        ("import sys\ndef f(x): sys.exit(0)", ["error"] * 4, 0.0),
        ("def f(x): return 'y' * (1 << 26)", ["output_limit"] * 4, 0.0),
        ("class A: pass\ndef f(x): return A()", ["unserialisable"] * 4, 0.0),
        ("def f(x: return", ["error"] * 4, 0.0),
        ("def g(x): return x + 1", ["error"] * 4, 0.0),
        ("", ["error"] * 4, 0.0),
        ("import os\nos._exit(0)", ["crashed"] * 4, 0.0),
    ],
)
def test_status_and_reward_of_calls(
    verifier: Verifier, program: str, tests: list[str], reward: float
) -> None:
    verdict = one(verifier, INC, program)
    assert list(verdict.tests) == tests
    assert verdict.reward == reward
    assert verdict.passed == (reward == 1.0)
    assert verdict.status == next((t for t in tests if t != "passed"), "passed")
    assert verdict.isolation == verifier.isolation


def test_tests_passed_before_a_timeout_count_and_the_verdict_is_capped(verifier: Verifier) -> None:
    many = calls(*((i, i) for i in range(12)))
    begin = time.monotonic()
    verdict = one(verifier, many, "def f(x):\n    while x > 7: pass\n    return x")
    assert list(verdict.tests) == ["passed"] * 8 + ["timeout"] * 4
    assert time.monotonic() - begin < 4.0  # two hang, the others share their fate


def test_one_slow_check_has_one_limit_for_all_its_calls(verifier: Verifier) -> None:
    check = problem(Check(code="def check(c):\n    for i in range(9): assert c(i) == i", entry_point="f"))
    slow = one(verifier, check, "import time\ndef f(x):\n    time.sleep(0.25)\n    return x")
    assert slow.status == "timeout"
    assert slow.seconds < 1.5


def test_asserts_are_one_test_each_and_builtins_stay_the_judges(verifier: Verifier) -> None:
    three = problem(Asserts(asserts=["assert set(f(1)) == {1}", "assert f(2) == [3]", "assert f(3) == [3]"]))
    assert list(one(verifier, three, "def f(x): return [x]").tests) == ["passed", "failed", "passed"]
    # The program's own `set` is not what the tests call: it would make any two results equal.
    lying = one(verifier, three, "def set(x): return {1}\ndef f(x): return 5")
    assert lying.reward == 0.0


def test_asserts_may_call_a_function_that_hides_a_builtin(verifier: Verifier) -> None:
    reference = "def sum(a, b):\n    return a * b\n"
    what = problem(Asserts(asserts=["assert sum(2, 5) == 10"]), reference=reference)
    assert one(verifier, what, reference).passed


def test_setup_that_needs_the_program_runs_after_it(verifier: Verifier) -> None:
    setup = "root = Node(1)\nroot.left = Node(2)"
    reference = """
    class Node:
        def __init__(self, data):
            self.data, self.left = data, None
    def depth(node):
        return 1 + depth(node.left) if node else 0
    """
    what = problem(
        Asserts(setup=setup, asserts=["assert depth(root) == 2"]), reference=textwrap.dedent(reference)
    )
    assert one(verifier, what, reference).passed
    assert one(verifier, what, reference.replace("1 +", "2 +")).status == "failed"


def test_objects_of_the_programs_own_classes_can_be_passed_back(verifier: Verifier) -> None:
    reference = (
        "class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\ndef f(p): return p.a + p.b\n"
    )
    what = problem(Asserts(asserts=["assert f(Pair(3, 4)) == 7"]), reference=reference)
    assert one(verifier, what, reference).passed
    unequal = problem(Asserts(asserts=["assert Pair(1, 2) == Pair(1, 2)"]), reference=reference)
    lying = reference + "Pair.__eq__ = lambda self, other: True\n"
    assert one(verifier, unequal, lying).status == "unserialisable"


def test_helpers_of_the_prompt_are_the_judges_and_the_entry_point_is_the_programs(verifier: Verifier) -> None:
    prefix = 'def poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\n\ndef f(xs):\n    """Root."""\n'
    code = "def check(candidate):\n    assert abs(poly([2, 1], candidate([2, 1]))) < 1e-9\n    assert f([2, 1]) == -2"
    what = problem(Check(code=code, entry_point="f"), prefix=prefix)
    assert one(verifier, what, prefix + "    return -2.0\n").passed
    assert one(verifier, what, "def poly(xs, x): return 0\ndef f(xs): return 7\n").status == "failed"


def test_exceptions_of_the_program_reach_the_tests(verifier: Verifier) -> None:
    code = """
def check(candidate):
    try:
        candidate(-1)
    except ValueError as error:
        assert "negative" in str(error)
    else:
        raise AssertionError("no error")
"""
    what = problem(Check(code=code, entry_point="f"))
    assert one(verifier, what, "def f(x): raise ValueError('negative')").passed
    assert one(verifier, what, "def f(x): raise TypeError('negative')").status == "error"
    assert one(verifier, what, "def f(x): return 1").status == "failed"


def test_wrapped_outputs_and_tuples_of_call_based_apps(verifier: Verifier) -> None:
    wrapped = problem(Calls(fn_name="f", args=[[1]], expected=[[[1, 2]]], wrapped=True))
    plain = problem(Calls(fn_name="f", args=[[1]], expected=[[[1, 2]]]))
    method = "class Solution:\n    def f(self, x): return (1, 2)"
    assert one(verifier, wrapped, method).passed
    assert not one(verifier, plain, method).passed


# -- stdio


@pytest.mark.parametrize(
    "program",
    [
        "print(int(input()) + int(input()))",
        "import sys\na, b = map(int, sys.stdin.read().split())\nprint(a + b)\nsys.exit()",
        "import sys\nsys.stdout.buffer.write(b'%d' % sum(map(int, sys.stdin.buffer.read().split())))",
        "import os\nos.write(1, str(sum(map(int, os.read(0, 99).split()))).encode())",
        "if __name__ == '__main__':\n    print(sum(int(input()) for _ in range(2)))\n    exit()",
        "import fileinput\nprint(sum(map(int, fileinput.input())))",
        "import threading\nt = threading.Thread(target=lambda: print(int(input()) + int(input())))\nt.start()",
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 27)\n"
        "def go(n): return 0 if n == 0 else go(n - 1)\n"
        "def main():\n    go(50000)\n    print(int(input()) + int(input()))\n"
        "t = threading.Thread(target=main)\nt.start()\nt.join()",
        "import sys\nprint('x' * 1000000, file=sys.stderr)\nprint('  7.0  \\n\\n')",
        "import atexit\natexit.register(print, 7)",
        "import tempfile\nwith tempfile.NamedTemporaryFile('w+') as t:\n    t.write('7')\n    t.seek(0)\n    print(t.read())",
    ],
)
def test_valid_scripts_pass(verifier: Verifier, program: str) -> None:
    if "tempfile" in program and "tier1" not in verifier.isolation:
        pytest.skip("only namespaces give a candidate a place to write to")
    verdict = one(verifier, ECHO, program)
    assert verdict.passed, verdict


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("print(8)", "failed"),
        ("print(7)\nprint(7)", "failed"),
        ("print(7)\n1 / 0", "error"),
        ("print(7)\nimport sys\nsys.exit(3)", "crashed"),
        ("while True: pass", "timeout"),
        ("import time\ntime.sleep(50)", "timeout"),
        ("while True: print('x' * 1000)", "output_limit"),
        ("x = [bytearray(1 << 33)]", "memory"),
        ("import ctypes\nctypes.string_at(0)", "crashed"),
    ],
)
def test_bad_scripts_do_not_pass(verifier: Verifier, program: str, status: str) -> None:
    assert one(verifier, ECHO, program).status == status


def test_many_inputs_are_separate_runs(verifier: Verifier) -> None:
    what = problem(Stdio(inputs=["1", "0", "2"], outputs=["1.0", "inf", "0.5"]))
    assert list(one(verifier, what, "print(1 / int(input()))").tests) == ["passed", "error", "passed"]


# -- order, cache, bad use


def test_results_come_in_the_order_of_the_items(verifier: Verifier) -> None:
    programs = [
        f"import time\ntime.sleep({(7 * i % 5) / 100})\ndef f(x): return x + {i % 2}" for i in range(30)
    ]
    verdicts = verifier.verify([(INC, p) for p in programs])
    assert [v.passed for v in verdicts] == [i % 2 == 1 for i in range(30)]


def test_cache_in_memory_and_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    items = [(INC, "def f(x): return x + 1"), (INC, "def f(x): return 0"), (INC, "def f(x): return x + 1")]
    with Verifier(workers=1, cache=path) as v:
        first = v.verify(items)
        assert v.cache_hits == 0
        assert v.verify(items) == first
        assert v.cache_hits == 2  # two different programs
    with path.open("a") as file:
        file.write('{"key": "torn')
    with Verifier(workers=1, cache=path) as v:
        assert v.verify(items) == first
        other = calls((1, 2), (2, 3), (3, 4), (4, 6))
        assert v.verify([(other, items[0][1])])[0].reward == 0.75  # other tests: another verdict
    assert len(path.read_text().splitlines()) == 3
    path.write_text("{}\n")
    with pytest.raises(RestrlError, match="line 1"):
        Verifier(workers=1, cache=path)


def test_mistakes_of_the_user_are_named(verifier: Verifier) -> None:
    with pytest.raises(RestrlError, match="without tests"):
        verifier.verify([(calls(), "x = 1")])
    with pytest.raises(RestrlError, match="1 calls but 2"):
        verifier.verify([(problem(Calls(fn_name="f", args=[[1]], expected=[1, 2])), "x = 1")])
    with pytest.raises(RestrlError, match="unknown isolation"):
        Verifier(isolation="bubble")
    with pytest.raises(RestrlError, match="workers"):
        Verifier(workers=0)
    with pytest.raises(RestrlError, match="allow_unsafe"):
        Verifier(isolation="none")


# -- robustness


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


def test_test_code_that_hangs_on_a_result_is_a_timeout(verifier: Verifier) -> None:
    hang = problem(Check(code="def check(c):\n    while c(1): pass", entry_point="f"))
    verdicts = verifier.verify([(hang, "def f(x): return True"), (INC, "def f(x): return x + 1")])
    assert [v.status for v in verdicts] == ["timeout", "passed"]
    busy = problem(Check(code="def check(c):\n    c(1)\n    while True: pass", entry_point="f"))
    assert one(verifier, busy, "def f(x): return True").status == "timeout"


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
        v = Verifier(workers=1, timeout=1.0, isolation=tier, cache=False)
    except RestrlError as error:
        pytest.skip(str(error))
    with v:
        assert v.isolation == tier
        hostile = """
        import os, socket
        def f(x):
            for attempt in (lambda: open("/etc/passwd"), lambda: open("/tmp/restrl-x", "w") if x else 1 / 0,
                            lambda: os.kill(1, 0) if os.getpid() != 1 else 1 / 0, lambda: socket.socket(), os.fork):
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


def test_verifying_many_small_programs_is_quick() -> None:
    items = [(INC, f"def f(x):\n    y = x + {i}\n    return y") for i in range(300)]
    with Verifier(workers=2, cache=False) as v:
        verdicts = v.verify(items)
    assert [i for i, verdict in enumerate(verdicts) if verdict.passed] == [1]


def test_rows_are_plain_json(verifier: Verifier) -> None:
    json.dumps(one(verifier, INC, "def f(x): return x").__dict__)
