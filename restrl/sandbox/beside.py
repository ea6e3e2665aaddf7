"""Processes that hold test code and are confined like candidates: forks of a zygote of their own.

split     the tests run here, and the program in a candidate that never sees them: calls go over a channel
context   DS-1000's `test_execution` runs here; the `exec` in it goes to a candidate
guarded   program and tests run in one process, for tests that patch what the program uses. What a program
          changed is put back before the tests come, and after each test a wrong implementation has to fail

The judge only hears of outcomes; in split and context no word of the program's is among them.
"""

from __future__ import annotations

import builtins
import contextlib
import csv
import datetime
import json
import os
import sys
import tempfile
import threading
import types
import unittest
import unittest.mock
from collections.abc import Callable
from typing import Any

from restrl.sandbox import arrays, plain
from restrl.sandbox.link import Link, Refused, Stopped
from restrl.sandbox.mirror import Mirror
from restrl.sandbox.native import core

_WARM = (csv, datetime, json, tempfile, unittest.mock)
_JUDGE = 3  # descriptor of the channel to the judge
_LONGEST = 300
_current_frames = sys._current_frames


class Broken(BaseException):
    """The tests themselves cannot run here."""


class _Channel(Link):
    """The candidate, whose channel this process was given as descriptor 0."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self._fd, self._max_bytes = os.dup(0), max_bytes
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        self.asked = False

    def write(self, data: bytes) -> bool:
        if not self.asked:
            self.asked = True
            tell("asked")
        return bool(core.send(self._fd, data))

    def read(self) -> bytes:
        data = core.receive(self._fd, -1.0, self._max_bytes + 64)
        if isinstance(data, bytes):
            return data
        if data == "closed":
            raise Stopped("closed", "")
        raise Stopped("output_limit", "answer too long")

    def cut(self) -> None:
        """The judge ends it."""


def tell(*message: Any) -> None:
    if not core.send(_JUDGE, core.encode(message)):
        os._exit(0)


def _text(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())[:_LONGEST]
    except BaseException:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _judged(error: BaseException, link: Link | None) -> tuple[str, str]:
    """Status and detail of a test that ended with `error`."""
    if isinstance(error, Refused):
        return "refused " + error.status, str(error)
    if isinstance(error, Stopped):
        return error.status, str(error)
    if isinstance(error, plain.Unserialisable):
        return "unserialisable", str(error)
    if isinstance(error, AssertionError):
        return "failed", _text(error)
    theirs = link is None or any(error is e for e in link.raised)
    if link is None and isinstance(error, MemoryError):
        return "memory", _text(error)
    return ("error" if theirs else "failed"), _text(error)


class _Result(unittest.TestResult):
    """Of one test: passed only if it said so itself and nothing else was said."""

    def __init__(self, link: Link | None) -> None:
        super().__init__()
        self.link, self.passed, self.trouble = link, False, ("", "")

    def _note(self, status: str, detail: str) -> None:
        self.trouble = self.trouble if self.trouble[0] else (status, detail)

    def addSuccess(self, test: Any) -> None:
        self.passed = True

    def addError(self, test: Any, err: Any) -> None:
        self._note(*_judged(err[1], self.link))

    addFailure = addError

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self._note(*_judged(err[1], self.link))

    def addSkip(self, test: Any, reason: str) -> None:
        self._note("failed", f"skipped: {reason}"[:_LONGEST])

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        self._note("failed", "an expected failure is no pass")

    def addUnexpectedSuccess(self, test: Any) -> None:
        self._note("failed", "unexpected success")

    def outcome(self) -> tuple[str, str]:
        if self.trouble[0]:
            return self.trouble
        return ("passed", "") if self.passed else ("failed", "the test did not run to its end")


def _run_method(names: dict[str, Any], method: str, link: Link | None) -> tuple[tuple[str, str], Any]:
    """Outcome of "Class.method", with its class's fixtures, and the test's object."""
    class_name, _, name = method.partition(".")
    try:
        test = names[class_name](name)
        result = _Result(link)
        unittest.TestSuite([test]).run(result)
        if link is not None and result.passed:
            link.loaded()
    except BaseException as error:
        return _judged(error, link), None
    if link is not None and link.stop is not None:  # tests with a bare `except` do not notice
        return _judged(link.stop, link), test
    return result.outcome(), test


def _module(name: str) -> dict[str, Any]:
    module = types.ModuleType(name)
    sys.modules[name] = module
    module.__dict__.update(sys=sys, os=os, environ=os.environ)
    return module.__dict__


def _load(source: str, names: dict[str, Any], file: str = "<tests>") -> None:
    exec(compile(source, file, "exec", dont_inherit=True), names)


def split(settings: dict[str, Any], job: dict[str, Any]) -> None:
    """Run the methods here; the entry point stands for the candidate's function."""
    link = _Channel(settings["result_bytes"])
    names = _module("__test__")
    try:
        for source in job["prefix"]:
            _load(source, names)
        # Without namespaces both see the machine's files, and may write none.
        shares = [what for what in job["shares"] if what != "files" or settings["namespaces"]]
        names[job["entry_point"]] = Mirror(link, shares).function(job["entry_point"])
        _load(job["code"], names)
    except BaseException as error:
        if link.asked:  # tests that call the program as they load: it may be the cause
            status, detail = _judged(link.stop or error, link)
            tell("refused", status.removeprefix("refused "), detail)
        else:
            tell("broken", f"the tests do not load: {_text(error)}")
        return
    tell("ready")
    for method in job["methods"]:
        outcome, _ = _run_method(names, method, link)
        tell("outcome", method, *outcome)


def context(settings: dict[str, Any], job: dict[str, Any]) -> None:
    """Run DS-1000's functions here; what they `exec` runs in the candidate."""
    link = _Channel(settings["result_bytes"])
    names = _module("context")

    def run_there(source: str, env: dict[str, Any] | None = None, _: Any = None) -> None:
        env = names if env is None else env
        given = {key: arrays.pack(value) for key, value in env.items() if key != "__builtins__"}
        try:
            link.send(("run", (source, given), {}))
        except plain.Unserialisable as error:
            if link.heard:  # what the program gave, perhaps
                raise
            raise Broken(f"what the tests give cannot be sent: {error}") from None
        there = set(link.answer())
        for name in job["wanted"]:
            if name in there:
                env[name] = arrays.unpack(link.call("get", (name,), {}))

    names["exec"] = run_there
    try:
        _load(job["code"], names)
    except BaseException as error:
        tell("broken", f"the tests do not load: {_text(error)}")
        return
    tell("ready")
    for test in job["methods"]:
        try:
            names[test](job["program"])
        except Broken as error:
            tell("broken", str(error))
            return
        except BaseException as error:
            tell("outcome", test, *_judged(error, link))
        else:
            tell("outcome", test, "passed", "")


# -- guarded


class Snapshot:
    """What modules and their classes and functions looked like."""

    def __init__(self, modules: list[types.ModuleType]) -> None:
        self.modules = [(m, dict(vars(m))) for m in modules]
        own = [v for m, saved in self.modules for v in saved.values() if _module_of(v) == m.__name__]
        classes = list({id(v): v for v in own if isinstance(v, type)}.values())
        self.classes = [(c, dict(vars(c))) for c in classes if c.__flags__ & _HEAP_TYPE]
        members = [v for _, saved in self.classes for v in saved.values()]
        functions = {id(f): f for f in map(_function, [*own, *members]) if f is not None}
        self.functions = [(f, f.__code__, f.__defaults__, f.__kwdefaults__) for f in functions.values()]

    def differs(self) -> bool:
        """Whether a name was given another value, or a class or function was changed."""
        return (
            any(vars(m).get(k) is not v for m, saved in self.modules for k, v in saved.items())
            or any(vars(c).get(k) is not v for c, saved in self.classes for k, v in saved.items())
            or any(vars(c).keys() - saved.keys() - _LAZY for c, saved in self.classes)
            or any(
                (f.__code__, f.__defaults__, f.__kwdefaults__) != (code, defaults, keywords)
                for f, code, defaults, keywords in self.functions
            )
        )

    def restore(self) -> None:
        for module, saved in self.modules:
            for name, value in saved.items():
                if vars(module).get(name) is not value:
                    vars(module)[name] = value
        for name in vars(builtins).keys() - dict(self.modules)[builtins].keys():
            del vars(builtins)[name]
        for kind, saved in self.classes:
            now = dict(vars(kind))
            for name in now.keys() - saved.keys() - _LAZY:
                with contextlib.suppress(AttributeError, TypeError):
                    type.__delattr__(kind, name)
            for name, value in saved.items():
                if now.get(name) is not value:
                    with contextlib.suppress(AttributeError, TypeError):
                        type.__setattr__(kind, name, value)
        for function, code, defaults, keywords in self.functions:
            function.__code__, function.__defaults__, function.__kwdefaults__ = code, defaults, keywords


_HEAP_TYPE = 1 << 9  # a class that can be changed: made by Python code
_LAZY = {"__annotations__", "__abstractmethods__", "_abc_impl", "__doc__"}  # set by Python itself, later


def _module_of(value: Any) -> Any:
    return value.__module__ if isinstance(value, type | types.FunctionType) else None


def _function(value: Any) -> types.FunctionType | None:
    value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
    value = value.fget if isinstance(value, property) else value
    return value if isinstance(value, types.FunctionType) else None


class Guard:
    """Taken before any program is there: the state to return to, and a `unittest` no program has touched."""

    def __init__(self) -> None:
        unittest.mock.mock_open()  # sets what it sets at its first use
        # Not this process's script and not the modules whose state changes with use.
        kept = [
            m for n, m in sys.modules.items() if n not in ("__main__", "sys") and type(m) is types.ModuleType
        ]
        self.all = Snapshot(kept)
        self.unittest = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "unittest"}
        self.streams = (sys.stdin, sys.stdout, sys.stderr)
        self.hooks = (list(sys.meta_path), list(sys.path_hooks), list(sys.path), sys.excepthook)
        self.tests = Snapshot([*self.unittest.values(), builtins])

    def hide(self) -> None:
        for name in self.unittest:
            del sys.modules[name]

    def bring_back(self) -> None:
        self.all.restore()
        for name in [n for n in sys.modules if n.partition(".")[0] == "unittest"]:
            del sys.modules[name]
        sys.modules.update(self.unittest)
        for module, _ in self.all.modules:
            sys.modules[module.__name__] = module
        sys.stdin, sys.stdout, sys.stderr = self.streams
        sys.meta_path[:], sys.path_hooks[:], sys.path[:], sys.excepthook = self.hooks
        sys.settrace(None)
        sys.setprofile(None)
        threading.settrace(None)
        threading.setprofile(None)


def _wrong(*_: Any, **__: Any) -> Any:
    """The implementation that every test that can tell has to refuse."""
    return object()


class _Classes:
    """The test classes as the tests defined them. Fixtures may set attributes, but no method may change."""

    def __init__(self, classes: set[type]) -> None:
        own = [(c, n, v) for c in classes for n, v in vars(c).items()]
        self.methods = [(c, n, v) for c, n, v in own if _function(v) is not None]
        functions = filter(None, (_function(v) for _, _, v in self.methods))
        self.functions = [(f, f.__code__, f.__defaults__) for f in functions]
        self.names = {c: set(vars(c)) for c in classes}

    def differ(self, test: Any) -> bool:
        """Whether a method is another one, or the object that was a test got methods of its own."""
        known = vars(unittest.TestCase).keys()
        own = vars(test) if test is not None else {}
        return (
            any(vars(c).get(n) is not v for c, n, v in self.methods)
            or any((f.__code__, f.__defaults__) != (code, default) for f, code, default in self.functions)
            or any((vars(c).keys() - names) & known for c, names in self.names.items())
            or any(callable(own[name]) for name in own.keys() & known)
        )


def guarded(guard: Guard, program: str, receive: Callable[[], Any]) -> None:
    """Load the program, put everything back, then receive the tests and run them beside it."""
    names = _module("__test__")
    guard.hide()
    try:
        with contextlib.suppress(SystemExit):  # a program may end itself; what it defined counts
            _load(program, names, "<program>")
    except BaseException as error:
        tell("refused", "memory" if isinstance(error, MemoryError) else "error", _text(error))
        return
    guard.bring_back()
    if len(_current_frames()) > 1:
        tell("refused", "error", "it left threads running")
        return
    tell("loaded")
    job = receive()
    sys.modules["__test__"].__dict__.update(sys=sys, os=os, environ=os.environ)
    entry = job["entry_point"]
    if entry not in names:
        tell("refused", "error", f"NameError: name {entry!r} is not defined")
        return
    try:
        _load(job["code"], names)
    except BaseException as error:
        tell("broken", f"the tests do not load: {_text(error)}")
        return
    classes = _Classes({names[m.partition(".")[0]] for m in job["methods"]})
    tell("ready")
    for method in job["methods"]:
        implementation = names[entry]
        (status, detail), test = _run_method(names, method, None)
        if guard.tests.differs() or classes.differ(test):
            status, detail = "failed", "the program changed the tests"
        failed = True
        if method in job["controls"]:
            names[entry] = _wrong
            failed = _run_method(names, method, None)[0][0] != "passed"
            names[entry] = implementation
        tell("outcome", method, status, detail, failed, job["nonce"])
