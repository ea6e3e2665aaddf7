"""Data that crosses between judge and candidate: beyond the codec's exact built-in types.

Both processes use this module; neither trusts what the other sends. `export` turns an object into (tag,
payload), `restore` builds it back from data alone: no code of the sender runs, and comparison uses the
receiver's own classes.
Imported by processes that load nothing else of restrl: standard library only.
"""

from __future__ import annotations

import builtins
import collections
import importlib
import itertools
import re
import sys
from collections.abc import Callable
from typing import Any

MAX_ITERATOR_ITEMS = 1_000_000
_LONGEST_PATTERN = 10_000


class Unserialisable(BaseException):
    """A value that is no plain data was compared or sent. Not an Exception: tests must not swallow it."""


class MatchData:
    """What a `re.Match` knows, without its pattern."""

    def __init__(self, text: Any, spans: list[tuple[int, int]], names: dict[str, int]) -> None:
        self.string, self._spans, self._names = text, spans, names
        self.lastindex = max((i for i, s in enumerate(spans) if i and s[0] >= 0), default=None)

    def _index(self, key: int | str) -> int:
        return self._names[key] if isinstance(key, str) else key

    def span(self, key: int | str = 0) -> tuple[int, int]:
        return self._spans[self._index(key)]

    def start(self, key: int | str = 0) -> int:
        return self.span(key)[0]

    def end(self, key: int | str = 0) -> int:
        return self.span(key)[1]

    def __getitem__(self, key: int | str) -> Any:
        start, end = self.span(key)
        return None if start < 0 else self.string[start:end]

    def group(self, *keys: int | str) -> Any:
        return self[keys[0] if keys else 0] if len(keys) < 2 else tuple(self[k] for k in keys)

    def groups(self, default: Any = None) -> tuple[Any, ...]:
        return tuple(default if s[0] < 0 else self.string[s[0] : s[1]] for s in self._spans[1:])

    def groupdict(self, default: Any = None) -> dict[str, Any]:
        return {name: default if self[i] is None else self[i] for name, i in self._names.items()}


_FACTORIES = {t.__name__: t for t in (int, float, str, bool, list, tuple, dict, set)}
_VIEWS = {type({}.keys()): "dict_keys", type({}.values()): "dict_values", type({}.items()): "dict_items"}


def _export_match(m: re.Match[Any]) -> Any:
    return m.string, [m.span(i) for i in range(m.re.groups + 1)], dict(m.re.groupindex)


_EXPORTS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    collections.deque: ("deque", lambda v: (list(v), v.maxlen)),
    collections.Counter: ("counter", lambda v: dict(v)),
    collections.OrderedDict: ("ordered", lambda v: list(v.items())),
    collections.defaultdict: ("default", lambda v: (getattr(v.default_factory, "__name__", None), dict(v))),
    range: ("range", lambda v: (v.start, v.stop, v.step)),
    slice: ("slice", lambda v: (v.start, v.stop, v.step)),
    re.Match: ("match", _export_match),
    re.Pattern: ("pattern", lambda v: (v.pattern, v.flags)),
    memoryview: ("memoryview", bytes),
    type(...): ("ellipsis", lambda v: None),
    type(NotImplemented): ("notimplemented", lambda v: None),
}
# Of modules that few programs load: a process that has not loaded one has no value of it.
_RARE: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "decimal.Decimal": ("decimal", str),
    "fractions.Fraction": ("fraction", lambda v: (v.numerator, v.denominator)),
    "datetime.date": ("date", lambda v: v.isoformat()),
    "datetime.time": ("time", lambda v: v.isoformat()),
    "datetime.datetime": ("datetime", lambda v: v.isoformat()),
    "datetime.timedelta": ("timedelta", lambda v: (v.days, v.seconds, v.microseconds)),
}


def _rare(module: str, name: str) -> Any:
    return vars(importlib.import_module(module))[name]


_RESTORES: dict[str, Callable[[Any], Any]] = {
    "decimal": lambda p: _rare("decimal", "Decimal")(p),
    "fraction": lambda p: _rare("fractions", "Fraction")(*p),
    "date": lambda p: _rare("datetime", "date").fromisoformat(p),
    "time": lambda p: _rare("datetime", "time").fromisoformat(p),
    "datetime": lambda p: _rare("datetime", "datetime").fromisoformat(p),
    "timedelta": lambda p: _rare("datetime", "timedelta")(*p),
    "deque": lambda p: collections.deque(*p),
    "counter": collections.Counter,
    "ordered": collections.OrderedDict,
    "default": lambda p: collections.defaultdict(_FACTORIES.get(p[0]), p[1]),
    "range": lambda p: range(*p),
    "slice": lambda p: slice(*p),
    "match": lambda p: MatchData(*p),
    "pattern": lambda p: _pattern(*p),
    "memoryview": memoryview,
    "ellipsis": lambda p: ...,
    "notimplemented": lambda p: NotImplemented,
    "iterator": iter,
    "dict_keys": lambda p: dict.fromkeys(p).keys(),
    "dict_values": lambda p: dict(enumerate(p)).values(),
    "dict_items": lambda p: dict(p).items(),
    "builtin": lambda p: _builtin(p),
}
# A class derived from one of these travels as the plain value it holds.
_BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, lambda v: int.__add__(v, 0)),
    (float, lambda v: float.__add__(v, 0.0) if v == v else float("nan")),
    (complex, lambda v: complex.__add__(v, 0)),
    (str, lambda v: str.__str__(v)[:] if type(v) is str else "".join(str.__iter__(v))),
    (bytes, lambda v: bytes(bytes.__iter__(v))),
    (tuple, lambda v: tuple(tuple.__iter__(v))),
    (list, lambda v: list(list.__iter__(v))),
    (dict, lambda v: dict(dict.items(v))),
    (set, lambda v: set(set.__iter__(v))),
    (frozenset, lambda v: frozenset(frozenset.__iter__(v))),
)


def _pattern(text: Any, flags: Any) -> re.Pattern[Any]:
    # `re` keeps hundreds of patterns; long ones would fill the judge.
    if type(text) not in (str, bytes) or type(flags) is not int or len(text) > _LONGEST_PATTERN:
        raise ValueError("a pattern this long")
    return re.compile(text, flags & ~re.DEBUG)


def _builtin(name: str) -> Any:
    if name not in _SHARED_BUILTINS:
        raise Unserialisable(f"the builtin {name}")
    return vars(builtins)[name]


_SHARED_BUILTINS = frozenset(
    (
        *(
            "abs",
            "all",
            "any",
            "ascii",
            "bin",
            "bool",
            "bytearray",
            "bytes",
            "callable",
            "chr",
            "complex",
            "dict",
        ),
        *(
            "divmod",
            "enumerate",
            "filter",
            "float",
            "format",
            "frozenset",
            "hash",
            "hex",
            "int",
            "iter",
            "len",
        ),
        *(
            "list",
            "map",
            "max",
            "min",
            "next",
            "object",
            "oct",
            "ord",
            "pow",
            "print",
            "range",
            "repr",
            "reversed",
        ),
        *("round", "set", "slice", "sorted", "str", "sum", "tuple", "type", "zip"),
        *(
            "Exception",
            "ValueError",
            "TypeError",
            "KeyError",
            "IndexError",
            "ZeroDivisionError",
            "ArithmeticError",
        ),
        *("LookupError", "RuntimeError", "StopIteration", "AssertionError", "AttributeError", "NameError"),
    )
)


def export(value: Any) -> tuple[str, Any] | None:
    """(tag, payload) of a value that is no exact built-in, or None where it cannot travel as data."""
    kind = type(value)
    if kind in _EXPORTS:
        tag, take = _EXPORTS[kind]
        return tag, take(value)
    if kind in _VIEWS:
        return _VIEWS[kind], list(value)
    module, name = kind.__module__, kind.__name__
    rare = _RARE.get(f"{module}.{name}") if type(module) is str else None
    if rare is not None and vars(sys.modules.get(module, builtins)).get(name) is kind:
        return rare[0], rare[1](value)
    if (kind.__module__ == "builtins" and "__next__" in kind.__dict__) or kind.__module__ == "itertools":
        items = list(itertools.islice(value, MAX_ITERATOR_ITEMS + 1))
        return ("iterator", items) if len(items) <= MAX_ITERATOR_ITEMS else None
    if kind.__module__ == "numpy" and kind.__name__ != "ndarray" and "item" in dir(kind):
        return "plain", value.item()
    if kind in (type, type(len)):
        name = value.__name__
        return ("builtin", name) if name in _SHARED_BUILTINS and vars(builtins)[name] is value else None
    for base, plain in _BASES:
        if isinstance(value, base):
            return "plain", plain(value)
    return None


def restore(tag: Any, payload: Any) -> Any:
    """The object that `export` described. Raises `Unserialisable` for anything else."""
    if tag == "plain":
        return payload
    build = _RESTORES.get(tag) if isinstance(tag, str) else None
    if build is None:
        raise Unserialisable(f"unknown kind of value {tag!r}")
    try:
        return build(payload)
    except Exception as error:
        raise Unserialisable(f"a malformed {tag}") from error
