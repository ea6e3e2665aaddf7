"""BigCodeBench and DS-1000: tests that run in a process of their own, or beside the program."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format_cases import judge, load, problem, real_file

from restrl.errors import RestrlError
from restrl.problems import bigcodebench, load_problems
from restrl.records import Context, Problem, Unittest
from restrl.sandbox import Verifier, arrays, plain
from restrl.sandbox.native import core


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(workers=1, timeout=10.0) as v:
        yield v


@pytest.fixture(scope="module")
def hasty() -> Iterator[Verifier]:
    with Verifier(workers=1, timeout=1.5) as v:
        yield v


# -- DS-1000

DS: dict[str, Any] = {
    "prompt": "Sort and double.\nBEGIN SOLUTION\n", "reference_code": "result = [2 * v for v in sorted(xs)]",
    "metadata": {"problem_id": 12, "library": "Numpy"},
    "code_context": """\
import copy
def generate_test_case(i):
    data = {1: [3, 1, 2], 2: [10, -4, 7, 7]}[i]
    return data, [2 * v for v in sorted(copy.deepcopy(data))]
exec_context = '''
xs = test_input
[insert]
'''
def test_execution(solution):
    code = exec_context.replace("[insert]", solution)
    for i in range(2):
        test_input, expected = generate_test_case(i + 1)
        test_env = {"test_input": test_input}
        exec(code, test_env)
        assert test_env["result"] == expected
def test_string(solution):
    assert "while" not in solution
""",
}  # fmt: skip


def test_ds1000(verifier: Verifier, tmp_path: Path) -> None:
    (p,) = load(tmp_path, DS)
    assert (p.task_id, p.source, p.tests) == ("12", "ds1000", Context(code=DS["code_context"]))
    programs = {
        "result = []\nfor v in sorted(xs): result.append(v * 2)": ("passed", "passed"),
        "result = []\nwhile len(result) < len(xs): result.append(2 * sorted(xs)[len(result)])":
            ("passed", "failed"),
        "result = xs": ("failed", "passed"),
        "pass": ("failed", "passed"),  # KeyError: there is no result
        "raise ValueError('x')": ("error", "passed"),
        "result = object()": ("unserialisable", "passed"),
        "class A:\n    def __eq__(self, o): return True\nresult = A()": ("unserialisable", "passed"),
        "import os\nos._exit(0)": ("crashed",),
        "xs.clear()\nresult = []": ("failed", "passed"),
        "import sys\nresult = [f.f_globals for f in sys._current_frames().values()]\n"
        "result = [g['generate_test_case'](1) for g in result if 'generate_test_case' in g]":
            ("failed", "passed"),
    }  # fmt: skip
    for verdict, wanted in zip(judge(verifier, p, *programs), programs.values(), strict=True):
        assert verdict.tests[: len(wanted)] == wanted, verdict
        assert verdict.mode == "harness"


FRAMES = """\
import numpy as np, pandas as pd
def test_execution(code):
    df = pd.DataFrame({"a": [1, 2, 2], "b": ["x", "y", None]}, index=[3, 4, 5])
    env = {"df": df, "x": np.arange(4.0).reshape(2, 2), "kept": [np.float32(2)]}
    exec(code, env)
    pd.testing.assert_frame_equal(env["df"], df.groupby("a").count())
    np.testing.assert_array_equal(env["x"], [[0, 2], [1, 3]])
    assert env["x"].dtype == float
"""


def test_ds1000_with_arrays_and_frames(verifier: Verifier) -> None:
    pytest.importorskip("pandas")
    if Path(sys.prefix).resolve().is_relative_to("/tmp"):
        pytest.skip("packages below /tmp are hidden from programs that get a /tmp of their own")
    right, wrong = judge(
        verifier,
        problem(Context(code=FRAMES)),
        "df = df.groupby('a').count()\nx = x.T",
        "x = x.T.astype(int)",
    )
    assert (right.status, right.mode) == ("passed", "harness"), right
    assert wrong.status == "failed"


@pytest.mark.parametrize(
    "value",
    [
        "np.array(['a', 'bc'])",
        "np.array([1, 'x', None], dtype=object)",
        "np.zeros((0, 3))",
        "np.arange(6)[::2]",
        "np.array(['2020-01-01'], dtype='M8[D]')",
        "np.float32(2)",
        "{'a': [np.ones(2), (3,)]}",
        "np.array([[True]])",
    ],
)
def test_arrays_as_plain_data(value: str) -> None:
    before = eval(value, {"np": np})
    after = arrays.unpack(core.decode(core.encode(arrays.pack(before), plain.export), plain.restore))
    np.testing.assert_equal(after, before)
    assert type(after) is type(before)
    if isinstance(before, np.ndarray):
        assert after.dtype == before.dtype


def test_frames_as_plain_data() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({
        "a": [1, 2], "b": ["x", None], "c": [1.5, float("nan")],
        "d": pd.to_datetime(["2020-01-01", "2021-02-03"]),
        "e": pd.Categorical(["u", "v"]), "f": pd.array([1, None], dtype="Int64"),
    }, index=["r", "s"])  # fmt: skip
    frames = [frame, frame.iloc[:0], frame.set_index(["a", "b"]), frame.reset_index(), pd.DataFrame()]
    frames += [frame.groupby("a").sum(numeric_only=True), pd.DataFrame({("x", "y"): [1]})]
    for before in frames:
        after = arrays.unpack(core.decode(core.encode(arrays.pack(before), plain.export), plain.restore))
        pd.testing.assert_frame_equal(after, before)


@pytest.mark.parametrize(
    "described",
    [("array", "|O8", (1,), b"01234567"), ("array", "<f8", (9,), b"01234567"), ("array", "<f8", (1,), "text"),
     ("array", "|V8", (1,), b"01234567"), ("array", "<f8,<f8", (1,), b"0" * 16), ("what",)],
)  # fmt: skip
def test_what_describes_no_array(described: tuple[Any, ...]) -> None:
    pytest.importorskip("pandas")
    with pytest.raises((ValueError, TypeError)):
        arrays.unpack(("restrl:" + described[0], *described[1:]))


def test_ds1000_that_cannot_be_judged(verifier: Verifier, tmp_path: Path) -> None:
    contexts = {
        "import no_such_package\ndef test_execution(c): pass": "the tests do not load: ModuleNotFoundError",
        "def test_execution(c): exec(c, {'x': object()})": "what the tests give cannot be sent",
        "def test_execution(c):\n    e = {}\n    exec(c, e)\n    assert e['x'] == 4": "reference .* not pass",
    }
    for code, message in contexts.items():
        row = {**DS, "code_context": code, "reference_code": "x = 3"}
        (verdict,) = judge(verifier, load(tmp_path, row)[0], "x = 3")
        assert (verdict.status, verdict.reward) == ("infrastructure_error", None)
        assert re.search(message, verdict.detail), verdict.detail
    with pytest.raises(RestrlError, match="a problem without tests cannot be verified"):
        judge(verifier, problem(Context(code="x = 3")), "x = 3")


# -- BigCodeBench

COUNT = "import collections\ndef task_func(text):\n    return dict(collections.Counter(text.split()))\n"
TESTS = """\
import unittest
class TestCases(unittest.TestCase):
    def test_two(self):
        got = task_func("a b a")
        self.assertEqual(got, {"a": 2, "b": 1})
    def test_none(self):
        self.assertEqual(task_func(""), {})
    def test_type(self):
        with self.assertRaises(AttributeError):
            task_func(3)
"""


def unit(code: str, reference: str | None = None, prefix: str = "def task_func(x):\n    pass\n") -> Problem:
    return problem(Unittest(code=code, entry_point="task_func"), reference, prefix)


def test_bigcodebench_rows(tmp_path: Path) -> None:
    row = {
        "task_id": "BigCodeBench/3", "complete_prompt": 'def task_func(x):\n    """One more."""\n',
        "libs": "['os']",
        "instruct_prompt": "Add one.", "canonical_solution": "    return x + 1\n", "entry_point": "task_func",
        "code_prompt": "def task_func(x):\n", "test": TESTS, "doc_struct": "{}",
    }  # fmt: skip
    (p,) = load(tmp_path, row)
    assert (p.mode, p.prefix, p.prompt) == ("complete", row["complete_prompt"], row["complete_prompt"])
    assert p.reference == row["complete_prompt"] + row["canonical_solution"]
    assert p.meta == {"instruct_prompt": "Add one.", "libs": ["os"]}
    (p,) = load(tmp_path, {k: v for k, v in row.items() if k != "complete_prompt"})
    assert (p.mode, p.prompt, p.prefix) == ("instruct", "Add one.", "def task_func(x):\n")
    with pytest.raises(RestrlError, match="key 'libs' must be a list of names"):
        load(tmp_path, {**row, "libs": "os"})
    assert row.keys() >= bigcodebench.KEYS


def test_split_where_the_reference_passes_split(verifier: Verifier) -> None:
    programs = {
        COUNT: ("passed",) * 3,
        "def task_func(text): return {}": ("passed", "failed", "failed"),
        "def task_func(text): return {w: text.count(w) for w in text.split()}": ("passed",) * 3,
        "def task_func(text): raise KeyError(1)": ("error",) * 3,
        "def task_func(text): return object()": ("unserialisable", "unserialisable", "failed"),
        "class A(dict):\n    def __eq__(self, o): return True\ndef task_func(text): return A(z=1)":
            ("failed",) * 3,
        "def other(): pass": ("error",) * 3,
        "def task_func(": ("error",) * 3,
        "import os\ndef task_func(text): os._exit(0)": ("crashed",) * 3,
        "import unittest\nunittest.TestCase.assertEqual = lambda *a: 0\ndef task_func(t): return 0":
            ("failed",) * 3,
    }  # fmt: skip
    for verdict, wanted in zip(
        judge(verifier, unit(TESTS, COUNT), *programs), programs.values(), strict=True
    ):
        assert verdict.tests == wanted, verdict
        assert verdict.mode == "split"
    assert judge(verifier, unit(TESTS), COUNT)[0].mode == "split"  # without a reference too


def test_what_is_no_pass(verifier: Verifier) -> None:
    code = """\
import unittest, os
from unittest.mock import patch
class TestCases(unittest.TestCase):
    def test_skips(self):
        if task_func(1) != 1: self.skipTest("no")
    def test_sub(self):
        for i in range(3):
            with self.subTest(i=i): self.assertEqual(task_func(i), i)
    @unittest.expectedFailure
    def test_turned(self): self.assertNotEqual(task_func(1), 1)
"""
    for tests in (
        code,
        code.replace("def test_s", "@patch('os.path.sep', '')\n    def test_s").replace(
            "(self):", "(self, *_):"
        ),
    ):
        right, wrong = judge(
            verifier, unit(tests), "def task_func(x): return x", "def task_func(x): return 9 - x"
        )
        assert right.tests == ("passed", "passed", "failed")  # an expected failure is no pass
        assert wrong.tests == ("failed", "failed", "failed")


def test_references_that_do_not_pass(verifier: Verifier) -> None:
    skipping = TESTS.replace("    def test_two", "    @unittest.skip('not here')\n    def test_two")
    for tests, reference, message in [
        (TESTS, "def task_func(x): return 0", "does not pass TestCases.test_none: failed AssertionError"),
        (skipping, COUNT, "does not pass TestCases.test_two: failed skipped: not here"),
        ("import no_such_package\n" + TESTS, COUNT, "the tests do not load: ModuleNotFoundError"),
    ]:
        (verdict,) = judge(verifier, unit(tests, reference), COUNT)
        assert (verdict.status, verdict.reward) == ("infrastructure_error", None)
        assert message in verdict.detail
    with pytest.raises(RestrlError, match="the test code is no Python"):
        judge(verifier, unit("class"), COUNT)
    with pytest.raises(RestrlError, match="a problem without tests cannot be verified"):
        judge(verifier, unit("import unittest\nclass A(unittest.TestCase): pass"), COUNT)


def test_a_hanging_method_ends_and_the_rest_goes_on(hasty: Verifier) -> None:
    hangs = "import time\n" + COUNT.replace("    return", "    if not text: time.sleep(60)\n    return")
    for tests in (TESTS, TESTS.replace("def test_n", "def setUp(self): self.mock = 1\n    def test_n")):
        (verdict,) = judge(hasty, unit(tests, COUNT), hangs)
        assert verdict.tests == ("timeout", "passed", "passed")
        assert verdict.mode == ("split" if tests is TESTS else "guarded")
        assert verdict.seconds < 30.0  # it would sleep for 60


# Programs that attack tests they share a process with: none of them solves the task.
IMPORTS = "import unittest, os\nfrom unittest.mock import patch\n"
GUARDED = TESTS.replace("import unittest\n", IMPORTS).replace(
    "    def ", "    @patch('os.sep', '/')\n    def "
)
FRAME = "import sys\ndef task_func(text):\n    me = sys._getframe(1).f_locals['self']\n"
BODY = (
    "    body = b't' + struct.pack('I', len(parts))\n"
    "    for p in parts: body += b's' + struct.pack('I', len(p)) + p\n"
    "    os.write(3, struct.pack('I', len(body)) + body)\n"
)
WRONG = "def task_func(text): return None\n"
BREAKS: dict[str, str] = {
    "assert methods": "import unittest\nfor n in dir(unittest.TestCase):\n"
    "    if n.startswith('assert'): setattr(unittest.TestCase, n, lambda *a, **k: None)\n" + WRONG,
    "run": "import unittest\ndef run(self, result=None):\n    result.addSuccess(self)\n    return result\n"
    "unittest.TestCase.run = unittest.TestCase.__call__ = run\n" + WRONG,
    "expected failures": "import unittest\nunittest.TestCase.__unittest_expecting_failure__ = True\n" + WRONG,
    "exit": "import os\ndef task_func(text): os._exit(0)\n",
    "exit at import": "import os\n" + WRONG + "os._exit(0)\n",
    "builtins": "import builtins\nbuiltins.isinstance = lambda *a: True\n"
    "builtins.AssertionError = ValueError\n" + WRONG,
    "a context manager that swallows": "import contextlib\n"
    "contextlib._GeneratorContextManager.__exit__ = lambda *a: True\n" + WRONG,
    "the code of a function": "import contextlib\ndef f(self, *a): return True\n"
    "contextlib._GeneratorContextManager.__exit__.__code__ = f.__code__\n" + WRONG,
    "the module at hand": "import gc, unittest\nfor m in gc.get_objects():\n"
    "    if type(m) is type and m.__name__ == 'TestCase': m.assertEqual = lambda *a, **k: None\n" + WRONG,
    "the result class": "import unittest\n"
    "unittest.TestResult.addFailure = unittest.TestResult.addSuccess\n" + WRONG,
    "the test at run time": FRAME
    + "    me.assertEqual = lambda *a, **k: None\n    me.assertRaises = me.subTest\n",
    "the class at run time": FRAME + "    type(me).assertEqual = lambda *a, **k: None\n",
    "unittest at run time": FRAME + "    type(me).__mro__[1].assertEqual = lambda *a, **k: None\n",
    "the other tests": FRAME + "    type(me).test_two = type(me).test_type = type(me).setUp\n",
    "a forged report": "import os, struct\ndef say(*parts):\n" + BODY
    + "def task_func(text):\n    say(b'outcome', b'passed', b'', b'passed', b'0' * 32)\n",
    "a forged report at import": "import os, struct\n"
    "for parts in [(b'loaded',), (b'ready',)] + [(b'outcome', b'passed', b'')] * 3:\n" + BODY + WRONG,
    "a thread": "import threading, time\n"
    "threading.Thread(target=time.sleep, args=(30,), daemon=True).start()\n" + COUNT,
    "a trace": "import sys\ndef trace(frame, event, arg): return trace\nsys.settrace(trace)\n" + WRONG,
    "the importer": "import sys\nclass F:\n    def find_spec(self, name, *a): raise SystemExit\n"
    "sys.meta_path.insert(0, F())\n" + WRONG,
    "other modules": "import sys\nsys.modules['os'] = sys.modules['unittest.mock'] = sys\n" + WRONG,
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_programs_beside_the_tests(verifier: Verifier, name: str) -> None:
    wrong, right = judge(verifier, unit(GUARDED, COUNT), BREAKS[name], COUNT)
    assert wrong.mode == right.mode == "guarded"
    assert wrong.reward == 0.0, wrong
    assert right.passed, right


def test_the_control_run_sees_what_the_guard_does_not(verifier: Verifier) -> None:
    """A program that replaces what the tests compare with: they pass for any implementation."""
    program = (
        "import sys\nclass Same:\n    def __eq__(self, o): return True\n    __hash__ = None\n"
        "def task_func(text):\n    sys._getframe(1).f_globals['want'] = Same()\n    return None\n"
    )
    tests = IMPORTS + (
        "want = {'a': 1}\nclass TestCases(unittest.TestCase):\n    @patch('os.sep', '/')\n"
        "    def test_one(self):\n        got = task_func('a')\n        assert got == want\n"
    )
    cheat, right = judge(verifier, unit(tests, COUNT), program, COUNT)
    assert cheat.tests == ("failed",)
    assert "a wrong implementation passes" in cheat.detail
    assert right.passed


# -- the real file


SLOW_OR_UNABLE = {0, 14, 16, 18, 176}  # docs/verifier.md says why


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_bigcodebench_with_the_standard_library() -> None:
    path = real_file("bigcodebench/BigCodeBench.part.jsonl.gz")
    problems = []
    for p in load_problems(path):
        assert isinstance(p.tests, Unittest)
        tree = ast.parse(f"{p.reference}\n{p.tests.code}")
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imported |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        used = {name.partition(".")[0] for name in imported} | set(p.meta["libs"])
        # 220 draws slowly on a window
        if used <= sys.stdlib_module_names and int(p.task_id.partition("/")[2]) not in {*SLOW_OR_UNABLE, 220}:
            problems.append(p)
    assert len(problems) == 20
    with Verifier(workers=1) as v:
        verdicts = v.verify([(p, p.reference or "") for p in problems])
        assert [(p.task_id, x.detail) for p, x in zip(problems, verdicts, strict=True) if not x.passed] == []
        stubs = v.verify([(p, p.prefix + "    return object()\n") for p in problems])
    assert {x.mode for x in verdicts} == {"split", "guarded", "split+guarded"}
    assert not any(x.passed for x in stubs)
