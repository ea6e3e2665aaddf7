"""Tests with one mistake in each: an honest program fails them, a forged outcome passes them too.

A program that shares a process with its tests can report what it likes, or read what is expected and return
it. It cannot know whether the tests it runs beside are the right ones. So they run a second time, in a
process of their own, with another expected value in every method.

A place is a number: the position of a node in `ast.walk` of the whole code.
"""

from __future__ import annotations

import ast
import random
import string
from typing import Any, NamedTuple

_OPPOSITE = {
    "assertEqual": "assertNotEqual",
    "assertTrue": "assertFalse",
    "assertIn": "assertNotIn",
    "assertIs": "assertIsNot",
    "assertIsNone": "assertIsNotNone",
    "assertIsInstance": "assertNotIsInstance",
    "assertGreater": "assertLessEqual",
    "assertLess": "assertGreaterEqual",
    "assertAlmostEqual": "assertNotAlmostEqual",
    "assertRegex": "assertNotRegex",
    "assert_called": "assert_not_called",
    "assert_called_once": "assert_not_called",
}
_OPPOSITE |= {value: key for key, value in _OPPOSITE.items() if key != "assert_called_once"}
_SAME = ("assertListEqual", "assertDictEqual", "assertTupleEqual", "assertSetEqual", "assertMultiLineEqual")
_OPPOSITE |= dict.fromkeys(_SAME, "assertNotEqual")
_EQUAL = ("assertEqual", *_SAME)
_BOUNDS = ("assertGreater", "assertGreaterEqual", "assertLess", "assertLessEqual")
_EXACT = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
_RAISES = ("assertRaises", "assertRaisesRegex")
_UNLIKELY = ("BufferError", "EOFError", "FloatingPointError", "ConnectionAbortedError", "ProcessLookupError")
_LETTERS = (string.ascii_lowercase, string.ascii_uppercase, string.digits)


def places(code: str, methods: list[str], entry_point: str) -> dict[str, tuple[list[int], list[int]]]:
    """Of every "Class.method": where a mistake must make an honest program fail, and where it may."""
    tree = ast.parse(code)
    number = {id(node): i for i, node in enumerate(ast.walk(tree))}
    found: dict[str, tuple[list[int], list[int]]] = {}
    for node in (n for n in tree.body if isinstance(n, ast.ClassDef)):
        for method in node.body:
            if not isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            name = f"{node.name}.{method.name}"
            if name in methods:  # the last definition counts
                sure = [number[id(n)] for n in _sure(method)]
                perhaps = [number[id(n)] for n in _perhaps(method, entry_point)]
                found[name] = (sure, [p for p in perhaps if p not in sure])
    return found


class Mistakes(NamedTuple):
    """A place of each method, and what decides which mistake stands there."""

    places: dict[str, int]
    seed: int

    @classmethod
    def draw(cls, places: dict[str, int]) -> Mistakes:
        """Mistakes that nobody can foresee."""
        return cls(places, random.SystemRandom().getrandbits(64))

    def into(self, code: str) -> str:
        """`code` with these mistakes, the same every time."""
        return with_mistakes(code, self.places, random.Random(self.seed))


NO_MISTAKES = Mistakes({}, 0)


def with_mistakes(code: str, chosen: dict[str, int], draw: random.Random) -> str:
    """`code` with a mistake at the place chosen for each method; without any, in the same form."""
    tree = ast.parse(code)
    nodes = list(ast.walk(tree))
    for place in chosen.values():
        _spoil(nodes[place], draw)
    return ast.unparse(ast.fix_missing_locations(tree))


def _straight(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements that are run once whenever the method is."""
    found: list[ast.stmt] = []
    for statement in body:
        found.append(statement)
        if not isinstance(statement, ast.With | ast.AsyncWith):
            continue
        entered = [_called(item.context_expr) for item in statement.items]
        if not any(name.startswith(("assert", "suppress", "subTest")) for name in entered):
            found += _straight(statement.body)
    return found


def _called(node: ast.AST) -> str:
    if not isinstance(node, ast.Call):
        return ""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _literal(node: ast.AST) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _sure(method: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.AST]:
    """Constants in the literal that a value must equal, exceptions that must be raised, and assertions."""
    constants: list[ast.AST] = []
    others: list[ast.AST] = []
    for statement in _straight(method.body):
        if isinstance(statement, ast.With):
            calls = [item.context_expr for item in statement.items]
            others += [c for c in calls if _called(c) in _RAISES and isinstance(c, ast.Call) and c.args]
        if isinstance(statement, ast.Assert):
            others.append(statement)
        if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
            continue
        call = statement.value
        name = _called(call)
        if name in _EQUAL and len(call.args) >= 2:
            sides = [a for a in call.args[:2] if _literal(a)]
            if len(sides) == 1:
                constants += [n for n in ast.walk(sides[0]) if _can_change(n)]
        if name in _OPPOSITE or (name in _RAISES and call.args):
            others.append(call)
    return constants or others


def _perhaps(method: ast.FunctionDef | ast.AsyncFunctionDef, entry_point: str) -> list[ast.AST]:
    """Constants in assertions, then others; none that are given to the program, by name or not, nor bounds:
    those it may keep as well with a mistake.
    """
    asserts = [n for n in ast.walk(method) if isinstance(n, ast.Assert) or _called(n).startswith("assert")]
    whole = [c for c in ast.walk(method) if _called(c) in (entry_point, *_BOUNDS) or _is_bound(c)]
    whole += _inputs(method, entry_point)
    given = {id(n) for c in whole for n in ast.walk(c)}
    nodes = [n for a in asserts for n in ast.walk(a)]
    nodes += [n for statement in method.body for n in ast.walk(statement) if not _is_text(statement)]
    wanted = {id(n): n for n in nodes if _can_change(n) and id(n) not in given}
    opposites = [a for a in asserts if isinstance(a, ast.Assert) or _called(a) in _OPPOSITE]
    return [*wanted.values(), *opposites]


def _inputs(method: ast.FunctionDef | ast.AsyncFunctionDef, entry_point: str) -> list[ast.AST]:
    """Assignments to names that reach the program's arguments."""
    calls = [c for c in ast.walk(method) if isinstance(c, ast.Call) and _called(c) == entry_point]
    names = {
        n.id for c in calls for a in (*c.args, *c.keywords) for n in ast.walk(a) if isinstance(n, ast.Name)
    }
    left = [n for n in ast.walk(method) if isinstance(n, ast.Assign | ast.AnnAssign | ast.AugAssign)]
    found: list[ast.AST] = []
    while reaching := [n for n in left if names & _targets(n)]:
        found += reaching
        left = [n for n in left if n not in reaching]
        names |= {n.id for a in reaching if a.value for n in ast.walk(a.value) if isinstance(n, ast.Name)}
    return found


def _targets(node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> set[str]:
    """Names that are bound, or whose parts are."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}


def _is_bound(node: ast.AST) -> bool:
    if isinstance(node, ast.keyword):
        return node.arg in ("places", "delta", "msg")
    return isinstance(node, ast.Compare) and not all(isinstance(op, _EXACT) for op in node.ops)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _can_change(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str | bytes)


def _spoil(node: ast.AST, draw: random.Random) -> None:
    if isinstance(node, ast.Constant):
        node.value = _other(node.value, draw)
    elif isinstance(node, ast.Assert):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.Call) and _called(node) in _RAISES:
        node.args[0] = ast.Name(draw.choice(_UNLIKELY), ast.Load())
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        node.func.attr = _OPPOSITE[node.func.attr]
        if _called(node) == "assert_not_called":
            node.args, node.keywords = [], []


def _other(value: Any, draw: random.Random) -> Any:
    """Another value of the same kind, by whose looks nobody can tell that it is wrong."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + draw.choice((1, 2, 3, 4, 5)) * (draw.choice((-1, 1)) if value > 9 else 1)
    if isinstance(value, float):
        return round(value + draw.choice((-1, 1)) * draw.randint(5, 25) / 10 * max(1.0, abs(value)), 2)
    if isinstance(value, bytes):
        return _other(value.decode("latin-1"), draw).encode("latin-1")
    positions = [i for i, c in enumerate(value) if any(c in kind for kind in _LETTERS)]
    if not positions:
        return value + draw.choice(string.ascii_lowercase)
    at = draw.choice(positions)
    kind = next(kind for kind in _LETTERS if value[at] in kind)
    return value[:at] + draw.choice(kind.replace(value[at], "")) + value[at + 1 :]
