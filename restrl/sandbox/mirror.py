"""What `unittest` tests share with a program that runs in another process.

Seeds, environment variables and files go there before a call; variables, files and what was printed come back
after it, and exceptions of the standard library.
Arrays and data frames travel as descriptions of their contents. Other objects stay there: their attributes,
items and methods without arguments can be asked for. No expected value is ever given to the program, so an
object can lie about nothing but itself.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

from restrl.sandbox import arrays, files, plain
from restrl.sandbox.link import Handle, Link, Name, Stopped

_RAISED = "restrl:raised"
# In the candidate: called by the tests' process through a module of its own.
_THERE = f"""\
{Path(arrays.__file__).read_text(encoding="utf-8")}
{Path(files.__file__).read_text(encoding="utf-8")}
import io
def call(function, args, kwargs):
    try:
        return pack(function(*unpack(args), **unpack(kwargs)))
    except BaseException as error:
        if type(error).__module__ == "builtins" and isinstance(error, Exception):
            raise
        return ({_RAISED!r}, [(k.__module__, k.__qualname__) for k in type(error).__mro__], str(error))
def attribute(value, name):
    return pack(getattr(value, name))
def item(value, key):
    return pack(value[key])
def items(value):
    return [pack(v) for v in value]
def size(value):
    return len(value)
def truth(value):
    return bool(value)
def kinds(value):
    return [(k.__module__, k.__qualname__) for k in type(value).__mro__]
def seed(state, arrays_state):
    import random
    random.setstate(state)
    if arrays_state:
        import numpy
        numpy.random.set_state(arrays_state)
def environment(given=None):
    if given is not None:
        os.environ.clear()
        os.environ.update(given)
    return dict(os.environ)
shared = {{}}
def take(gone, written):
    global shared
    shared = apply(gone, written)
def give():
    return changes(shared)
def begin():
    sys.stdout = io.StringIO()
def printed():
    text = sys.stdout.getvalue()
    sys.stdout = sys.__stdout__
    return text
"""
_MODULE = "restrl there"
_MAKE = f"(lambda t, s: exec(t, vars(s.modules.setdefault({_MODULE!r}, type(s)({_MODULE!r})))))"
_THERE_MODULE = f"__import__('sys').modules[{_MODULE!r}]"


class Mirror:
    """The program at the other end of `link`, as its tests see it. `shares`: seed, environ, stdout, files."""

    def __init__(self, link: Link, shares: list[str]) -> None:
        self.link, self.shares = link, shares
        self._made = False
        self._state: Any = self._seeds() if "seed" in shares else None
        self._environ: dict[str, str] | None = None
        self._files: dict[str, Any] = {}
        self._stdout = sys.stdout

    def function(self, name: str) -> Any:
        """What stands for the program's function `name`."""
        there = Name(self.link, name)
        return lambda *args, **kwargs: self.call(there, args, kwargs)

    def ask(self, what: str, *args: Any) -> Any:
        """Call one of the functions above."""
        if not self._made:
            self.link.call(_MAKE, (_THERE, Name(self.link, "__import__('sys')")), {})
            self._made = True
        return self.link.call(f"{_THERE_MODULE}.{what}", args, {})

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        caught = "stdout" in self.shares and sys.stdout is not self._stdout
        self._give()
        if caught:
            self.ask("begin")
        try:
            value = self.ask("call", function, *arrays.pack((args, kwargs)))
        except Stopped:
            raise
        except BaseException:
            self._take(caught)
            raise
        self._take(caught)
        if type(value) is tuple and value[:1] == (_RAISED,):
            self.link.raised.append(_exception(*value[1:]))
            raise self.link.raised[-1]
        return self.shown(value)

    def shown(self, value: Any) -> Any:
        """A result: plain data, arrays, or what stands for an object there."""
        return _with_remotes(arrays.unpack(value), self)

    def _seeds(self) -> Any:
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return random.getstate(), ()
        name, keys, *rest = numpy.random.get_state()
        return random.getstate(), (name, keys.tolist(), *rest)

    def _give(self) -> None:
        if "seed" in self.shares:
            state = self._seeds()
            if state != self._state:
                self._state = state
                self.ask("seed", *state)
        if "files" in self.shares:
            changed = files.changes(self._files)
            if any(changed):
                self.ask("take", *changed)
        if "environ" in self.shares and dict(os.environ) != self._environ:
            self.ask("environment", dict(os.environ))

    def _take(self, caught: bool) -> None:
        if caught:
            try:
                text = self.ask("printed")
            except Exception:  # it put another stream there
                text = ""
            sys.stdout.write(text if isinstance(text, str) else "")
        if "files" in self.shares:
            try:
                self._files = files.apply(*self.ask("give"))
            except (ValueError, TypeError, OSError) as error:
                raise plain.Unserialisable(f"files that cannot be shared: {error}") from None
        if "environ" in self.shares:
            self._environ = self.ask("environment")
            if not isinstance(self._environ, dict) or not all(
                isinstance(s, str) for pair in self._environ.items() for s in pair
            ):
                raise plain.Unserialisable("no environment")
            if self._environ != dict(os.environ):
                os.environ.clear()
                os.environ.update(self._environ)


def _with_remotes(value: Any, mirror: Mirror) -> Any:
    if type(value) is Handle:
        return Remote(value, mirror)
    if type(value) in (list, tuple):
        return type(value)(_with_remotes(v, mirror) for v in value)
    if type(value) is dict:
        return {key: _with_remotes(v, mirror) for key, v in value.items()}
    return value


class Remote(Handle):
    """An object that stayed in the candidate. Comparing it is refused, and calling it with arguments."""

    def __init__(self, handle: Handle, mirror: Mirror) -> None:
        super().__init__(handle._link, handle._number, handle._callable, handle._kind)
        self._mirror = mirror
        self._known: type | None = None

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The most special class of the object that is known here too, for `isinstance`."""
        if self._known is None:
            kinds = self._mirror.ask("kinds", self)
            found = (_known_class(*map(str, kind)) for kind in kinds)
            self._known = next((kind for kind in found if kind is not None), Remote)
        return self._known

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            raise plain.Unserialisable(f"a {self._kind} was called with arguments")
        return self._mirror.shown(self._mirror.ask("call", self, (), {}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._mirror.shown(self._mirror.ask("attribute", self, name))

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, int | slice):
            raise plain.Unserialisable(f"a {self._kind} was asked for {key!r}")
        return self._mirror.shown(self._mirror.ask("item", self, key))

    def __iter__(self) -> Any:
        return iter(self._mirror.shown(self._mirror.ask("items", self)))

    def __len__(self) -> int:
        return int(self._mirror.ask("size", self))

    def __bool__(self) -> bool:
        return bool(self._mirror.ask("truth", self))


def _exception(kinds: Any, text: Any) -> BaseException:
    """Of the most special class of the standard library that is known here; nothing of it runs."""
    text = str(text)
    for module, name in kinds:
        kind = _known_class(str(module), str(name))
        ours = str(module).partition(".")[0] in sys.stdlib_module_names - {"unittest"}
        if kind is SystemExit:
            return SystemExit(int(text) if text.isdecimal() else text)
        if ours and kind is not None and issubclass(kind, Exception | KeyboardInterrupt):
            error = kind.__new__(kind)
            error.args = (text,)
            return error
    return Exception(text)


def _known_class(module: str, name: str) -> type | None:
    found = vars(sys.modules[module]).get(name) if module in sys.modules else None
    return found if isinstance(found, type) and found is not object else None
