"""Problem files: every format, every kind of damage."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from restrl.errors import RestrlError
from restrl.problems import find_problem, load_problems
from restrl.records import Asserts, Calls, Check, Problem, Stdio

_DATA = Path(os.environ.get("RESTRL_SHARED_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))

HUMANEVAL = {
    "task_id": "HumanEval/0", "prompt": 'def f(x):\n    """One more."""\n', "entry_point": "f",
    "canonical_solution": "    return x + 1\n",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
}  # fmt: skip
MBPP = {
    "task_id": 7, "text": "Double it.", "code": "import math\r\ndef double(x):\r\n    return 2 * x",
    "test_list": ["assert double(1) == 2", "assert math.floor(double(2)) == 4"], "test_setup_code": "",
    "challenge_test_list": [],
}  # fmt: skip
SANITIZED = {
    "source_file": "x", "task_id": 7, "prompt": "Double it.", "code": "def double(x): return 2 * x",
    "test_imports": ["import math"], "test_list": ["assert math.floor(double(2)) == 4"],
}  # fmt: skip
APPS: dict[str, Any] = {
    "problem_id": 3, "question": "Add.", "solutions": ["print(int(input()) + int(input()))"],
    "input_output": {"inputs": ["1\n2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]},
    "difficulty": "interview", "url": "https://example.org", "starter_code": "",
}  # fmt: skip
APPS_CALLS: dict[str, Any] = {
    **APPS, "starter_code": "class Solution:\n    def add(self, xs: List[int]) -> int:\n        ",
    "solutions": ["class Solution:\n    def add(self, xs: List[int]) -> int:\n        return sum(xs)"],
    "input_output": {"fn_name": "add", "inputs": [[[1, 2]], [{"5": 1}]], "outputs": [[3], 5]},
}  # fmt: skip


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_humaneval_plain_and_gzipped(tmp_path: Path) -> None:
    plain = write(tmp_path / "h.jsonl", HUMANEVAL)
    packed = tmp_path / "h.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    (problem,) = load_problems(plain)
    assert load_problems(packed) == [problem]
    assert problem.task_id == "HumanEval/0"
    assert problem.mode == "complete"
    assert problem.prefix == problem.prompt == HUMANEVAL["prompt"]
    assert problem.tests == Check(code=HUMANEVAL["test"], entry_point="f")
    assert problem.reference == HUMANEVAL["prompt"] + HUMANEVAL["canonical_solution"]


def test_mbpp_full_and_sanitized(tmp_path: Path) -> None:
    (full,) = load_problems(write(tmp_path / "m.jsonl", MBPP))
    assert (full.task_id, full.entry_point, full.mode, full.prefix) == ("7", "double", "instruct", "")
    assert full.tests == Asserts(asserts=MBPP["test_list"])  # type: ignore[arg-type]
    assert "Double it." in full.prompt
    assert MBPP["test_list"][0] in full.prompt  # type: ignore[index]
    assert MBPP["test_list"][1] not in full.prompt  # type: ignore[index]
    array = tmp_path / "s.json"
    array.write_text(json.dumps([SANITIZED], indent=1))
    (short,) = load_problems(array)
    assert short.tests == Asserts(setup="import math", asserts=SANITIZED["test_list"])  # type: ignore[arg-type]


@pytest.mark.parametrize("encode", [lambda v: v, json.dumps, repr])
def test_apps_as_objects_json_text_and_literals(tmp_path: Path, encode: Any) -> None:
    rows = [
        {
            **row,
            "input_output": encode(row["input_output"]),
            "solutions": encode(row["solutions"]),
            "problem_id": i,
        }
        for i, row in enumerate((APPS, APPS_CALLS))
    ]
    stdio, calls = load_problems(write(tmp_path / "a.jsonl", *rows))
    assert stdio.tests == Stdio(inputs=["1\n2\n", "3\n4"], outputs=["3\n", "7"])
    assert stdio.reference == APPS["solutions"][0]
    expected = Calls(fn_name="add", args=[[[1, 2]], [{5: 1}]], expected=[[3], 5], wrapped=True)
    assert calls.tests == expected
    assert calls.prefix == "class Solution:\n    def add(self, xs: List[int]) -> int:\n"
    assert calls.prefix.rstrip() in calls.prompt


def test_apps_variants(tmp_path: Path) -> None:
    raw = {k: v for k, v in APPS.items() if k != "problem_id"} | {"id": 12}
    assert load_problems(write(tmp_path / "raw.jsonl", raw))[0].task_id == "12"
    with_test = {"id": 1, "prompt": "Add.", "code": "print(3)", "test": str(APPS["input_output"])}
    (problem,) = load_problems(write(tmp_path / "t.jsonl", with_test))
    assert isinstance(problem.tests, Stdio)
    assert problem.reference == "print(3)"
    huge = "1" * 6000
    row = json.dumps({**APPS, "input_output": {"fn_name": "f", "inputs": [[0]], "outputs": [0]}}).replace(
        '"outputs": [0]', f'"outputs": [{huge}]'
    )
    (problem,) = load_problems(write(tmp_path / "huge.jsonl", row))
    assert isinstance(problem.tests, Calls)
    assert problem.tests.expected[0] == (10**6000 - 1) // 9
    untested = {**APPS, "input_output": "", "solutions": "", "problem_id": 9}
    with pytest.warns(UserWarning, match="1 problems have no tests"):
        assert len(load_problems(write(tmp_path / "u.jsonl", untested, APPS))) == 1


def test_own_records(tmp_path: Path) -> None:
    problem = Problem(
        task_id="a",
        source="x",
        prompt="p",
        mode="instruct",
        tests=Calls(fn_name="f", args=[[1]], expected=[[2]]),
    )
    path = write(tmp_path / "r.jsonl", problem.model_dump())
    assert (
        load_problems(path) == load_problems(path, "restrl") == load_problems(path, "pipelines") == [problem]
    )
    with pytest.raises(RestrlError, match=r"r2.jsonl:1: key 'tests.*"):
        load_problems(write(tmp_path / "r2.jsonl", {**problem.model_dump(), "tests": {"kind": "calls"}}))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        (["", "  "], "is empty"),
        ([HUMANEVAL, '{"task_id": "torn'], r":2: not valid JSON"),
        ([HUMANEVAL, "[1]"], r":2: a row must be a JSON object"),
        ([HUMANEVAL, HUMANEVAL], r":2: id 'HumanEval/0' occurs twice \(first at .*:1\)"),
        ([HUMANEVAL, {**HUMANEVAL, "task_id": "1", "test": None}], r":2: key 'test' is missing"),
        ([{**HUMANEVAL, "prompt": 3}], r":1: key 'prompt' must be a string, not a number"),
        ([{**HUMANEVAL, "task_id": True}], r":1: key 'task_id' must be a string or a number, not a boolean"),
        ([{"x": 1}], r":1: no known problem format has these keys \('x'\)"),
        ([{**MBPP, "test_list": []}], r":1: key 'test_list' holds no test"),
        ([{**MBPP, "test_list": [1]}], r":1: key 'test_list' must be a list of strings"),
        ([{**APPS, "input_output": "{nonsense"}], r":1: key 'input_output' holds neither JSON nor"),
        ([{**APPS, "input_output": {"inputs": [], "outputs": []}}], "no problem in it has tests"),
        (
            [{**APPS, "input_output": {"inputs": ["1"], "outputs": []}}],
            r":1: key 'input_output' must hold as many",
        ),
        ([{**APPS, "solutions": [1]}], r":1: key 'solutions' must be a list of programs"),
    ],
)
def test_damage_is_named(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(RestrlError, match=message):
        load_problems(write(tmp_path / "bad.jsonl", *rows))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RestrlError, match="no such file"):
        load_problems(tmp_path / "none.jsonl")
    with pytest.raises(RestrlError, match=r"unknown problem format 'nonsense': one of auto, restrl"):
        load_problems(write(tmp_path / "h.jsonl", HUMANEVAL), "nonsense")
    with pytest.raises(RestrlError, match="cannot be read"):
        load_problems(tmp_path)
    bad = tmp_path / "b.jsonl.gz"
    bad.write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(RestrlError, match="cannot be read"):
        load_problems(bad)
    bad.write_bytes(b"\xff\xfe{}")
    with pytest.raises(RestrlError, match="not UTF-8"):
        load_problems(bad)


def test_ids_match_with_and_without_their_prefix(tmp_path: Path) -> None:
    human = {p.task_id: p for p in load_problems(write(tmp_path / "h.jsonl", HUMANEVAL))}
    mbpp = {p.task_id: p for p in load_problems(write(tmp_path / "m.jsonl", MBPP))}
    assert find_problem(human, "0") is find_problem(human, "HumanEval/0") is human["HumanEval/0"]
    assert find_problem(mbpp, "Mbpp/7") is find_problem(mbpp, "7") is mbpp["7"]
    assert find_problem(human, "1") is find_problem(human, "Other/1") is None


@pytest.mark.skipif(not _DATA.exists(), reason="no real files here")
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("humaneval/HumanEval.half.jsonl.gz", 82),
        ("mbpp/mbpp.half.jsonl.gz", 487),
        ("mbpp/sanitized-mbpp.half.json", 214),
        ("apps/apps_samples.jsonl", 2),
    ],
)
def test_real_files(name: str, count: int) -> None:
    problems = load_problems(_DATA / name)
    assert len(problems) == count
    assert all(p.reference for p in problems)
