"""HumanEval+ and MBPP+ as EvalPlus publishes them: inputs, and a gold solution that says what is expected."""

from __future__ import annotations

import ast
from typing import Any, Literal

from restrl.problems.files import Fields, LeftOut
from restrl.problems.mbpp import entry_point_of
from restrl.records import Asserts, Inputs, Problem

KEYS = {"task_id", "entry_point", "base_input", "plus_input"}
KEYS_WITH_TEST = {"task_id", "code", "test_list", "test"}

Compare = Literal["equal", "set", "not_none", "root"]
_SETS = ("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum",
         "intersection_array", "find_dissimilar", "Diff")  # fmt: skip
_NOT_NONE = ("check_str", "text_match_three", "text_starta_endb")
# Their own rules look at all results of a program, or accept results that the gold solution does not give.
_NO_RULE = ("are_equivalent", "sum_div", "surface_Area", "digit_distance_nums")


def humanevalplus(row: Fields) -> Problem:
    """One row: HumanEval's prompt is continued, MBPP's is a docstring.

    Raises LeftOut for the four problems of MBPP+ where results other than the gold solution's are right.
    """
    entry_point, prompt = row.text("entry_point"), row.text("prompt")
    solution = row.text("canonical_solution")
    human = row.identifier("task_id").startswith("HumanEval")
    gold = prompt + solution if human else solution
    if not human and entry_point in _NO_RULE:
        raise LeftOut(f"{row.identifier('task_id')} ({entry_point}) has rules of its own in EvalPlus")
    base, plus = _inputs(row, "base_input"), _inputs(row, "plus_input")
    if not base and not plus:
        raise row.fail("base_input", "holds no input, and neither does 'plus_input'")
    atol = float(row.get("atol", (int, float), 0))
    return Problem(
        task_id=row.identifier("task_id"),
        source="humanevalplus" if human else "mbppplus",
        prompt=prompt if human else _words(prompt),
        mode="complete" if human else "instruct",
        entry_point=entry_point,
        prefix=prompt if human else "",
        tests=Inputs(
            entry_point=entry_point,
            inputs=base + plus,
            base=len(base),
            gold=gold,
            contract=_contract(row, gold, entry_point),
            examples=[] if human else _examples(row, prompt, entry_point),
            atol=atol,
            compare=_rule(entry_point, human),
        ),
        reference=gold,
    )


def mbppplus(row: Fields) -> Problem:
    """One row of the self-contained form: all of its tests are one program that calls the function."""
    asserts = row.texts("test_list")
    if not asserts:
        raise row.fail("test_list", "holds no test")
    code, test = row.text("code"), row.text("test")
    _parse(row, "test", test)
    return Problem(
        task_id=row.identifier("task_id"),
        source="mbppplus",
        prompt=f"{row.text('prompt').strip()}\nYour code should pass this test:\n{asserts[0].strip()}\n",
        mode="instruct",
        entry_point=entry_point_of(asserts[0], code),
        tests=Asserts(setup="\n".join(row.texts("test_imports", [])), asserts=[test]),
        reference=code,
    )


def _rule(entry_point: str, human: bool) -> Compare:
    if human:
        return "root" if entry_point == "find_zero" else "equal"
    return "set" if entry_point in _SETS else "not_none" if entry_point in _NOT_NONE else "equal"


def _inputs(row: Fields, key: str) -> list[list[Any]]:
    values = row.data(key, [])
    if values == {}:  # how EvalPlus writes that there are none
        return []
    if not isinstance(values, list) or not all(isinstance(v, list) for v in values):
        raise row.fail(key, "must be a list of argument lists")
    return values


def _parse(row: Fields, key: str, source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise row.fail(key, f"is no Python: {error}") from None


def _contract(row: Fields, gold: str, entry_point: str) -> str:
    """The gold program, and a function `contract` with the entry point's parameters."""
    body = row.text("contract", "").strip("\n")
    if not body.strip():
        return ""
    tree = _parse(row, "canonical_solution", gold)
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == entry_point]
    if not found:
        raise row.fail("entry_point", f"names {entry_point!r}, which the canonical solution does not define")
    source = f"{gold.rstrip()}\n\n\ndef contract({ast.unparse(found[-1].args)}):\n    pass\n"
    lines = body.splitlines()
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    source += "".join("    " + line[indent:] + "\n" for line in lines)
    _parse(row, "contract", source)
    return source


def _words(prompt: str) -> str:
    """The text of MBPP+'s prompt, which is a docstring."""
    try:
        value = ast.literal_eval(prompt.strip())
    except (ValueError, SyntaxError):
        return prompt
    return str(value).strip() + "\n" if isinstance(value, str) else prompt


def _examples(row: Fields, prompt: str, entry_point: str) -> list[str]:
    """The calls of the entry point in the row's asserts: they show types that JSON does not know."""
    calls = []
    for text in (row.text("assertion", ""), *_words(prompt).split("\n")):
        try:
            tree = ast.parse(text.strip())
        except (SyntaxError, ValueError):
            continue
        calls += [
            ast.unparse(n)
            for n in ast.walk(tree)
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == entry_point
        ]
    return list(dict.fromkeys(calls))
