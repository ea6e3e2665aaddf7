"""Calls into a program in another process: names and handles that stand for what lives there.

Used by judges, and by the confined processes that hold `unittest` tests (beside.py). What comes back is plain
data or the name of a built-in exception; nothing of the program runs on this side.
"""

from __future__ import annotations

import builtins
from typing import Any, NoReturn

from restrl.sandbox import plain
from restrl.sandbox.native import core

MAX_OBJECTS = 1 << 20  # weighed by what each takes (csrc/bindings/codec.h): a judge's memory is bounded by it


class Stopped(BaseException):
    """The candidate can answer no more; `status` says why. Not an Exception: tests must not swallow it."""

    def __init__(self, status: str, detail: str, code: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.code = status, code


class Refused(Stopped):
    """The program did not load: no test of it can run."""


class Link:
    """One program at the other end of a channel."""

    def __init__(self) -> None:
        self.raised: list[BaseException] = []  # what calls raised: the program's errors, not the tests'
        self.stop: Stopped | None = None  # why it answers no more, whatever the tests made of that
        self.heard = False  # whether it ever answered

    # -- how messages get there and back

    def write(self, data: bytes) -> bool:
        """False if it hung up or does not read in time."""
        raise NotImplementedError

    def read(self) -> bytes:
        """The next message. Raises Stopped where none comes."""
        raise NotImplementedError

    def cut(self) -> None:
        """It sent nonsense, or nothing can come any more."""
        raise NotImplementedError

    # -- calls

    def send(self, message: tuple[Any, ...]) -> bool:
        try:
            data = core.encode(message, self._export)
        except (core.Unserialisable, RecursionError) as error:
            raise plain.Unserialisable(f"argument: {error}") from error
        return self.write(data)

    def call(self, target: str | int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.send((target, args, kwargs))  # one that hung up before may have said why: that is its answer
        return self.answer()

    def loaded(self) -> None:
        """Raises what a call would if the program did not load or has ended; asks where no test called it."""
        if not self.heard:
            self.call("(lambda: 0)", (), {})

    def answer(self) -> Any:
        """The next answer: a value, or the exception it describes is raised."""
        try:
            data = self.read()
        except Stopped as stop:
            self.stop = self.stop or stop
            raise
        self.heard = True
        try:
            message = core.decode(data, self._restore, MAX_OBJECTS)
            kind, *rest = message
            if kind == "value":
                (value,) = rest
                return value
            status, base, text = map(str, rest)
        except core.TooLarge as error:
            self.cut()
            raise Stopped("output_limit", f"result of {error}") from None
        except (core.Unserialisable, OverflowError, ValueError, TypeError, plain.Unserialisable) as error:
            self.cut()
            raise plain.Unserialisable(f"malformed answer: {error}") from None
        self._raise(str(kind), status, base, text)

    def _raise(self, kind: str, status: str, base: str, text: str) -> NoReturn:
        if status not in ("error", "memory", "output_limit", "unserialisable"):
            status = "error"
        if kind == "load":
            self.cut()
            self.stop = Refused(status, text)
            raise self.stop
        if status == "unserialisable":
            raise plain.Unserialisable(text)
        if status != "error":
            raise Stopped(status, text)
        self.raised.append(_exception(base, text))
        raise self.raised[-1]

    def _export(self, value: Any) -> tuple[str, Any]:
        if isinstance(value, Handle) and value._link is self:
            return "handle", value._number
        if isinstance(value, Name) and value._link is self:
            return "ref", value._name
        pair = plain.export(value)
        if pair is None:
            raise plain.Unserialisable(f"an argument of type {type(value).__name__}")
        return pair

    def _restore(self, tag: Any, payload: Any) -> Any:
        if tag == "handle":
            number, is_callable, kind = payload
            return Handle(self, int(number), bool(is_callable), str(kind))
        value = plain.restore(tag, payload)
        # Few bytes, and gigabytes once a test sorts it.
        if type(value) is range and value[plain.MAX_ITERATOR_ITEMS :]:
            raise plain.Unserialisable("a range this long")
        return value


class Handle:
    """An object that stayed in the candidate: it can be called and passed back, never compared."""

    def __init__(self, link: Link, number: int, is_callable: bool, kind: str) -> None:
        self._link, self._number, self._callable, self._kind = link, number, is_callable, kind

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._callable:
            raise plain.Unserialisable(f"a {self._kind} was called")
        return self._link.call(self._number, args, kwargs)

    def _refuse(self, *_: Any) -> Any:
        raise plain.Unserialisable(f"the result is a {self._kind}, which is no plain data")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = _refuse
    __bool__ = __len__ = __iter__ = __getitem__ = __contains__ = __str__ = __repr__ = __format__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __int__ = __float__ = __abs__ = _refuse

    def __getattr__(self, name: str) -> Any:
        raise plain.Unserialisable(f"attribute {name} of a {self._kind}, which is no plain data")


class Name:
    """A name of the candidate's program: call it, or pass it as an argument."""

    def __init__(self, link: Link, name: str) -> None:
        self._link, self._name = link, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._link.call(self._name, args, kwargs)


def _exception(base: str, text: str) -> Exception:
    if base in ("StopIteration", "StopAsyncIteration"):  # would end a test's own `all(map(f, ...))` early
        return RuntimeError(f"the program raised {base}: {text}")
    kind = vars(builtins).get(base)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:
            pass  # its arguments are structured; the text is what matters here
    return Exception(text)
