"""EvalPlus, MBPP+ and LiveCodeBench: what their rows become and how they are judged."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import zlib
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from format_cases import judge, load, real_file

from restrl.errors import RestrlError
from restrl.problems import livecodebench, load_problems
from restrl.problems.typed import typed_arguments
from restrl.records import Calls, Inputs, Problem, Stdio
from restrl.sandbox import Verifier
from restrl.sandbox.compare import same_result
from restrl.stages.validate import validate_file
from restrl.stages.verify import verify_file


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(workers=1, timeout=10.0) as v:
        yield v


@pytest.fixture(scope="module")
def hasty() -> Iterator[Verifier]:
    with Verifier(workers=1, timeout=1.5) as v:
        yield v


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


# -- the real files


@pytest.mark.parametrize(
    ("name", "count"),
    [("humanevalplus/HumanEvalPlus-Mini.half.jsonl.gz", 82), ("mbppplus/MbppPlus.part.jsonl.gz", 59)],
)
def test_every_gold_solution_passes(name: str, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    path = real_file(name)
    if "mbpp" in name:
        with pytest.warns(UserWarning, match=r"Mbpp/164 \(are_equivalent\)"):
            assert validate_file(path, workers=1)
    else:
        assert validate_file(path, workers=1)
    assert f"{count} problems, {count} with a reference solution: passed {count}" in capsys.readouterr().out


def test_wrong_programs_fail_the_plus_inputs(verifier: Verifier) -> None:
    """Programs that HumanEval's own inputs let pass."""
    problems = {
        p.task_id: p for p in load_problems(real_file("humanevalplus/HumanEvalPlus-Mini.half.jsonl.gz"))
    }
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


def test_livecodebench_samples() -> None:
    problems = load_problems(real_file("livecodebench/lcb_samples.jsonl"))
    assert problems[0].meta["contest_date"] == "2023-09-22"
    assert all(isinstance(p.tests, Stdio) for p in problems)
