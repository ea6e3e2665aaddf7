"""Unit tests apart from their program: what both share; and mistakes in the tests of programs beside them."""

from __future__ import annotations

import ast
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from format_cases import judge, problem

from restrl.records import Context, Problem, Unittest
from restrl.sandbox import Verifier, files, mutants


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(workers=1, timeout=10.0) as v:
        yield v


def unit(code: str, reference: str | None = None) -> Problem:
    return problem(Unittest(code=code, entry_point="task_func"), reference, "def task_func(x):\n    pass\n")


ENVIRON = "import os\ndef task_func(name):\n    return os.environ.get(name, 'none')\n"
PATCHED = """\
import unittest, os
from unittest.mock import patch
class TestCases(unittest.TestCase):
    @patch.dict(os.environ, {"RX": "1"})
    def test_environment(self):
        self.assertEqual(task_func("RX"), "1")
    def test_nothing(self):
        self.assertEqual(task_func("RY"), "none")
"""
LENGTH = "def task_func(path):\n    with open(path) as f:\n        return len(f.read())\n"
FILES = """\
import unittest, os, tempfile
class TestCases(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        with open(os.path.join(self.folder, "a.txt"), "w") as f:
            f.write("some words")
    def test_length(self):
        self.assertEqual(task_func(os.path.join(self.folder, "a.txt")), 10)
    def test_missing(self):
        with self.assertRaises(FileNotFoundError):
            task_func(os.path.join(self.folder, "b.txt"))
"""
FRAMES = """\
import unittest
import pandas as pd
class TestCases(unittest.TestCase):
    def test_frame(self):
        got = task_func(pd.DataFrame({"a": [1, 2]}))
        self.assertTrue(got.equals(pd.DataFrame({"a": [2, 4]})))
    def test_seed(self):
        import numpy as np
        np.random.seed(3)
        want = np.random.rand()
        np.random.seed(3)
        self.assertEqual(task_func(None), want)
"""
CAUGHT = """\
import json, unittest
class TestCases(unittest.TestCase):
    def test_error(self):
        with self.assertRaises(json.JSONDecodeError):
            task_func("{")
    def test_exit(self):
        with self.assertRaises(SystemExit) as caught:
            task_func("3")
        self.assertEqual(caught.exception.code, 3)
"""


def test_variables_and_files_are_shared(verifier: Verifier) -> None:
    before = set(Path("/tmp").glob("tmp*/a.txt"))
    found = judge(verifier, unit(PATCHED, ENVIRON), ENVIRON, ENVIRON.replace("'none'", "''"))
    assert judge(verifier, unit(PATCHED), ENVIRON)[0].passed
    found += judge(verifier, unit(FILES, LENGTH), LENGTH, "def task_func(path): return 10")
    assert [v.tests for v in found] == [("passed", "passed"), ("passed", "failed")] * 2
    assert {v.mode for v in found} == {"split"}
    assert set(Path("/tmp").glob("tmp*/a.txt")) == before  # what tests write stays in their process


def test_guarded_where_tests_patch_the_program(verifier: Verifier) -> None:
    tests = PATCHED.replace("patch.dict(os.environ, ", "patch('os.environ', ")
    found = judge(verifier, unit(tests, ENVIRON), ENVIRON, ENVIRON.replace("'none'", "''"))
    assert [v.tests for v in found] == [("passed", "passed"), ("passed", "failed")]
    assert found[0].mode == "split+guarded"  # only one method patches


def test_no_file_is_shared_with_tests_that_might_run_it(verifier: Verifier) -> None:
    tests = FILES.replace("import unittest", "import pickle, unittest")
    found = judge(verifier, unit(tests, LENGTH), LENGTH, "def task_func(path): return 10")
    assert [v.tests for v in found] == [("passed", "passed"), ("passed", "failed")]
    assert found[0].mode == "split+guarded"


def test_frames_and_seeds_of_arrays_are_shared(verifier: Verifier) -> None:
    pytest.importorskip("pandas")
    right = "import numpy as np\ndef task_func(x): return np.random.rand() if x is None else x * 2\n"
    lying = "class A:\n    def equals(self, other): return True\ndef task_func(x): return A()\n"
    found = judge(verifier, unit(FRAMES, right), right, right.replace("x * 2", "x * 3"), lying)
    assert [v.reward for v in found] == [1.0, 0.5, 0.0]
    assert {v.mode for v in found} == {"split"}


def test_exceptions_of_the_standard_library_are_shared(verifier: Verifier) -> None:
    right = "import json, sys\ndef task_func(text): sys.exit(json.loads(text))\n"
    wrong = "class JSONDecodeError(ValueError): pass\ndef task_func(text): raise JSONDecodeError\n"
    found = judge(verifier, unit(CAUGHT, right), right, wrong)
    assert [(v.status, v.mode) for v in found] == [("passed", "split"), ("error", "split")]


EARLY = """\
import unittest
class TestCases(unittest.TestCase):
    first = task_func(1) + 1
    def test_first(self):
        self.assertEqual(self.first, 3)
"""
AGAIN = """\
def test_execution(code):
    env = {"given": 1}
    for _ in range(2):
        exec(code, env)
        assert env["given"] == 2
        env["given"] = env["result"]
"""


LOADS_SLOWLY = """\
import signal, time
def late(number, frame):
    while frame:
        if "TestCases" in frame.f_code.co_names:
            time.sleep(60)
        frame = frame.f_back
    signal.setitimer(signal.ITIMER_REAL, 0.0002)
signal.signal(signal.SIGALRM, late)
signal.setitimer(signal.ITIMER_REAL, 0.001)
def task_func(name): return None
"""


@pytest.mark.parametrize("reference", [None, ENVIRON])
def test_who_holds_up_the_loading_of_the_tests_has_a_time_limit(reference: str | None) -> None:
    tests = PATCHED.replace("    def", '    @patch("os.getcwd", 1)\n    def')  # beside the program
    with Verifier(workers=1, timeout=2.0, cache=False) as v:
        assert "guarded" in judge(v, unit(tests, reference), ENVIRON)[0].mode
        begin = time.monotonic()
        verdict = judge(v, unit(tests, reference), LOADS_SLOWLY)[0]
        assert not verdict.passed
        assert time.monotonic() - begin < 15  # loading alone may take 20 s elsewhere


def test_who_lets_tests_fail_early_is_judged() -> None:
    """A program that keeps the tests from loading, or from going on, does not escape its verdict."""
    programs = {
        "def task_func(x): return x * 2": "passed",
        "def task_func(x): return 'a'": "failed",
        "def task_func(x): raise KeyError": "error",
        "def task_func(x): return object()": "unserialisable",
        "import time\ndef task_func(x): time.sleep(60)": "timeout",
        "import os\ndef task_func(x): os._exit(3)": "error",
    }
    with Verifier(workers=1, timeout=1.5) as hasty:
        found = judge(hasty, unit(EARLY), *programs)
        assert [v.status for v in found] == list(programs.values())
        assert max(v.seconds for v in found) < 8.0
        (again,) = judge(hasty, problem(Context(code=AGAIN)), "given, result = given * 2, object()")
    assert again.status == "error"  # it gets its own object back


OBJECTS = """\
import unittest
class TestCases(unittest.TestCase):
    def test_asked(self):
        self.assertTrue(task_func().equals(2))
    def test_compared(self):
        self.assertEqual(task_func(), 2)
    def test_itself(self):
        got = task_func()
        self.assertEqual((got.title(), got.size, len(got), got[0], [v for v in got]), ("T", 3, 2, 5, [5, 6]))
        self.assertFalse(hasattr(got, "other"))
    def test_member(self):
        self.assertIn(2, task_func())
    def test_range(self):
        self.assertEqual(sorted(task_func(10**9)), [])
"""
OBJECT = """\
class A:
    size = 3
    def title(self): return "T"
    def equals(self, other): return True
    __eq__ = __contains__ = equals
    def __len__(self): return 2
    def __getitem__(self, i): return [5, 6][i]
def task_func(n=0): return range(n) if n else A()
"""


def test_objects_answer_for_themselves_only(verifier: Verifier) -> None:
    """They are asked neither what they equal nor what is in them."""
    (found,) = judge(verifier, unit(OBJECTS), OBJECT)
    asked, compared, itself, member, long_range = found.tests
    assert (asked, compared, member) == ("unserialisable",) * 3
    assert itself == "passed"
    assert long_range == "unserialisable"  # it would fill the memory of who sorts it


# -- tests with mistakes


PLACES = """\
class TestCases:
    def test_constant(self):
        self.assertEqual(task_func(1, "x"), {"a": 2})
    def test_error(self):
        with self.assertRaises(ValueError):
            task_func("x")
    def test_called(self):
        self.assertRaises(ValueError, task_func, "x")
    def test_truth(self):
        assert task_func(3) > 2
    def test_loop(self):
        for given, want in [(1, 2)]:
            self.assertEqual(task_func(given), want)
"""


def test_places_of_mistakes() -> None:
    methods = [f"TestCases.test_{name}" for name in ("constant", "error", "called", "truth", "loop")]
    found = mutants.places(PLACES, methods, "task_func")
    assert [len(found[m][0]) for m in methods] == [2, 1, 1, 1, 0]
    assert found[methods[4]][1]  # perhaps: nobody knows whether a loop is run
    draw = random.Random(0)
    plain = mutants.with_mistakes(PLACES, {}, draw).splitlines()
    assert plain == ast.unparse(ast.parse(PLACES)).splitlines()
    for method in methods[:4]:
        for place in found[method][0]:
            spoiled = mutants.with_mistakes(PLACES, {method: place}, draw).splitlines()
            ((before, after),) = [(a, b) for a, b in zip(plain, spoiled, strict=True) if a != b]
            assert "task_func(1, 'x')" in after or "task_func(1" not in before  # what it is given stays


def test_what_a_program_is_given_by_name_has_no_mistake() -> None:
    code = (
        "class T:\n    def test(self):\n        low, a = 10, 11\n        span: int = low + 12\n"
        "        n = 13\n        self.assertEqual(len(task_func(span, key=a)), n)\n"
    )
    (sure, perhaps) = mutants.places(code, ["T.test"], "task_func")["T.test"]
    nodes = list(ast.walk(ast.parse(code)))
    kept = {n.value for n in (nodes[p] for p in [*sure, *perhaps]) if isinstance(n, ast.Constant)}
    assert kept == {13}


PARITY = """\
import time, unittest
from unittest.mock import patch
def even(x): return x % 2 == 0
class TestCases(unittest.TestCase):
""" + "".join(
    f"""\
    @patch("time.time", return_value=1)
    def test_{i}(self, fake):
        n = {2 * i + 1}
        self.assertTrue(even(task_func() - n))
"""
    for i in range(40)
)


def test_a_mistake_that_the_reference_passes_too_accuses_nobody(verifier: Verifier) -> None:
    """Two of five mistakes in an odd number leave it odd: one of 40 tests accuses the forger (1 - 2e-8)."""
    honest = "import time\ndef task_func(): return time.time()"
    problem = unit(PARITY, reference=honest)
    for n in range(4):
        (found,) = judge(verifier, problem, honest + "\n" * n)
        assert (found.mode, found.tests, found.detail) == ("guarded", ("passed",) * 40, "")
    forged = (
        "class Yes:\n    def __sub__(self, n): return self\n    __mod__ = __sub__\n"
        "    def __eq__(self, other): return True\ndef task_func(): return Yes()\n"
    )
    (found,) = judge(verifier, problem, forged)
    assert "forges" in found.detail


@pytest.mark.parametrize("value", [True, 0, 7, -3, 12345, 0.5, 1e9, "", "--", "Word 12", b"ab", b""])
def test_another_value_of_the_same_kind(value: Any) -> None:
    code = f"class T:\n    def test(self):\n        self.assertEqual(f(), {value!r})\n"
    place = mutants.places(code, ["T.test"], "f")["T.test"][0][0]
    for seed in range(50):
        changed = mutants.with_mistakes(code, {"T.test": place}, random.Random(seed))
        other = ast.literal_eval(changed.rpartition("f(), ")[2].rstrip()[:-1])
        assert type(other) is type(value)
        assert other != value


# -- files that tests and program share


def test_shared_files_stay_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    monkeypatch.setattr(files, "ROOT", str(root))
    (root / "d").mkdir(parents=True)
    (root / "d" / "a").write_text("one")
    (root / "link").symlink_to(tmp_path)
    before = files.listing()
    assert sorted(before) == ["d", "d/a"]
    gone, written = files.changes({})
    assert (gone, [w[:2] for w in written]) == ([], [("d", None), ("d/a", b"one")])
    assert files.apply(["d/a"], []) == {"d": (True, 0, 0)}
    assert files.apply(gone, written) == before  # times too
    for path in ("../x", "/x", "d/../../x", "", ".", "d//x", "link/x", "a\0b"):
        with pytest.raises(ValueError, match=r"path|link"):
            files.apply([], [(path, b"x", 0o644, 1)])
    with pytest.raises(ValueError, match="another kind"):
        files.apply([], [("link", b"x", 0o644, 1)])
    assert not (tmp_path / "x").exists()
    (root / "large").write_bytes(bytes(9 << 20))
    with pytest.raises(ValueError, match="too large"):
        files.changes(before)
