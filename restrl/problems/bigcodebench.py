"""BigCodeBench: a function to be completed, tested by `unittest` classes."""

from __future__ import annotations

import ast
from typing import Any

from restrl.problems.files import Fields
from restrl.records import Problem, Unittest

KEYS = {"task_id", "code_prompt", "test"}


def bigcodebench(row: Fields) -> Problem:
    """One row: `complete_prompt` is continued, or `instruct_prompt` answered beginning with `code_prompt`."""
    entry_point = row.text("entry_point", "task_func")
    words, body = row.text("instruct_prompt", ""), row.text("canonical_solution", "")
    complete = row.text("complete_prompt", "")
    if not complete and not words:
        raise row.fail("complete_prompt", "is missing, and so is 'instruct_prompt'")
    prefix = complete or row.text("code_prompt")
    meta: dict[str, Any] = {"instruct_prompt": words} if complete and words else {}
    if "libs" in row.row:
        meta["libs"] = _libraries(row)
    return Problem(
        task_id=row.identifier("task_id"),
        source="bigcodebench",
        prompt=complete or words,
        mode="complete" if complete else "instruct",
        entry_point=entry_point,
        prefix=prefix,
        tests=Unittest(code=row.text("test"), entry_point=entry_point),
        reference=prefix + body if body else None,
        meta=meta,
    )


def _libraries(row: Fields) -> list[str]:
    """`libs` is a list, or its text as Python writes it."""
    value = row.get("libs", (str, list))
    try:
        libs = ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        libs = None
    if not isinstance(libs, list) or not all(isinstance(v, str) for v in libs):
        raise row.fail("libs", "must be a list of names")
    return libs
