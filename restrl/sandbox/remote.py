"""The judge's side of a candidate: start it, call into it, watch its limits, end it."""

from __future__ import annotations

import builtins
import contextlib
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

from restrl.sandbox import plain
from restrl.sandbox.native import CORE_FILE, core

CALLER = 0  # descriptor of the socket to the process that asked; its hang-up ends the judge
_ENDED = struct.Struct("iiq")
_START_SECONDS = 10.0


class InfrastructureError(Exception):
    """The machinery, not the candidate, failed: the item is to be judged again."""


class Stopped(BaseException):
    """The candidate can answer no more; `status` says why. Not an Exception: tests must not swallow it."""

    def __init__(self, status: str, detail: str, code: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.code = status, code


class Refused(Stopped):
    """The program did not load: no test of it can run."""


def orphaned() -> None:
    os._exit(0)


class Zygote:
    """The process that forks candidates; started once per judge with an empty environment."""

    def __init__(self, settings: dict[str, Any]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here = Path(__file__).resolve().parent
        program = [sys.executable, "-I", "-S", "-X", "utf8", str(here / "zygote.py"), str(here.parents[1])]
        arguments = [*program, CORE_FILE, core.encode(settings).hex()]
        # Above 3, so that the copy to 3 is a real one and is inherited.
        high = socket.socket(fileno=os.dup(theirs.fileno())) if theirs.fileno() == 3 else theirs
        actions = [
            (os.POSIX_SPAWN_DUP2, high.fileno(), 3),
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
        ]
        self.pid = os.posix_spawn(sys.executable, arguments, {}, file_actions=actions)
        theirs.close()
        high.close()
        self.socket = ours
        self.max_bytes = int(settings["result_bytes"])

    def wait_ready(self) -> None:
        """Raises InfrastructureError with the reason where the isolation could not be set up."""
        self.socket.settimeout(_START_SECONDS)
        try:
            answer = self.socket.recv(4096)
        except TimeoutError:
            answer = b"Eno answer at start"
        if answer != b"R":
            raise InfrastructureError(answer[1:].decode(errors="replace") or "the zygote ended at start")

    def fork(self, fds: list[int], scratch: bool) -> int:
        """A new candidate that holds `fds` (channel, stdin, stdout); returns its pidfd."""
        try:
            socket.send_fds(self.socket, [b"s" if scratch else b"f"], fds)
            kind, received, _, _ = socket.recv_fds(self.socket, 64, 1)
        except (OSError, TimeoutError) as error:
            raise InfrastructureError(f"zygote: {error}") from error
        if kind != b"F" or len(received) != 1:
            raise InfrastructureError("the zygote ended")
        return received[0]

    def ended(self, timeout: float) -> tuple[int, int] | None:
        """(exit code or -signal, CPU microseconds) of the current candidate; None if it runs on."""
        self.socket.settimeout(max(timeout, 0.0) or 1e-6)
        try:
            data = self.socket.recv(64)
        except (TimeoutError, BlockingIOError):
            return None
        finally:
            self.socket.settimeout(_START_SECONDS)
        if data[:1] != b"X":
            raise InfrastructureError("the zygote ended")
        code, _, cpu = _ENDED.unpack(data[1:])
        return code, cpu

    def close(self) -> None:
        self.socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Handle:
    """An object that stayed in the candidate: it can be called and passed back, never compared."""

    def __init__(self, candidate: Candidate, number: int, is_callable: bool, kind: str) -> None:
        self._candidate, self._number, self._callable, self._kind = candidate, number, is_callable, kind

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._callable:
            raise plain.Unserialisable(f"a {self._kind} was called")
        return self._candidate.call(self._number, args, kwargs)

    def _refuse(self, *_: Any) -> Any:
        raise plain.Unserialisable(f"the result is a {self._kind}, which is no plain data")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = _refuse
    __bool__ = __len__ = __iter__ = __getitem__ = __contains__ = __str__ = __repr__ = __format__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __int__ = __float__ = __abs__ = _refuse

    def __getattr__(self, name: str) -> Any:
        raise plain.Unserialisable(f"attribute {name} of a {self._kind}, which is no plain data")


class Name:
    """A name of the candidate's program: call it, or pass it as an argument."""

    def __init__(self, candidate: Candidate, name: str) -> None:
        self._candidate, self._name = candidate, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._candidate.call(self._name, args, kwargs)


# A program that writes files says one of these somewhere; the others are spared the mount of a scratch place.
_FILE_WORDS = (
    "open",
    "import os",
    "os.",
    "path",
    "temp",
    "shutil",
    "sqlite",
    "import io",
    "shelve",
    "logging",
)


def wants_scratch(program: str) -> bool:
    return any(word in program for word in _FILE_WORDS)


class Candidate:
    """One forked candidate. `arm` sets the deadline of every test.

    Time in which the candidate could run but the machine gave it no core does not count, up to `spare`
    seconds: a busy machine must not change verdicts.
    """

    def __init__(self, zygote: Zygote, job: tuple[Any, ...], fds: tuple[int, ...] = ()) -> None:
        self.zygote, self.deadline = zygote, time.monotonic() + _START_SECONDS
        self.raised: list[BaseException] = []  # what calls raised: the candidate's errors, not the tests'
        self.cpu_us = 0
        self.spare = 0.0
        self._waited = 0.0
        ours, theirs = socket.socketpair()
        self.channel = ours
        try:
            self.pidfd = zygote.fork([theirs.fileno(), *fds], wants_scratch(job[1]))
        finally:
            theirs.close()
        self.alive = True
        ready = core.receive(ours.fileno(), _START_SECONDS, 4096, CALLER)
        if ready != b"R":
            self.end()
            reason = ready.decode(errors="replace") if isinstance(ready, bytes) else ready
            raise InfrastructureError(f"a candidate could not be confined: {reason}")
        if not self._send(job):
            self.end()
            raise InfrastructureError("a candidate did not take its program")

    def _send(self, message: tuple[Any, ...]) -> bool:
        """False if it hung up or the deadline is over."""
        try:
            data = core.encode(message, self._export)
        except (core.Unserialisable, RecursionError) as error:
            raise plain.Unserialisable(f"argument: {error}") from error
        return core.send(self.channel.fileno(), data, max(self.deadline - time.monotonic(), 0.01))

    def _export(self, value: Any) -> tuple[str, Any]:
        if isinstance(value, Name) and value._candidate is self:
            return "ref", value._name
        if isinstance(value, Handle) and value._candidate is self:
            return "handle", value._number
        pair = plain.export(value)
        if pair is None:
            raise plain.Unserialisable(f"an argument of type {type(value).__name__}")
        return pair

    def _restore(self, tag: Any, payload: Any) -> Any:
        if tag == "handle":
            number, is_callable, kind = payload
            return Handle(self, int(number), bool(is_callable), str(kind))
        return plain.restore(tag, payload)

    def _stopped(self) -> None:
        """Raise for a candidate whose channel is closed: the reason is how it ended."""
        ended = self.zygote.ended(max(self.deadline - time.monotonic(), 0.0)) if self.alive else (0, 0)
        if ended is None:
            self.end()
            raise Stopped("timeout", "time limit")
        self.alive, self.cpu_us = False, ended[1]
        code = ended[0]
        if code in (-signal.SIGXCPU, -signal.SIGKILL):
            raise Stopped("timeout", "CPU limit")
        if code < 0:
            raise Stopped("crashed", f"ended by {signal.Signals(-code).name}")
        raise Stopped("error" if code == 1 else "crashed", f"ended itself with code {code}", code)

    def arm(self, deadline: float, spare: float) -> None:
        """Begin a test that ends at `deadline` (monotonic seconds), or up to `spare` later."""
        self.deadline, self.spare = (
            deadline,
            spare,
        )  # what it waited before this test is not asked: that costs

    def _queued(self) -> float:
        """Seconds its first thread has waited for a core so far; 0 where the kernel does not say."""
        try:
            pid = Path(f"/proc/self/fdinfo/{self.pidfd}").read_text().split("Pid:")[1].split()[0]
            return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError):
            return 0.0

    def _extend(self) -> bool:
        """At the deadline: give back the time for which it had no core. False if there is none."""
        waited = self._queued()
        more = min(waited - self._waited, self.spare)
        if more < 0.01:
            return False
        self._waited = waited
        self.spare -= more
        self.deadline = time.monotonic() + more
        return True

    def answer(self) -> Any:
        """The next answer: a value, or the exception it describes is raised."""
        while True:
            left = max(self.deadline - time.monotonic(), 0.0)
            data = core.receive(self.channel.fileno(), left, self.zygote.max_bytes + 64, CALLER)
            if data != "timeout" or not self._extend():
                break
        if not isinstance(data, bytes):
            if data == "orphaned":
                orphaned()
            if data == "closed":
                self._stopped()
            self.end()
            raise (
                Stopped("timeout", "time limit")
                if data in ("timeout", "cut")
                else Stopped("output_limit", "answer too long")
            )
        try:
            message = core.decode(data, self._restore)
            kind, *rest = message
            if kind == "value":
                (value,) = rest
                return value
            status, base, text = map(str, rest)
        except (core.Unserialisable, ValueError, TypeError, plain.Unserialisable) as error:
            self.end()
            raise plain.Unserialisable(f"malformed answer: {error}") from None
        if status not in ("error", "memory", "output_limit", "unserialisable"):
            status = "error"
        if kind == "load":
            self.end()
            raise Refused(status, text)
        if status == "unserialisable":
            raise plain.Unserialisable(text)
        if status != "error":
            raise Stopped(status, text)
        self.raised.append(_exception(base, text))
        raise self.raised[-1]

    def finished(self) -> None:
        """Wait for the end of a script; raises what it died of."""
        try:
            self.answer()
        except Stopped as stop:
            if stop.code != 0:
                raise

    def call(self, target: str | int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._send((target, args, kwargs))  # one that hung up before may have said why: that is its answer
        return self.answer()

    def end(self) -> None:
        """Kill it if it lives, and wait until it is reaped."""
        if self.alive:
            self.alive = False
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            ended = self.zygote.ended(_START_SECONDS)
            if ended is None:
                raise InfrastructureError("a killed candidate did not end")
            self.cpu_us = ended[1]
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
            self.channel.close()

    def output(self, pipe: int, limit: int) -> bytes:
        """What it writes to `pipe` until it closes it. Raises Stopped past `limit` bytes or the deadline."""
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        poll.register(CALLER, 0)
        parts: list[bytes] = []
        size = 0
        while True:
            left = self.deadline - time.monotonic()
            ready = dict(poll.poll(max(left, 0.0) * 1000)) if left > 0 else {}
            if ready.get(CALLER, 0) & (select.POLLHUP | select.POLLERR):
                orphaned()
            if pipe not in ready:
                if left <= 0 and not self._extend():
                    raise Stopped("timeout", "time limit")
                continue
            part = os.read(pipe, 1 << 16)
            if not part:
                return b"".join(parts)
            size += len(part)
            if size > limit:
                raise Stopped("output_limit", f"more than {limit} bytes of output")
            parts.append(part)


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
