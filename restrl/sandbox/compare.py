"""How a result is compared with what was expected. Runs in the judge, on plain data."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # most outputs are the same text: a judge starts without it
    from decimal import Decimal


def listed(value: Any) -> Any:
    """`value` with every tuple as a list: JSON knows no tuples. Nesting is bounded by the codec."""
    if isinstance(value, list | tuple):
        return [listed(v) for v in value]
    if type(value) is dict:
        return {k: listed(v) for k, v in value.items()}
    return value


def same_call(got: Any, expected: Any, wrapped: bool) -> bool:
    """Whether a call gave what was expected; with `wrapped`, perhaps in one more list (APPS)."""
    got, expected = listed(got), listed(expected)
    if bool(got == expected):
        return True
    return wrapped and isinstance(expected, list) and len(expected) == 1 and bool(got == expected[0])


def _number(token: str) -> Decimal | None:
    if "_" in token or not token.isascii():  # Python reads 1_1 as 11, and digits of any script; tests do not
        return None
    from decimal import Decimal, InvalidOperation

    try:
        value = Decimal(token)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _same_token(got: str, expected: str, tolerant: bool) -> bool:
    if got == expected:
        return True
    if len(got) > 400 or len(expected) > 400:  # arithmetic on longer digit strings is not what tests print
        return False
    want = _number(expected)
    have = _number(got) if want is not None else None
    if want is None or have is None:
        return False
    if have == want:
        return True
    # Only what is written as a fraction may differ in its last places: 5500 is not 5500.0055.
    written_as_fraction = not expected.lstrip("+-").isdigit()
    from decimal import Decimal

    near = abs(have - want) <= Decimal("1e-8") + Decimal("1e-5") * abs(want)
    return tolerant and written_as_fraction and near


def same_output(got: str, expected: str, tolerant: bool) -> bool:
    """Whether a program printed what was expected: line by line, word by word, numbers by value.

    White space at the ends of lines and empty lines do not count. `tolerant` (APPS) lets fractions differ by
    1e-5 relative; without it (LiveCodeBench) numbers are equal as decimals.
    """
    return all(
        h is not None
        and w is not None
        and len(h) == len(w)
        and all(_same_token(a, b, tolerant) for a, b in zip(h, w, strict=True))
        for h, w in itertools.zip_longest(_lines(got), _lines(expected))
    )


def _lines(text: str) -> Iterator[list[str]]:
    """The words of every line that has any, one line at a time: output may be millions of lines."""
    return filter(None, map(str.split, io.StringIO(text, newline="\n")))


# -- EvalPlus


def same_result(got: Any, want: Any, compare: str, atol: float, arguments: list[Any]) -> bool:
    """Whether a call of an EvalPlus problem gave what the gold solution gave (see records.py:Inputs).

    Floats, and lists and tuples of floats, may differ by `atol` (1e-6 if that is 0) and 1e-7 relative.
    """
    if compare == "root":
        number = isinstance(got, int | float) and not isinstance(got, bool) and math.isfinite(got)
        return number and abs(sum(c * math.pow(got, i) for i, c in enumerate(arguments[0]))) <= atol
    if compare == "not_none":
        return _there(got) == _there(want)
    if compare == "set":
        return bool(got == want) or (isinstance(got, _GROUPS) and set(got) == set(want))
    if bool(got == want):
        return True
    floats = isinstance(want, float) or (
        isinstance(want, list | tuple) and bool(want) and all(isinstance(v, float) for v in want)
    )
    tolerance = atol or (1e-6 if floats else 0.0)
    return _close(got, want, tolerance)


_GROUPS = (list, tuple, set, frozenset)


def _there(value: Any) -> bool:
    return value if isinstance(value, bool) else value is not None


def _close(got: Any, want: Any, tolerance: float) -> bool:
    """Equal but for numbers that are off by `tolerance`; a NaN equals a NaN."""
    if isinstance(want, list | tuple):
        return (
            type(got) is type(want)
            and len(got) == len(want)
            and all(_close(g, w, tolerance) for g, w in zip(got, want, strict=True))
        )
    if isinstance(want, float) and isinstance(got, int | float):
        if math.isnan(want) or math.isnan(got):
            return math.isnan(want) and math.isnan(got)
        # Infinite ones are equal or are not close.
        off = abs(got - want) if math.isfinite(want) and math.isfinite(got) else math.inf
        return bool(got == want) or (tolerance > 0 and off <= tolerance + 1e-7 * abs(want))
    return bool(got == want)
