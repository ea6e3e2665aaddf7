"""EvalPlus, MBPP+, BigCodeBench, DS-1000, LiveCodeBench: what their rows become, how they are judged."""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import pickle
import re
import sys
import zlib
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from restrl.errors import RestrlError
from restrl.problems import bigcodebench, livecodebench, load_problems
from restrl.problems.typed import typed_arguments
from restrl.records import Calls, Context, Inputs, Problem, Stdio, Tests, Unittest
from restrl.sandbox import Verdict, Verifier, arrays, plain
from restrl.sandbox.compare import same_result
from restrl.sandbox.native import core
from restrl.stages.validate import validate_file
from restrl.stages.verify import verify_file

_DATA = Path(os.environ.get("RESTRL_SHARED_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(workers=1, timeout=10.0) as v:
        yield v


@pytest.fixture(scope="module")
def hasty() -> Iterator[Verifier]:
    with Verifier(workers=1, timeout=1.5) as v:
        yield v


def load(tmp_path: Path, *rows: dict[str, Any], format: str = "auto") -> list[Problem]:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_problems(path, format)


def problem(tests: Tests, reference: str | None = None, prefix: str = "") -> Problem:
    fields: dict[str, Any] = {"task_id": "t", "source": "test", "prompt": "", "mode": "instruct"}
    return Problem(**fields, prefix=prefix, tests=tests, reference=reference)


def judge(verifier: Verifier, tests: Problem, *programs: str) -> list[Verdict]:
    return verifier.verify([(tests, program) for program in programs])


# -- EvalPlus

HALF: dict[str, Any] = {
    "task_id": "HumanEval/7", "prompt": 'def half(x):\n    """Half."""\n', "entry_point": "half",
    "contract": '\n    assert x >= 0, "invalid inputs" # $_CONTRACT_$\n',
    "canonical_solution": "    return x / 2\n",
    "base_input": [[1], [3]], "plus_input": [[0.1], [5]], "atol": 0,
}  # fmt: skip
PAIR: dict[str, Any] = {
    "task_id": "Mbpp/7", "prompt": '"""\nAdd a pair.\nassert add((1, 2)) == 3\n"""\n', "entry_point": "add",
    "contract": '  assert isinstance(pair, tuple), "invalid inputs"\n',
    "canonical_solution": "def add(pair):\n    return sum(pair)\n",
    "base_input": [[[1, 2]]], "plus_input": [[[3, 4]]], "atol": 0,
}  # fmt: skip


def test_evalplus_rows(tmp_path: Path) -> None:
    human, mbpp = load(tmp_path, HALF, PAIR)
    assert (human.source, human.mode, human.prefix) == ("humanevalplus", "complete", HALF["prompt"])
    assert isinstance(human.tests, Inputs)
    assert human.tests.inputs == [[1], [3], [0.1], [5]]
    assert human.tests.base == 2
    assert human.tests.gold == human.reference == HALF["prompt"] + HALF["canonical_solution"]
    names: dict[str, Any] = {}
    exec(human.tests.contract, names)
    with pytest.raises(AssertionError):
        names["contract"](-1)
    assert (mbpp.source, mbpp.mode, mbpp.prefix) == ("mbppplus", "instruct", "")
    assert mbpp.prompt == "Add a pair.\nassert add((1, 2)) == 3\n"
    assert isinstance(mbpp.tests, Inputs)
    assert mbpp.tests.examples == ["add((1, 2))"]
    assert Problem.model_validate_json(mbpp.model_dump_json()) == mbpp


def test_evalplus_rules_of_its_own_are_left_out_and_told(tmp_path: Path) -> None:
    own = {**PAIR, "task_id": "Mbpp/295", "entry_point": "sum_div"}
    with pytest.warns(UserWarning, match=r"jsonl:1: left out: Mbpp/295 \(sum_div\) has rules of its own"):
        assert [p.task_id for p in load(tmp_path, own, PAIR)] == ["Mbpp/7"]
    human = {**HALF, "entry_point": "find_zero", "canonical_solution": "def find_zero(xs): pass"}
    rules = {"find_zero": "root", "Diff": "set", "check_str": "not_none", "add": "equal"}
    for entry_point, rule in rules.items():
        row = human if entry_point == "find_zero" else {**PAIR, "entry_point": entry_point, "contract": ""}
        (p,) = load(tmp_path, row)
        assert isinstance(p.tests, Inputs)
        assert p.tests.compare == rule


def test_evalplus_verdicts_by_input(verifier: Verifier, tmp_path: Path) -> None:
    human, mbpp = load(tmp_path, HALF, PAIR)
    right, close, wrong, typed, missing = judge(
        verifier,
        human,
        "def half(x): return x * 0.5",
        "def half(x): return x / 2 + 4e-7",
        "def half(x): return x / 2 if x < 4 else 2",
        "def half(x): return str(x / 2)",
        "def other(x): return x",
    )
    assert right.passed
    assert right.mode == "function"
    assert close.passed  # floats to within 1e-6
    assert wrong.tests == ("passed", "passed", "passed", "failed")
    assert typed.tests == ("failed",) * 4
    assert missing.status == "error"
    (tupled,) = judge(verifier, mbpp, "def add(pair): return pair[0] + pair[1] if type(pair) is tuple else 0")
    assert tupled.passed


def test_the_gold_solution_says_what_cannot_be_judged(hasty: Verifier, tmp_path: Path) -> None:
    def detail(row: dict[str, Any]) -> str:
        (p,) = load(tmp_path, row)
        (verdict,) = judge(hasty, p, p.reference or "")
        assert (verdict.status, verdict.reward, verdict.tests) == ("infrastructure_error", None, ())
        return verdict.detail

    assert "input 3 breaks the contract" in detail({**HALF, "plus_input": [[0.1], [-5]]})
    assert "the gold solution fails at input 0" in detail({**HALF, "canonical_solution": "    return y\n"})
    assert "stops at input 0: time limit" in detail({**HALF, "canonical_solution": "    while True: pass\n"})
    assert "is no plain data" in detail({**HALF, "canonical_solution": "    return open\n"})
    (p,) = load(tmp_path, {**HALF, "base_input": [[1], [-3]]})  # HumanEval/116 has such a one
    assert judge(hasty, p, p.reference or "")[0].passed
    assert judge(hasty, p, "def half(x): return x")[0].reward == 0.0


def test_the_gold_solution_runs_once_per_judge(tmp_path: Path) -> None:
    slow = {
        **HALF,
        "canonical_solution": "    import time\n    time.sleep(0.2)\n    return x / 2\n",
        "contract": "",
    }
    (p,) = load(tmp_path, slow)
    with Verifier(workers=1, cache=False) as v:
        first, *others = judge(v, p, *["def half(x): return x / 2"] * 6)
    assert first.seconds > 0.8  # four inputs
    assert min(other.seconds for other in others) < 0.4
    assert all(verdict.passed for verdict in (first, *others))


@pytest.mark.parametrize(
    ("got", "want", "rule", "atol", "same"),
    [
        (1.0, 1.0000001, "equal", 0, True),
        (1.0, 1.00001, "equal", 0, False),
        (1.0, 1.00001, "equal", 1e-4, True),
        ([1.0, 2.0], [1.0, 2.0000001], "equal", 0, True),
        ((1.0, 2.0), [1.0, 2.0000001], "equal", 0, False),
        ([1.0], [1.0000001, 2.0], "equal", 0, False),
        (["a", 1.0], ["a", 1.0000001], "equal", 0, False),  # floats among others are compared exactly
        (["a", 1.0], ["a", 1.0000001], "equal", 1e-6, True),
        (float("nan"), float("nan"), "equal", 0, True),
        (float("nan"), 1.0, "equal", 0, False),
        (float("inf"), 1e308, "equal", 1.0, False),
        (2, 2.0, "equal", 0, True),
        ("2", 2.0, "equal", 1.0, False),
        (1, 2, "equal", 0, False),
        ([2, 1, 1], (1, 2), "set", 0, True),
        ([2, 1, 3], (1, 2), "set", 0, False),
        (3, (1, 2), "set", 0, False),
        ("found", True, "not_none", 0, True),
        (None, True, "not_none", 0, False),
        (False, None, "not_none", 0, True),
        (-0.5, None, "root", 1e-4, True),
        (-0.4, None, "root", 1e-4, False),
        (float("nan"), None, "root", 1e-4, False),
        (True, None, "root", 9.0, False),
        ("-0.5", None, "root", 1e-4, False),
    ],
)
def test_comparison_as_evalplus_does(got: Any, want: Any, rule: str, atol: float, same: bool) -> None:
    assert same_result(got, want, rule, atol, [[1, 2]]) is same


def test_types_come_back_from_examples() -> None:
    def typed(arguments: list[Any], *examples: str) -> list[Any]:
        return typed_arguments([arguments], examples)[0]

    assert typed([[1, 2], [3]], "f((1, 2), [3])") == [(1, 2), [3]]
    assert typed([[[1, 2], [3, 4]]], "f([(1, 2)])") == [[(1, 2), (3, 4)]]
    assert typed([[["a", 1]]], "f((('b', 2),))") == [((("a", 1)),)]
    assert typed([[[1], 2]], "f(([1], 2))") == [([1], 2)]
    assert typed([[1, [2]]], "f([1, (2,)])") == [[1, (2,)]]
    assert typed([[1, 1, 2]], "f({1, 2})") == [{1, 2}]
    assert typed(["1j", "2"], "f(0j, 1)") == [1j, 2]
    assert typed([{"1": [2]}], "f({1: (2,)})") == [{1: (2,)}]
    assert typed([[1]], "f((1,))", "f([1])") == [[1]]  # they disagree
    assert typed([[1]], "f(g(1))") == [[1]]
    assert typed([[[1]]], "f({1})") == [[[1]]]  # a list is no element of a set


def test_mbppplus_of_the_hub(verifier: Verifier, tmp_path: Path) -> None:
    row: dict[str, Any] = {
        "task_id": 7, "prompt": "Double.", "code": "def double(x):\n    return 2 * x", "source_file": "x",
        "test_imports": ["import math"], "test_list": ["assert double(1) == 2"],
        "test": "inputs = [[1], [2]]\nresults = [2, 4]\ndef assertion(out, exp):\n    assert out == exp\n"
                "for inp, exp in zip(inputs, results):\n    assertion(double(*inp), exp)\n",
    }  # fmt: skip
    (p,) = load(tmp_path, row)
    assert p.source == "mbppplus"
    assert row["test"] not in p.prompt
    right, partly = judge(verifier, p, "def double(x): return x + x", "def double(x): return 2")
    assert right.passed
    assert not partly.passed  # test_list alone would pass it
    with pytest.raises(RestrlError, match=r":1: key 'test' is no Python"):
        load(tmp_path, {**row, "test": "def"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_input": [1]}, "key 'base_input' must be a list of argument lists"),
        ({"base_input": [], "plus_input": []}, "key 'base_input' holds no input"),
        ({"contract": "    assert (", }, "key 'contract' is no Python"),
        ({"entry_point": "other"}, "key 'entry_point' names 'other', which"),
        ({"canonical_solution": "  return ("}, "key 'canonical_solution' is no Python"),
        ({"canonical_solution": None}, "key 'canonical_solution' is missing"),
    ],
)  # fmt: skip
def test_evalplus_damage_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RestrlError, match=r"jsonl:1: " + message):
        load(tmp_path, {**HALF, **change})


def test_self_contained_humanevalplus_is_humaneval(verifier: Verifier, tmp_path: Path) -> None:
    test = (
        "import numpy as np\ndef check(candidate):\n    inputs, results = [[1], [3]], [0.5, 1.5]\n"
        "    for inp, exp in zip(inputs, results):\n        assert np.allclose(candidate(*inp), exp)\n"
    )
    keys = ("task_id", "prompt", "canonical_solution", "entry_point")
    (p,) = load(tmp_path, {**{key: HALF[key] for key in keys}, "test": test})
    assert p.source == "humaneval"
    right, wrong = judge(verifier, p, p.reference or "", "def half(x): return x")
    assert right.passed
    assert not wrong.passed


# -- LiveCodeBench

STDIN: dict[str, Any] = {
    "question_id": "1", "question_title": "Add", "question_content": "Add up.", "platform": "codeforces",
    "contest_date": "2024-05-01T00:00:00", "starter_code": "", "difficulty": "easy",
    "public_test_cases": [{"input": "1 2\n", "output": "3.0\n", "testtype": "stdin"}],
    "private_test_cases": json.dumps([{"input": "2 2\n", "output": "4\n", "testtype": "stdin"}]),
    "metadata": "{}",
}  # fmt: skip


def packed(value: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def functional(count: int = 2) -> dict[str, Any]:
    cases = [
        {"input": f"[{i}, 2]\n3", "output": f"[{i + 3}, 5]", "testtype": "functional"} for i in range(count)
    ]
    return {
        **STDIN, "question_id": "2",
        "starter_code": "class Solution:\n    def add(self, xs: List[int], y):\n        ",
        "public_test_cases": json.dumps(cases[:1]), "private_test_cases": packed(json.dumps(cases[1:])),
        "metadata": json.dumps({"func_name": "add"}), "contest_date": "2024-06-01T00:00:00",
    }  # fmt: skip


def test_livecodebench_rows(verifier: Verifier, tmp_path: Path) -> None:
    stdin, calls = load(tmp_path, STDIN, functional())
    assert stdin.tests == Stdio(inputs=["1 2\n", "2 2\n"], outputs=["3.0\n", "4\n"])
    assert calls.tests == Calls(fn_name="add", args=[[[0, 2], 3], [[1, 2], 3]], expected=[[3, 5], [4, 5]])
    assert stdin.meta["contest_date"] == "2024-05-01"
    assert calls.prefix == "class Solution:\n    def add(self, xs: List[int], y):\n"
    number, text, near = judge(
        verifier,
        stdin,
        "print(reduce(operator.add, map(int, sys.stdin.readline().split())))",  # the usual names are there
        "print('three')",
        "print(sum(map(int, input().split())) + 1e-9)",
    )
    assert number.tests == ("passed", "passed")  # 3 and 3.0 are one decimal
    assert text.reward == near.reward == 0.0
    body = calls.prefix + "        return tuple(x + y for x in xs)\n"
    assert judge(verifier, calls, body)[0].passed  # List is imported, and a tuple equals a list


def test_livecodebench_by_date(tmp_path: Path) -> None:
    rows = [STDIN, functional(), {**STDIN, "question_id": "3", "contest_date": "2024-07-01"}]
    load(tmp_path, *rows)

    def ids(**window: date) -> list[str]:
        return [p.task_id for p in load_problems(tmp_path / "problems.jsonl", **window)]  # type: ignore[arg-type]

    assert ids() == ["1", "2", "3"]
    assert ids(since=date(2024, 5, 2)) == ["2", "3"]
    assert ids(since=date(2024, 5, 1), until=date(2024, 6, 1)) == ["1", "2"]
    with pytest.raises(RestrlError, match="no contest in it was held from 2025-01-01"):
        ids(since=date(2025, 1, 1))
    load(tmp_path, {k: v for k, v in STDIN.items() if k != "contest_date"})
    with pytest.raises(RestrlError, match="1 has no contest_date"):
        ids(until=date(2025, 1, 1))


def test_verify_by_date(tmp_path: Path) -> None:
    load(tmp_path, STDIN, {**STDIN, "question_id": "3", "contest_date": "2024-07-01"})
    samples, out = tmp_path / "samples.jsonl", tmp_path / "out.jsonl"
    rows = [{"task_id": i, "solution": "print(sum(map(int, input().split())))"} for i in ("1", "3", "1")]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def verified(**window: date) -> list[tuple[str, int, bool, str]]:
        verify_file(tmp_path / "problems.jsonl", samples, out, workers=1, quiet=True, **window)  # type: ignore[arg-type]
        found = [json.loads(line) for line in out.read_text().splitlines()]
        return [(r["task_id"], r["sample"], r["passed"], r["mode"]) for r in found]

    old = [("1", 0, True, "stdio"), ("1", 1, True, "stdio")]
    assert verified() == [old[0], ("3", 0, True, "stdio"), old[1]]
    assert verified(until=date(2024, 6, 1)) == old
    assert verified(since=date(2024, 6, 1)) == [("3", 0, True, "stdio")]
    samples.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(RestrlError, match="no sample is of a problem whose contest was held then"):
        verified(since=date(2024, 6, 1))


_RUN = f"/tmp/restrl-pickle-was-run-{os.getpid()}"


class _Evil:
    def __reduce__(self) -> Any:
        return os.system, (f"touch {_RUN}",)


def _opcodes(*parts: bytes) -> str:
    return base64.b64encode(zlib.compress(b"".join(parts))).decode()


@pytest.mark.parametrize(
    ("private", "message"),
    [
        (packed(_Evil()), "holds a pickle that is refused"),
        (packed(["a list"]), "holds a pickle that is refused: it is more than a text"),
        (packed(3), "holds a pickle that is refused: it is more than a text"),
        (_opcodes(b"\x80\x02cos\nsystem\n."), "refused: it is more than a text"),
        (_opcodes(b"\x80\x04X\x02\x00\x00\x00[]r\xff\xff\xff\x7f."), "refused"),  # a memo of 2^31 places
        (_opcodes(b"\x80\x05\x96\x00\x00\x00\x00\x00\x00\x00\x7f."), "refused"),  # a bytearray of 2^63 bytes
        (_opcodes(b"\x80\x04X\x02\x00\x00"), "refused"),
        (packed("no json"), "holds neither JSON nor packed JSON"),
        (packed("{}"), "must be a list of tests"),
        ("%%%", "is neither JSON nor base64 of zlib"),
        (base64.b64encode(b"no zlib").decode(), "is neither JSON nor base64 of zlib"),
        (packed("[]")[:16], "is neither JSON nor base64 of zlib|is cut off"),
        (packed(json.dumps([{"input": 1, "output": "", "testtype": "stdin"}])), "must be a list of tests"),
    ],
)
def test_private_tests_of_a_stranger(tmp_path: Path, private: str, message: str) -> None:
    with pytest.raises(RestrlError, match=r"jsonl:1: key 'private_test_cases' .*(?:" + message + ")"):
        load(tmp_path, {**STDIN, "private_test_cases": private})
    assert not os.path.exists(_RUN)


def test_a_pickle_names_no_class() -> None:
    for value in (_Evil(), date(2024, 1, 1), print):
        with pytest.raises(pickle.UnpicklingError, match="it names "):
            livecodebench.StringUnpickler(io.BytesIO(pickle.dumps(value))).load()


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(livecodebench, "MAX_UNPACKED", 1 << 20)
    bomb = packed(" " * (8 << 20))
    with pytest.raises(RestrlError, match="key 'private_test_cases' unpacks to more than 1 MiB"):
        load(tmp_path, {**STDIN, "private_test_cases": bomb})
    monkeypatch.setattr(livecodebench, "MAX_PACKED", 1 << 10)
    with pytest.raises(RestrlError, match="key 'private_test_cases' is packed text of more than"):
        load(tmp_path, {**STDIN, "private_test_cases": bomb})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": "{}"}, "key 'metadata' has no 'func_name'"),
        ({"metadata": {"func_name": "a.b"}}, "key 'metadata' has no 'func_name'"),
        (
            {"public_test_cases": [{"input": "{", "output": "1", "testtype": "functional"}]},
            "a value that is no JSON",
        ),
        ({"public_test_cases": STDIN["public_test_cases"]}, "has tests of the types functional, stdin"),
        ({"contest_date": "soon"}, "key 'contest_date' is no ISO date"),
    ],
)  # fmt: skip
def test_livecodebench_damage_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RestrlError, match=r"jsonl:1: .*" + message):
        load(tmp_path, {**functional(), **change})


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
ENVIRON = "import os\ndef task_func(name):\n    return os.environ.get(name, 'none')\n"
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
LENGTH = "def task_func(path):\n    with open(path) as f:\n        return len(f.read())\n"


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


def test_guarded_where_tests_patch_or_share_files(verifier: Verifier) -> None:
    before = set(Path("/tmp").glob("tmp*/a.txt"))
    env = judge(verifier, unit(PATCHED, ENVIRON), ENVIRON, ENVIRON.replace("'none'", "''"))
    assert [v.tests for v in env] == [("passed", "passed"), ("passed", "failed")]
    assert env[0].mode == "split+guarded"  # only one method patches
    assert judge(verifier, unit(PATCHED), ENVIRON)[0].passed
    files = judge(verifier, unit(FILES, LENGTH), LENGTH, "def task_func(path): return 10")
    assert [v.tests for v in files] == [("passed", "passed"), ("passed", "failed")]
    assert {v.mode for v in files} == {"split+guarded"}
    assert set(Path("/tmp").glob("tmp*/a.txt")) == before  # what tests write stays in their process


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
    "    def ", "    @patch.dict(os.environ, {})\n    def "
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
        "want = {'a': 1}\nclass TestCases(unittest.TestCase):\n    @patch.dict(os.environ, {})\n"
        "    def test_one(self):\n        got = task_func('a')\n        assert got == want\n"
    )
    cheat, right = judge(verifier, unit(tests, COUNT), program, COUNT)
    assert cheat.tests == ("failed",)
    assert "a wrong implementation passes" in cheat.detail
    assert right.passed


# -- the real files


def _real(name: str) -> Path:
    path = _DATA / name
    if not path.exists():
        pytest.skip("no real files here")
    return path


@pytest.mark.parametrize(
    ("name", "count"),
    [("humanevalplus/HumanEvalPlus-Mini.half.jsonl.gz", 82), ("mbppplus/MbppPlus.part.jsonl.gz", 59)],
)
def test_every_gold_solution_passes(name: str, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    path = _real(name)
    if "mbpp" in name:
        with pytest.warns(UserWarning, match=r"Mbpp/164 \(are_equivalent\)"):
            assert validate_file(path, workers=1)
    else:
        assert validate_file(path, workers=1)
    assert f"{count} problems, {count} with a reference solution: passed {count}" in capsys.readouterr().out


def test_wrong_programs_fail_the_plus_inputs(verifier: Verifier) -> None:
    """Programs that HumanEval's own inputs let pass."""
    problems = {p.task_id: p for p in load_problems(_real("humanevalplus/HumanEvalPlus-Mini.half.jsonl.gz"))}
    p = problems["HumanEval/32"]
    assert isinstance(p.tests, Inputs)
    bisect = p.prefix + (
        "    a, b = -1.0, 1.0\n    while poly(xs, a) * poly(xs, b) > 0: a, b = 2 * a, 2 * b\n"
        "    for _ in range(200):\n        m = (a + b) / 2\n"
        "        a, b = (m, b) if poly(xs, a) * poly(xs, m) > 0 else (a, m)\n    return a\n"
    )
    other, wrong = judge(verifier, p, bisect, p.prefix + "    return 0.0\n")
    assert other.passed  # another root than the gold solution's may be right
    assert not wrong.passed
    p = problems["HumanEval/0"]
    assert isinstance(p.tests, Inputs)
    partly = judge(
        verifier, p, p.prefix + "    return min(abs(a - b) for a in numbers for b in numbers) < threshold\n"
    )[0]
    assert not partly.passed


SLOW_OR_UNABLE = {0, 14, 16, 18, 176}  # docs/verifier.md says why


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_bigcodebench_with_the_standard_library() -> None:
    path = _real("bigcodebench/BigCodeBench.part.jsonl.gz")
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


def test_livecodebench_samples() -> None:
    problems = load_problems(_real("livecodebench/lcb_samples.jsonl"))
    assert problems[0].meta["contest_date"] == "2023-09-22"
    assert all(isinstance(p.tests, Stdio) for p in problems)
