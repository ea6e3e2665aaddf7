"""The verifier on real processes: verdicts, limits, order, robustness, and what it leaves behind."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from restrl.errors import RestrlError
from restrl.records import Asserts, Calls, Check, Problem, Stdio, Tests
from restrl.sandbox import Verdict, Verifier
from restrl.sandbox.item import Item
from restrl.sandbox.jobs import judge_tests


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


def test_tests_that_hang_have_three_time_limits_in_all() -> None:
    """Waits for a core included: a busy machine does not make them longer."""
    given: list[float] = []
    candidate: Any = SimpleNamespace(arm=lambda end, spare: given.append(end + spare - time.monotonic()))
    machinery: Any = SimpleNamespace(zygote=None)
    item = Item(machinery, "x", judge_tests(INC), {"timeout": 6.0}, b"", lambda seconds: None)
    for seconds in (8.0, 8.0, 2.0):
        item.arm(candidate)
        item.lose(seconds)
    item.arm(candidate)
    assert given == pytest.approx([12.0, 10.0, 2.0, 6.0 / 16], abs=0.05)


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
    prefix = (
        "def poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\n\ndef f(xs):\n    'Root.'\n"
    )
    code = "def check(c):\n    assert abs(poly([2, 1], c([2, 1]))) < 1e-9\n    assert f([2, 1]) == -2"
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


def test_a_program_cannot_end_the_loops_of_the_tests(verifier: Verifier) -> None:
    what = problem(
        Asserts(asserts=["assert all(map(f, [1, 2]))", "assert list(map(f, [1])) == []"]), entry_point="f"
    )
    verdict = one(verifier, what, "def f(x): raise StopIteration")
    assert verdict.tests == ("error", "error")


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
        "import threading\nthreading.Thread(target=lambda: print(int(input()) + int(input()))).start()",
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 27)\n"
        "def go(n): return 0 if n == 0 else go(n - 1)\n"
        "def main():\n    go(50000)\n    print(int(input()) + int(input()))\n"
        "t = threading.Thread(target=main)\nt.start()\nt.join()",
        "import sys\nprint('x' * 1000000, file=sys.stderr)\nprint('  7.0  \\n\\n')",
        "import atexit\natexit.register(print, 7)",
        "import tempfile\nt = tempfile.TemporaryFile('w+')\nt.write('7')\nt.seek(0)\nprint(t.read())",
        "\ufeffprint(7)",
        "import os\nassert os.path.basename(__file__) == 'program.py'\nprint(7)",
        "import sys\nassert 'r' in sys.stdin.mode and 'w' in sys.stdout.mode\nprint(7)",
        "import sys\nassert sys.stdin.name == '<stdin>'\nprint(7)",
        "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer)\nprint(7)",
        "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.detach())\nprint(7)",
        "import sys\nsys.stdout.reconfigure(encoding='ascii')\nprint(7)",
        "import sys\nsys.stdout = None\nsys.__stdout__.write('7')",
        "import sys\nprint(7)\nsys.stdout.close()",
        "out = open(1, 'w', closefd=False)\nprint(7, file=out)",
        "class A:\n    def __del__(self): print(7)\na = A()",
        "print(sum(map(int, open('/dev/stdin'))), file=open('/dev/stdout', 'w'))",
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


def test_a_byte_order_mark_is_no_part_of_the_program(verifier: Verifier) -> None:
    assert one(verifier, INC, "\ufeffdef f(x): return x + 1").passed


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
        assert v.stats.judged == 2  # two different programs
        hits = v.cache_hits
        assert v.verify(items) == first
        assert (v.stats.judged, v.cache_hits) == (2, hits + 3)
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


def test_test_code_that_hangs_on_a_result_is_a_timeout(verifier: Verifier) -> None:
    hang = problem(Check(code="def check(c):\n    while c(1): pass", entry_point="f"))
    verdicts = verifier.verify([(hang, "def f(x): return True"), (INC, "def f(x): return x + 1")])
    assert [v.status for v in verdicts] == ["timeout", "passed"]
    busy = problem(Check(code="def check(c):\n    c(1)\n    while True: pass", entry_point="f"))
    assert one(verifier, busy, "def f(x): return True").status == "timeout"


def test_verifying_many_small_programs_is_quick() -> None:
    items = [(INC, f"def f(x):\n    y = x + {i}\n    return y") for i in range(300)]
    with Verifier(workers=2, cache=False) as v:
        verdicts = v.verify(items)
    assert [i for i, verdict in enumerate(verdicts) if verdict.passed] == [1]


def test_rows_are_plain_json(verifier: Verifier) -> None:
    json.dumps(one(verifier, INC, "def f(x): return x").__dict__)
