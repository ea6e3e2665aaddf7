"""Values on their way from candidate to judge: faithful in type, bounded, safe to decode."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restrl.records import Check, Problem
from restrl.sandbox import Verifier
from restrl.sandbox.compare import same_call, same_output
from restrl.sandbox.native import core
from restrl.sandbox.plain import Unserialisable, export, restore

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**200), 2**200), st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.text(), st.binary(), st.just("\ud800"), st.just(bytearray(b"x")),
)  # fmt: skip
hashable = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.tuples(st.integers(), st.text()))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner), st.tuples(inner, inner), st.dictionaries(hashable, inner), st.sets(hashable),
        st.frozensets(hashable),
    ),
    max_leaves=20,
)  # fmt: skip


@given(values)
@settings(deadline=None, max_examples=100)
def test_codec_round_trip(value: Any) -> None:
    back = core.decode(core.encode(value))
    assert type(back) is type(value)
    assert back == value


@given(st.binary(max_size=60), values)
@settings(deadline=None, max_examples=100)
def test_decoding_any_bytes_ends_in_a_value_or_an_error(noise: bytes, value: Any) -> None:
    data = bytearray(core.encode(value))
    rng = random.Random(len(noise) + len(data))
    for byte in noise[:3]:
        data[rng.randrange(len(data))] = byte
    for damaged in (noise, bytes(data), bytes(data)[: len(data) // 2]):
        with contextlib.suppress(
            core.Unserialisable, UnicodeDecodeError, TypeError
        ):  # TypeError: unhashable keys
            core.decode(damaged)


def test_codec_bounds() -> None:
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    with pytest.raises(core.Unserialisable, match="deep"):
        core.encode(deep)
    with pytest.raises(core.TooLarge):
        core.encode([0] * 1000, None, 500)
    with pytest.raises(core.TooLarge):
        core.encode(1 << 100_000, None, 500)
    shared: list[Any] = []
    for _ in range(60):
        shared = [shared, shared]
    with pytest.raises(core.TooLarge):
        core.encode(shared, None, 1 << 16)
    with pytest.raises(core.Unserialisable):
        core.encode(object())
    with pytest.raises(core.Unserialisable, match="short"):
        core.decode(b"l" + struct.pack("I", 1 << 31))  # no room is made for what is not there
    with pytest.raises(core.Unserialisable, match="deep"):
        core.decode((b"l" + struct.pack("I", 1)) * 100_000 + b"N")


def test_unknown_kinds_are_refused() -> None:
    assert export(object()) is None
    assert export(lambda: 0) is None
    for tag, payload in [
        ("nonsense", 1),
        ("decimal", "x"),
        ("builtin", "eval"),
        (3, 4),
        ("deque", 1),
        ("range", "a"),
    ]:
        with pytest.raises(Unserialisable):
            restore(tag, payload)


# what the program returns, and what a test may do with it
FAITHFUL = [
    ("(1, [2], {3: (4,)})", "got == (1, [2], {3: (4,)}) and type(got) is tuple"),
    ("{1, 2}", "got == {1, 2} and type(got) is set"),
    ("frozenset('a')", "got == frozenset('a')"),
    ("float('nan')", "got != got"),
    ("-0.0", "str(got) == '-0.0'"),
    ("3 + 4j", "got == 3 + 4j"),
    ("b'x'", "got == b'x' and type(got) is bytes"),
    ("bytearray(b'x')", "got == bytearray(b'x')"),
    ("None", "got is None"),
    ("True", "got is True"),
    ("10**50", "got == 10**50"),
    ("'\\ud800'", "got == '\\ud800'"),
    ("range(3)", "got == range(3)"),
    ("__import__('decimal').Decimal('1.10')", "str(got) == '1.10'"),
    ("__import__('fractions').Fraction(1, 3)", "got * 3 == 1"),
    ("__import__('datetime').datetime(2020, 1, 2, 3)", "got.year == 2020 and got.hour == 3"),
    ("__import__('datetime').date(2020, 1, 2)", "got.day == 2"),
    ("__import__('datetime').timedelta(1)", "got.days == 1"),
    ("__import__('collections').deque([1, 2], 5)", "got.popleft() == 1 and got.maxlen == 5"),
    ("__import__('collections').Counter('aab')", "got.most_common(1) == [('a', 2)] and got['z'] == 0"),
    ("__import__('collections').defaultdict(list, {1: [2]})", "got[1] == [2] and got[9] == []"),
    (
        "__import__('collections').OrderedDict(b=1, a=2)",
        "list(got) == ['b', 'a'] and got.popitem() == ('a', 2)",
    ),
    ("__import__('collections').namedtuple('P', 'a b')(1, 2)", "got == (1, 2)"),
    ("__import__('re').search('(b)(c)?', 'abd')", "got and got.group(1) == 'b' and got.span() == (1, 2)"),
    ("__import__('re').search('z', 'abd')", "got is None"),
    ("map(str, [1, 2])", "list(got) == ['1', '2']"),
    ("(i * i for i in range(3))", "next(got) == 0 and list(got) == [1, 4]"),
    ("{1: 2}.items()", "list(got) == [(1, 2)]"),
    ("{1: 2}.keys()", "got == {1}"),
    ("zip('ab', [1, 2])", "dict(got) == {'a': 1, 'b': 2}"),
    ("int", "got is int"),
    ("lambda y: y + 1", "got(4) == 5 and callable(got)"),
]


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(workers=2, cache=False) as v:
        yield v


def test_types_arrive_as_they_are(verifier: Verifier) -> None:
    items = []
    for value, holds in FAITHFUL:
        check = Check(code=f"def check(c):\n    got = c(1)\n    assert {holds}\n", entry_point="f")
        problem = Problem(task_id=value, source="test", prompt="", mode="instruct", tests=check)
        items.append((problem, f"def f(x): return {value}"))
    verdicts = verifier.verify(items)
    assert [(p.task_id, v) for (p, _), v in zip(items, verdicts, strict=True) if not v.passed] == []


def test_arguments_arrive_as_they_are(verifier: Verifier) -> None:
    code = (
        "from collections import deque\ndef check(c):\n    for v in (1, (2,), {3}, deque([4]), None, int):\n"
    )
    problem = Problem(
        task_id="echo",
        source="test",
        prompt="",
        mode="instruct",
        tests=Check(code=code + "        assert c(v) == (v, type(v).__name__)", entry_point="f"),
    )
    assert verifier.verify([(problem, "def f(x): return x, type(x).__name__")])[0].passed


@pytest.mark.parametrize(
    ("got", "expected", "tolerant", "same"),
    [
        ("1 2\n", "1 2", False, True),
        ("1 2 \n\n", "1 2", False, True),
        ("1\n2", "1 2", False, False),
        ("2 1", "1 2", False, False),
        ("1 2 3", "1 2", False, False),
        ("", "", False, True),
        ("1.0", "1", False, True),
        ("1.50", "1.5", False, True),
        ("0.3333333", "0.33333334", False, False),
        ("0.3333333", "0.33333334", True, True),
        ("0.34", "0.33333334", True, False),
        ("5500.0055", "5500", True, False),
        ("yes", "YES", True, False),
        ("nan", "nan", False, True),
        ("inf", "1e999", False, False),
        ("1_1", "11", False, False),
        ("\uff11\uff12", "12", True, False),  # digits all the same, but no one prints them
    ],
)
def test_output_comparison(got: str, expected: str, tolerant: bool, same: bool) -> None:
    assert same_output(got, expected, tolerant) is same


def test_call_comparison() -> None:
    assert same_call((1, (2, [3])), [1, [2, [3]]], False)
    assert same_call(5, [5], True)
    assert not same_call(5, [5], False)
    assert not same_call([5, 6], [5], True)
    assert same_call({"a": (1,)}, {"a": [1]}, False)
