"""How a result is compared with what was expected. Runs in the judge, on plain data."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

_RELATIVE, _ABSOLUTE = Decimal("1e-5"), Decimal("1e-8")


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
    if "_" in token:  # Python reads 1_1 as 11; a test does not
        return None
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
    return tolerant and written_as_fraction and abs(have - want) <= _ABSOLUTE + _RELATIVE * abs(want)


def same_output(got: str, expected: str, tolerant: bool) -> bool:
    """Whether a program printed what was expected: line by line, word by word, numbers by value.

    White space at the ends of lines and empty lines do not count. `tolerant` (APPS) lets fractions differ by
    1e-5 relative; without it (LiveCodeBench) numbers are equal as decimals.
    """
    have = [line.split() for line in got.split("\n") if line.strip()]
    want = [line.split() for line in expected.split("\n") if line.strip()]
    return len(have) == len(want) and all(
        len(h) == len(w) and all(_same_token(a, b, tolerant) for a, b in zip(h, w, strict=True))
        for h, w in zip(have, want, strict=True)
    )
