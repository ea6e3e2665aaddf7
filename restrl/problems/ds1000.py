"""DS-1000: a few lines that complete a script, tested by functions that run them."""

from __future__ import annotations

from restrl.problems.files import Fields
from restrl.records import Context, Problem

KEYS = {"prompt", "reference_code", "code_context"}


def ds1000(row: Fields) -> Problem:
    """One row. The program is what replaces `[insert]` in the context."""
    metadata = row.get("metadata", dict, {})
    number = metadata.get("problem_id")
    if "task_id" not in row.row and not isinstance(number, int | str):
        raise row.fail("metadata", "has no 'problem_id'")
    return Problem(
        task_id=row.identifier("task_id") if "task_id" in row.row else str(number),
        source="ds1000",
        prompt=row.text("prompt"),
        mode="instruct",
        tests=Context(code=row.text("code_context")),
        reference=row.text("reference_code", "") or None,
        meta=dict(metadata),
    )
