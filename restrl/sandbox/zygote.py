"""The process that forks candidates, and what runs inside them. Started as a script with an empty environment.

    python -I -S zygote.py ROOT CORE.so SETTINGS     (ROOT: restrl's parent folder; SETTINGS: hexadecimal codec bytes)

The parent loop is C++ (`restrl._core.sandbox.serve`); it returns here once per candidate, confined, with the channel
on descriptor 3. What a candidate may see: its own program, set-up code, call arguments or stdin. Never a test.
"""

# The imports are what programs commonly import: done once here, shared by every fork.
import bisect
import collections
import copy
import functools
import gc
import heapq
import importlib.util
import io
import itertools
import math
import operator
import os
import random
import re
import string
import sys
import types
import typing  # noqa: F401

_WARM = (bisect, collections, copy, functools, heapq, itertools, math, operator, random, re, string)
_LONGEST_MESSAGE = 300


def _load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _add_site_builtins():
    import _sitebuiltins

    end_of_file = "Ctrl-D (i.e. EOF)"
    names = vars(sys.modules["builtins"])
    names["exit"] = _sitebuiltins.Quitter("exit", end_of_file)
    names["quit"] = _sitebuiltins.Quitter("quit", end_of_file)
    names["help"] = _sitebuiltins._Helper()


class Candidate:
    """One confined process: loads a program and answers calls, or runs it as a script."""

    def __init__(self, core, plain, channel, limits):
        self.core, self.plain, self.channel = core, plain, channel
        self.max_bytes = limits["result_bytes"]
        self.handles = []

    # -- values

    def _export(self, value):
        pair = self.plain.export(value)
        if pair is None:
            self.handles.append(value)
            return "handle", (len(self.handles) - 1, callable(value), type(value).__name__)
        return pair

    def _restore(self, tag, payload):
        if tag == "handle":
            return self.handles[payload]
        if tag == "ref":
            return eval(payload, self.names)
        return self.plain.restore(tag, payload)

    def _send(self, message, hook=None):
        if not self.core.send(self.channel, self.core.encode(message, hook, self.max_bytes)):
            os._exit(0)

    def _receive(self):
        data = self.core.receive(self.channel)
        if not isinstance(data, bytes):
            os._exit(0)
        return self.core.decode(data, self._restore)

    def _send_value(self, value):
        try:
            self._send(("value", value), self._export)
        except self.core.TooLarge as error:
            self._send(("raise", "output_limit", "", f"result of {error}"))
        except (self.core.Unserialisable, self.plain.Unserialisable, RecursionError) as error:
            self._send(("raise", "unserialisable", "", f"result: {error}"))

    def _send_error(self, error, when):
        kind = type(error)
        base = next((k.__name__ for k in kind.__mro__ if k.__module__ == "builtins"), "Exception")
        status = "memory" if isinstance(error, MemoryError) else "error"
        try:
            text = str(error)[:_LONGEST_MESSAGE]
        except BaseException:
            text = ""
        self._send((when, status, base, f"{kind.__name__}: {text}" if text else kind.__name__))

    # -- programs

    def _module(self, name):
        module = types.ModuleType(name)
        sys.modules[name] = module
        self.names = module.__dict__
        return module

    def _load(self, source, before, after):
        """Run the program as a module; False (and the reason sent) where it does not load."""
        self._module("candidate")
        try:
            if before:
                exec(compile(before, "<setup>", "exec", dont_inherit=True), self.names)
            try:
                exec(compile(source, "<program>", "exec", dont_inherit=True), self.names)
            except SystemExit:
                pass  # a program may end itself; what it defined counts
            if after:
                exec(compile(after, "<setup>", "exec", dont_inherit=True), self.names)
        except BaseException as error:
            self._send_error(error, "load")
            return False
        return True

    def serve(self, source, before, after):
        """Answer calls (target, args, kwargs) until the judge hangs up; a target is an expression or a handle."""
        if not self._load(source, before, after):
            return
        while True:
            target, args, kwargs = self._receive()
            try:
                function = self.handles[target] if isinstance(target, int) else eval(target, self.names)
                value = function(*args, **kwargs)
            except BaseException as error:
                self._send_error(error, "raise")
            else:
                self._send_value(value)

    def batch(self, source, before, name, cases):
        """Call one function with each of `cases`; one answer each."""
        if not self._load(source, before, ""):
            return
        try:
            holder = self.names.get("Solution")
            own = isinstance(holder, type) and name in dir(holder)
            function = getattr(holder(), name) if own else eval(name, self.names)
        except BaseException as error:
            self._send_error(error, "load")
            return
        for args in cases:
            try:
                value = function(*args)
            except BaseException as error:
                self._send_error(error, "raise")
            else:
                self._send_value(value)

    def script(self, source):
        """Run as `python program.py` would, and end the process."""
        sys.modules["__main__"] = self._module("__main__")
        sys.argv = ["program.py"]
        code = 0
        try:
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
            if sys.stdout is not None:
                sys.stdout.flush()
        except BaseException as error:
            self._send_error(error, "raise")
            code = 1
        os._exit(code & 0xFF)


def _standard_streams():
    # Over descriptors 0-2, whatever a fork puts there.
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(
        io.BufferedReader(io.FileIO(0, "r", closefd=False)), encoding="utf-8", errors="surrogateescape"
    )
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(1, "w", closefd=False), 1 << 16),
        encoding="utf-8",
        errors="surrogateescape",
    )
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(2, "w", closefd=False)),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


def main():
    root, core_file, settings_text = sys.argv[1:]
    sys.path.insert(0, root)
    core = _load("restrl._core", core_file).sandbox
    plain = _load("restrl.sandbox.plain", os.path.join(os.path.dirname(__file__), "plain.py"))
    settings = core.decode(bytes.fromhex(settings_text))
    sys.path.remove(root)
    sys.argv = [""]
    sys.orig_argv = ["python"]
    sys.path += settings["sys_path"]
    settings["memory_bytes"] += core.own_address_space()
    core.die_with_parent()
    _add_site_builtins()
    _standard_streams()
    for name in [name for name in sys.modules if name.partition(".")[0] == "restrl"]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()
    channel = core.serve(3, settings)

    core.send(channel, b"R")
    random.seed()
    candidate = Candidate(core, plain, channel, settings)
    mode, *rest = candidate._receive()
    if mode == "serve":
        candidate.serve(*rest)
    elif mode == "batch":
        candidate.batch(*rest)
    elif mode == "script":
        candidate.script(*rest)
    os._exit(0)


if __name__ == "__main__":
    main()
