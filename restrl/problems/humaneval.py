"""HumanEval: a signature and docstring to be continued, and a function `check(candidate)`."""

from __future__ import annotations

from restrl.problems.files import Fields
from restrl.records import Check, Problem

KEYS = {"task_id", "prompt", "entry_point", "test"}


def humaneval(row: Fields) -> Problem:
    """One row. The prompt is code and is the prefix; `canonical_solution` continues it and may be missing."""
    prompt, entry_point = row.text("prompt"), row.text("entry_point")
    body = row.text("canonical_solution", "")
    return Problem(
        task_id=row.identifier("task_id"),
        source="humaneval",
        prompt=prompt,
        mode="complete",
        entry_point=entry_point,
        prefix=prompt,
        tests=Check(code=row.text("test"), entry_point=entry_point),
        reference=prompt + body if body else None,
    )
