"""For the tests of the formats: rows to problems, problems to verdicts, and where the real files are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from restrl.problems import load_problems
from restrl.records import Problem, Tests
from restrl.sandbox import Verdict, Verifier

_DATA = Path(os.environ.get("RESTRL_SHARED_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))


def load(tmp_path: Path, *rows: dict[str, Any], format: str = "auto") -> list[Problem]:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_problems(path, format)


def problem(tests: Tests, reference: str | None = None, prefix: str = "") -> Problem:
    fields: dict[str, Any] = {"task_id": "t", "source": "test", "prompt": "", "mode": "instruct"}
    return Problem(**fields, prefix=prefix, tests=tests, reference=reference)


def judge(verifier: Verifier, tests: Problem, *programs: str) -> list[Verdict]:
    return verifier.verify([(tests, program) for program in programs])


def real_file(name: str) -> Path:
    path = _DATA / name
    if not path.exists():
        pytest.skip("no real files here")
    return path
