"""`restrl verify` and `restrl validate` as functions: rows, pass@k, bad input, and the real files."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

from restrl.errors import RestrlError
from restrl.metrics import mean_pass_at_k, pass_at_k, pass_table
from restrl.stages.validate import validate_file
from restrl.stages.verify import verify_file

_DATA = Path(os.environ.get("RESTRL_SHARED_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))


def problem(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "task_id": f"HumanEval/{number}", "entry_point": "f",
        "prompt": f"def f(x):\n    '''Add {number}.'''\n",
        "canonical_solution": f"    return x + {number}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {1 + number}\n", **fields,
    }  # fmt: skip


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    return write(tmp_path / "problems.jsonl", [problem(1), problem(2)])


def test_rows_and_pass_at_k(tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = [
        {"task_id": "HumanEval/2", "completion": "    return x + 2\n", "extra": 1},
        {"task_id": "1", "solution": "def f(x): return x + 1", "completion": "    return 0\n"},
        {"task_id": "HumanEval/1", "solution": "def f(x): return x + 2"},
        {"task_id": "HumanEval/2", "completion": "    while True: pass\n"},
    ]
    out = tmp_path / "deep" / "verdicts.jsonl"
    table = verify_file(problems, write(tmp_path / "s.jsonl", samples), out, timeout=0.5)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    wanted = [("HumanEval/2", 0, "passed"), ("HumanEval/1", 0, "passed"), ("HumanEval/1", 1, "failed"),
              ("HumanEval/2", 1, "timeout")]  # fmt: skip
    assert [(r["task_id"], r["sample"], r["status"]) for r in rows] == wanted
    assert list(rows[0]) == [
        "task_id",
        "sample",
        "status",
        "passed",
        "reward",
        "tests",
        "seconds",
        "isolation",
        "mode",
    ]
    assert [r["reward"] for r in rows] == [1.0, 1.0, 0.0, 0.0]
    assert rows[0]["tests"] == ["passed"]
    assert table == {"pass@1": 0.5}
    assert "pass@1:\t0.500" in capsys.readouterr().out
    assert verify_file(problems, tmp_path / "s.jsonl", out, timeout=0.5, ks=(2,), quiet=True) == {
        "pass@2": 1.0
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"task_id": "HumanEval/9", "solution": ""}, r"s.jsonl:2: task_id 'HumanEval/9' is in no problem of"),
        ({"task_id": "1"}, r"s.jsonl:2: key 'solution' is missing"),
        ({"solution": "x"}, r"s.jsonl:2: key 'task_id' is missing"),
        ({"task_id": "1", "solution": 5}, r"s.jsonl:2: key 'solution' must be a string"),
        ("{", r"s.jsonl:2: not valid JSON"),
    ],
)
def test_bad_samples_are_named(tmp_path: Path, problems: Path, row: Any, message: str) -> None:
    samples = write(tmp_path / "s.jsonl", [{"task_id": "1", "solution": "x"}, row])
    with pytest.raises(RestrlError, match=message):
        verify_file(problems, samples, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_k_above_the_samples_is_refused(tmp_path: Path, problems: Path) -> None:
    samples = write(
        tmp_path / "s.jsonl", [{"task_id": "1", "solution": "x"}] * 3 + [{"task_id": "2", "solution": ""}]
    )
    with pytest.raises(RestrlError, match="pass@2 needs 2 samples of every problem, and one has 1"):
        verify_file(problems, samples, tmp_path / "out.jsonl", ks=(2,))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path, problems: Path) -> None:
    samples = write(tmp_path / "s.jsonl", [{"task_id": "1", "solution": "x"}])
    (tmp_path / "file").write_text("")
    with pytest.raises(RestrlError, match="cannot be written"):
        verify_file(problems, samples, tmp_path / "file" / "out.jsonl")
    with pytest.raises(RestrlError, match="cannot be written: it is a folder"):
        verify_file(problems, samples, tmp_path)


@pytest.mark.parametrize("timeout", [0.0, -1.0, math.nan, math.inf])
def test_a_time_limit_is_a_number_above_zero(problems: Path, timeout: float) -> None:
    with pytest.raises(RestrlError, match="timeout > 0"):
        validate_file(problems, timeout=timeout)


def test_validate(tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate_file(problems)
    assert "passed 2" in capsys.readouterr().out
    wrong = write(tmp_path / "w.jsonl", [problem(1), problem(2, canonical_solution="    return 0\n")])
    assert not validate_file(wrong)
    assert "HumanEval/2: failed, 1 of 1 tests" in capsys.readouterr().out
    some = write(tmp_path / "n.jsonl", [problem(1), problem(2, canonical_solution="")])
    assert not validate_file(some)
    assert "HumanEval/2: no reference solution" in capsys.readouterr().out
    with pytest.raises(RestrlError, match="no problem has a reference solution"):
        validate_file(write(tmp_path / "m.jsonl", [problem(1, canonical_solution="")]))


def test_a_slow_reference_solution_runs_again_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = problem(1, canonical_solution="    import time\n    time.sleep(1.2)\n    return x + 1\n")
    assert validate_file(write(tmp_path / "s.jsonl", [slow, problem(2)]), timeout=0.8)
    said = capsys.readouterr().out
    assert re.search(r"^HumanEval/1: passed, slow: 1\.\d s .* the limit of 0\.8 s", said)
    assert "passed slowly 1" in said


@pytest.mark.parametrize("body", ["while True: pass", "import time\n    time.sleep(1.2)\n    return 0"])
def test_a_reference_solution_that_hangs_or_is_slow_and_wrong_does_not_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], body: str
) -> None:
    row = problem(1, canonical_solution=f"    {body}\n")
    assert not validate_file(write(tmp_path / "h.jsonl", [row]), timeout=0.8)
    assert "HumanEval/1: timeout, 1 of 1 tests" in capsys.readouterr().out


def test_a_test_that_compares_the_candidate_with_itself(tmp_path: Path) -> None:
    """As HumanEval/33 does: the test names the entry point beside `candidate`."""
    test = "def check(c):\n    assert tuple(c(3)) == tuple(f(3))\n    assert c(1) == [1]\n"
    row = problem(33, prompt="def f(x):\n    '''List.'''\n", canonical_solution="    return [x]\n", test=test)
    assert validate_file(write(tmp_path / "33.jsonl", [row]))


def test_pass_at_k_is_the_share_of_subsets() -> None:
    from itertools import combinations

    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(combinations([1] * c + [0] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    assert mean_pass_at_k([(2, 2), (2, 0)], 1) == 0.5
    assert pass_table([(10, 1), (12, 0)]) == {"pass@1": pytest.approx(0.05), "pass@10": pytest.approx(0.5)}
    for n, k in [(3, 4), (3, 0)]:
        with pytest.raises(RestrlError, match="needs at least"):
            pass_at_k(n, 1, k)
    with pytest.raises(RestrlError, match="no problem"):
        mean_pass_at_k([], 1)


@pytest.mark.skipif(not _DATA.exists(), reason="no real files here")
@pytest.mark.parametrize(
    "name",
    [
        "humaneval/HumanEval.half.jsonl.gz",
        "mbpp/mbpp.half.jsonl.gz",
        "mbpp/sanitized-mbpp.half.json",
        "apps/apps_samples.jsonl",
    ],
)
def test_reference_solutions_of_the_real_files_pass(name: str) -> None:
    assert validate_file(_DATA / name)
