"""The process that forks candidates, and what runs in them. Started by zygotes.py, without an environment.

The parent loop is C++ (`restrl._sandbox.serve`); it returns here once per candidate, confined, with the
channel on descriptor 3. What a candidate may see: its own program, set-up code, call arguments or stdin.
Never a test.
"""

# The imports are what programs commonly import: done once here, shared by every fork.
import collections
import contextlib
import copy
import functools
import gc
import heapq
import io
import itertools
import math
import operator
import os
import re
import string
import sys
import types
from typing import Any

_WARM = (collections, copy, functools, heapq, itertools, math, operator, re, string)
_LONGEST_MESSAGE = 300


def _add_site_builtins() -> None:
    import _sitebuiltins

    end_of_file = "Ctrl-D (i.e. EOF)"
    names = vars(sys.modules["builtins"])
    names["exit"] = _sitebuiltins.Quitter("exit", end_of_file)
    names["quit"] = _sitebuiltins.Quitter("quit", end_of_file)
    names["help"] = _sitebuiltins._Helper()


class Candidate:
    """One confined process: loads a program and answers calls, or runs it as a script."""

    def __init__(self, core: Any, plain: Any, channel: int, limits: dict[str, Any]) -> None:
        self.core, self.plain, self.channel = core, plain, channel
        self.max_bytes = limits["result_bytes"]
        self.handles: list[Any] = []
        self.names: dict[str, Any] = {}

    # -- values

    def _export(self, value: Any) -> tuple[str, Any]:
        pair = self.plain.export(value)
        if pair is None:
            self.handles.append(value)
            return "handle", (len(self.handles) - 1, callable(value), type(value).__name__)
        return pair

    def _restore(self, tag: str, payload: Any) -> Any:
        if tag == "handle":
            return self.handles[payload]
        if tag == "ref":
            return eval(payload, self.names)
        return self.plain.restore(tag, payload)

    def _send(self, message: tuple[Any, ...], hook: Any = None) -> None:
        if not self.core.send(self.channel, self.core.encode(message, hook, self.max_bytes)):
            os._exit(0)

    def _receive(self) -> Any:
        data = self.core.receive(self.channel)
        if not isinstance(data, bytes):
            os._exit(0)
        return self.core.decode(data, self._restore)

    def _send_value(self, value: Any) -> None:
        try:
            self._send(("value", value), self._export)
        except self.core.TooLarge as error:
            self._send(("raise", "output_limit", "", f"result of {error}"))
        except (self.core.Unserialisable, self.plain.Unserialisable, RecursionError) as error:
            self._send(("raise", "unserialisable", "", f"result: {error}"))

    def _send_error(self, error: BaseException, when: str) -> None:
        kind = type(error)
        base = next((k.__name__ for k in kind.__mro__ if k.__module__ == "builtins"), "Exception")
        status = "memory" if isinstance(error, MemoryError) else "error"
        try:
            text = str(error)[:_LONGEST_MESSAGE]
        except BaseException:
            text = ""
        self._send((when, status, base, f"{kind.__name__}: {text}" if text else kind.__name__))

    # -- programs

    def _module(self, name: str) -> types.ModuleType:
        module = types.ModuleType(name)
        module.__file__ = "/tmp/program.py"  # as that of any file: nothing lies there
        sys.modules[name] = module
        self.names = module.__dict__
        return module

    def _load(self, source: str, before: str, after: str) -> bool:
        """Run the program as a module; False (and the reason sent) where it does not load."""
        self._module("candidate")
        try:
            if before:
                exec(compile(before, "<setup>", "exec", dont_inherit=True), self.names)
            with contextlib.suppress(SystemExit):  # a program may end itself; what it defined counts
                exec(compile(source, "<program>", "exec", dont_inherit=True), self.names)
            if after:
                exec(compile(after, "<setup>", "exec", dont_inherit=True), self.names)
        except BaseException as error:
            self._send_error(error, "load")
            return False
        return True

    def serve(self, source: str, before: str, after: str) -> None:
        """Answer calls (target, args, kwargs) until the judge hangs up; a target is a name or a handle."""
        if self._load(source, before, after):
            own = (self.handles, self._restore, self._send_value, self._send_error, self.max_bytes)
            self.core.answer_calls(self.channel, self.names, *own)

    def batch(self, source: str, before: str, name: str, cases: list[Any]) -> None:
        """Call one function with each of `cases`; one answer each."""
        if not self._load(source, before, ""):
            return
        try:
            holder: Any = self.names.get("Solution")
            inside = isinstance(holder, type) and name in dir(holder)
            function = getattr(holder(), name) if inside else eval(name, self.names)
        except BaseException as error:
            self._send_error(error, "load")
            return
        own = (self._send_value, self._send_error, self.max_bytes)
        self.core.answer_cases(self.channel, function, cases, *own)

    def _let_go(self) -> None:
        """What the end of an interpreter does: files left open write what they kept, destructors run."""
        sys.modules.pop("__main__", None)
        self.names = {}
        gc.collect()

    def script(self, source: str, before: str) -> None:
        """Run as `python program.py` would, with the names that `before` imports, and end the process."""
        self._module("__main__")
        sys.argv = ["program.py"]
        if "/dev/std" in source:
            _open_standard_paths()
        code = 0
        try:
            if before:
                exec(compile(before, "<setup>", "exec", dont_inherit=True), self.names)
            exec(compile(source, "<program>", "exec", dont_inherit=True), self.names)
        except SystemExit as error:
            code = 0 if error.code is None else error.code if isinstance(error.code, int) else 1
        except BaseException as error:
            self._send_error(error, "raise")
            code = 1
        try:
            if "threading" in sys.modules:
                sys.modules["threading"]._shutdown()
            if "atexit" in sys.modules:
                sys.modules["atexit"]._run_exitfuncs()
            _flush(sys.stdout)
            if any(word in source for word in _LEFT_TO_THE_END):
                self._let_go()
            with contextlib.suppress(ValueError):  # it gave up its buffer to another one
                _flush(sys.__stdout__)
        except BaseException as error:
            self._send_error(error, "raise")
            code = 1
        os._exit(code & 0xFF)


# A script says one of these where its end has something left to do; the others are spared the search for it.
_LEFT_TO_THE_END = ("open", "__del__", "weakref", "Writer", "Wrapper", "FileIO", "writer")


def _standard_streams() -> None:
    # Over descriptors 0-2, whatever a fork puts there. They keep what they find now: stdout is a pipe.
    null, (out, into) = os.dup(1), os.pipe()
    os.dup2(into, 1)
    sys.stdin = io.TextIOWrapper(
        io.BufferedReader(_file(0, "<stdin>", "r")), encoding="utf-8", errors="surrogateescape"
    )
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_file(1, "<stdout>", "w"), 1 << 16), encoding="utf-8", errors="surrogateescape"
    )
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_file(2, "<stderr>", "w")),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )
    os.dup2(null, 1)
    for descriptor in (null, out, into):
        os.close(descriptor)
    for stream, mode in ((sys.stdin, "r"), (sys.stdout, "w"), (sys.stderr, "w")):
        vars(stream)["mode"] = mode  # programs that read in a hurry ask for it
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)


def _flush(stream: Any) -> None:
    if stream is not None and not getattr(stream, "closed", False):
        stream.flush()


def _file(descriptor: int, name: str, mode: str) -> io.FileIO:
    file = io.FileIO(descriptor, mode, closefd=False)
    vars(file)["name"] = name
    return file


def _open_standard_paths() -> None:
    """/dev/stdin and its like for `open`: they are links into /proc, which a candidate does not have."""
    paths = {f"/dev/{name}": number for number, name in enumerate(("stdin", "stdout", "stderr"))}
    plain_open = io.open

    def open(file: Any, *args: Any, **kwargs: Any) -> Any:
        path = os.fspath(file) if isinstance(file, os.PathLike) else file
        known = isinstance(path, str) and path in paths
        return plain_open(os.dup(paths[path]) if known else file, *args, **kwargs)

    io.open = vars(sys.modules["builtins"])["open"] = open


_WARM_UPS = 10  # after which the interpreter has made its own code as fast as it can
_FIRST_PROGRAM = """\
from typing import List
def f(x: List[int]) -> int:
    \'\'\'Words.\'\'\'
    if x == 0:
        raise ValueError(f"{x!r}")
    return sorted([x, 2])[:1] + [str(v) for v in {1: 2}.items()]
"""


def _warm_up(core: Any, plain: Any, settings: dict[str, Any]) -> None:
    """Do once what every candidate does: no fork then pays for what the interpreter sets up at first use."""
    for _ in range(_WARM_UPS):
        ours, theirs = core.socketpair()
        candidate = Candidate(core, plain, ours, settings)
        core.send(theirs, core.encode(("batch", _FIRST_PROGRAM, "", "f", [[1], [0]])))
        candidate.batch(*candidate._receive()[1:])
        calls: list[Any] = [("serve", _FIRST_PROGRAM, "", ""), ("f", ([1],), {}), ("f", ([0],), {})]
        for message in calls:
            core.send(theirs, core.encode(message))
        job = candidate._receive()
        core.hang_up(theirs)
        candidate.serve(*job[1:])
        os.close(ours)
        os.close(theirs)
    del sys.modules["candidate"]


def main(core: Any, plain: Any, settings_text: str) -> None:
    os.environ.clear()
    settings = core.decode(bytes.fromhex(settings_text))
    holder: Any = None
    if settings["tests"]:
        import restrl

        vars(restrl)["_sandbox"] = core
        from restrl.sandbox import beside

        holder = beside
    del sys.path[0]
    sys.argv = [""]
    sys.orig_argv = ["python"]
    sys.path += settings["sys_path"]
    core.die_with_parent()
    _add_site_builtins()
    _standard_streams()
    _warm_up(core, plain, settings)
    settings["memory_bytes"] += core.own_address_space()
    for name in [name for name in sys.modules if name.partition(".")[0] == "restrl"]:
        del sys.modules[name]
    guard = holder.Guard() if holder is not None else None
    gc.collect()
    gc.freeze()
    candidate = Candidate(core, plain, 3, settings)
    if settings.get("core") is not None:
        with contextlib.suppress(OSError):  # it was taken away meanwhile
            os.sched_setaffinity(0, {settings["core"]})
    core.serve(3, settings)

    mode, *rest = candidate._receive()
    if mode == "guarded":
        holder.guarded(guard, rest[0], candidate._receive)
    elif holder is not None:
        {"split": holder.split, "context": holder.context}[mode](settings, rest[0])
    else:
        runs: dict[str, Any] = {
            "serve": candidate.serve,
            "batch": candidate.batch,
            "script": candidate.script,
        }
        runs[mode](*rest)
    os._exit(0)
