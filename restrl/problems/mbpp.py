"""MBPP, the full file and the sanitized one: a sentence in words, and asserts."""

from __future__ import annotations

import ast
import warnings

from restrl.problems.files import Fields
from restrl.records import Asserts, Problem

KEYS = {"task_id", "test_list"}


def mbpp(row: Fields) -> Problem:
    """One row. The prompt shows the first assert: without it nobody can know the function's name."""
    if "test" in row.row:
        raise row.fail(
            "test", "is not MBPP's (MBPP+ and HumanEval have one), and the asserts alone would test less"
        )
    asserts = row.texts("test_list")
    if not asserts:
        raise row.fail("test_list", "holds no test")
    words = row.text("text") if "text" in row.row else row.text("prompt")
    code = row.text("code", "")
    setup = "\n".join(filter(None, [*row.texts("test_imports", []), row.text("test_setup_code", "")]))
    return Problem(
        task_id=row.identifier("task_id"),
        source="mbpp",
        prompt=f"{words.strip()}\nYour code should pass this test:\n{asserts[0].strip()}\n",
        mode="instruct",
        entry_point=entry_point_of(asserts[0], code),
        tests=Asserts(setup=setup, asserts=asserts),
        reference=code or None,
    )


def entry_point_of(test: str, code: str) -> str | None:
    """The function that the assert calls: the first called name that the reference defines."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escape sequences in the file's programs
            tree, program = ast.parse(test.strip()), ast.parse(code)
        calls = [n.func.id for n in ast.walk(tree) if _is_named_call(n)]  # type: ignore[attr-defined]
        defined = {n.name for n in ast.walk(program) if isinstance(n, ast.FunctionDef)}
    except (SyntaxError, ValueError):
        return None
    return next((name for name in calls if name in defined), None)


def _is_named_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
