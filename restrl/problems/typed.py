"""Types that JSON lost, found again from calls that show them."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

_CONTAINERS = (list, tuple, set, frozenset)


def typed_arguments(inputs: list[list[Any]], examples: Sequence[str]) -> list[list[Any]]:
    """`inputs` with tuples, sets, complex numbers and integer keys where the calls in `examples` have them.

    `examples` are calls in Python; those whose arguments are no literals show nothing. Where the examples
    disagree (a list here, a tuple there) a value stays as it is.
    """
    shown = [args for args in map(_arguments, examples) if args]
    return [
        [_typed(value, [args[i] for args in shown if i < len(args)]) for i, value in enumerate(arguments)]
        for arguments in inputs
    ]


def _arguments(call: str) -> list[Any]:
    node = ast.parse(call, mode="eval").body
    try:
        return [ast.literal_eval(a) for a in node.args] if isinstance(node, ast.Call) else []
    except ValueError:
        return []


def _typed(value: Any, examples: list[Any]) -> Any:
    if isinstance(value, str) and examples and all(isinstance(e, int | float | complex) for e in examples):
        return _number(value, any(isinstance(e, complex) for e in examples))
    if isinstance(value, dict):
        shown = [e for e in examples if isinstance(e, dict)]
        numbers = any(shown) and all(isinstance(k, int) for e in shown for k in e)
        inner = [v for e in shown for v in e.values()]
        return {int(k) if numbers else k: _typed(v, inner) for k, v in value.items()}
    if not isinstance(value, list):
        return value
    same = [e for e in examples if isinstance(e, _CONTAINERS)]
    kinds = {type(e) for e in same}
    made = [_typed(v, _elements(same, i, len(value))) for i, v in enumerate(value)]
    if len(kinds) != 1 or kinds == {list}:
        return made
    try:
        return kinds.pop()(made)
    except TypeError:  # an element that no set can hold: the contract will refuse the input
        return made


def _elements(examples: list[Any], i: int, length: int) -> list[Any]:
    """What stands at place i of the examples; if they are no records of one length, all of their elements."""
    sequences = [e for e in examples if isinstance(e, list | tuple)]
    records = len(sequences) == len(examples) and all(len(e) == length for e in sequences)
    mixed = any(
        len({type(v) for v in e} & {list, tuple, set, frozenset, dict, str, int}) > 1 for e in sequences
    )
    if records and mixed:
        return [e[i] for e in sequences]
    return [v for e in examples for v in e]


def _number(text: str, is_complex: bool) -> Any:
    for kind in (complex,) if is_complex else (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
