"""APPS: programs that read stdin, or functions that are called; and its form `id, prompt, code, test`."""

from __future__ import annotations

from typing import Any

from restrl.problems.files import Fields
from restrl.records import Calls, Problem, Stdio

KEYS = {"question", "input_output"}
KEYS_WITH_TEST = {"id", "prompt", "code", "test"}


def apps(row: Fields) -> Problem | None:
    """One row; None where it has no tests (APPS has such problems)."""
    tests = row.data("input_output", {})
    solutions = row.data("solutions", [])
    if not isinstance(solutions, list) or not all(isinstance(s, str) for s in solutions):
        raise row.fail("solutions", "must be a list of programs")
    starter = row.text("starter_code", "")
    meta = {k: row.row[k] for k in ("difficulty", "url", "split") if isinstance(row.row.get(k), str)}
    if isinstance(row.row.get("metadata"), dict):
        meta |= row.row["metadata"]
    return _problem(row, "input_output", row.text("question"), tests, starter, solutions, meta)


def apps_with_test(row: Fields) -> Problem | None:
    """One row of the method's published training file: `test` is `input_output`, `code` a solution."""
    code = row.text("code", "")
    return _problem(row, "test", row.text("prompt"), row.data("test", {}), "", [code] if code else [], {})


def _problem(
    row: Fields, key: str, question: str, data: Any, starter: str, solutions: list[str], meta: dict[str, Any]
) -> Problem | None:
    if not isinstance(data, dict):
        raise row.fail(key, "must hold an object with 'inputs' and 'outputs'")
    if not data or data.get("inputs") == []:
        return None
    inputs, outputs = data.get("inputs"), data.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise row.fail(key, "must hold as many 'inputs' as 'outputs'")
    fn_name = data.get("fn_name")
    if fn_name is not None and not isinstance(fn_name, str):
        raise row.fail(key, "has an 'fn_name' that is no string")
    tests: Calls | Stdio
    if fn_name is None:
        tests = Stdio(
            inputs=[_lines(v, row, key) for v in inputs], outputs=[_lines(v, row, key) for v in outputs]
        )
    else:
        if not all(isinstance(v, list) for v in inputs):
            raise row.fail(key, "has a call whose arguments are no list")
        tests = Calls(
            fn_name=fn_name,
            args=[[_int_keys(a) for a in args] for args in inputs],
            expected=[_expected(v) for v in outputs],
            wrapped=True,
        )
    prompt = (
        question if not starter else f"{question.rstrip()}\n\nBegin with this code:\n{starter.rstrip()}\n"
    )
    return Problem(
        task_id=row.identifier("problem_id", "id", "task_id"),
        source="apps",
        prompt=prompt,
        mode="instruct",
        entry_point=fn_name,
        prefix=starter.rstrip() + "\n" if starter.strip() else "",
        tests=tests,
        reference=solutions[0] if solutions else None,
        meta=meta,
    )


def _lines(value: Any, row: Fields, key: str) -> str:
    """Text of stdin or stdout; some problems have a list of lines instead."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return "\n".join(value)
    raise row.fail(key, "has an input or output that is neither text nor a list of lines")


def _int_keys(value: Any) -> Any:
    """JSON turned the integer keys of dictionaries into text; turn them back."""
    if isinstance(value, dict) and value and all(k.lstrip("-").isdigit() for k in value):
        return {int(k): v for k, v in value.items()}
    return value


def _expected(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1:
        return [_int_keys(value[0])]
    return _int_keys(value)
