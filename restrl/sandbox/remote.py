"""The judge's side of a candidate: start it, call into it, watch its limits, end it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from restrl.sandbox.link import Link, Stopped
from restrl.sandbox.native import CORE_FILE, core

CALLER = 0  # descriptor of the socket to the process that asked; its hang-up ends the judge
_ENDED = struct.Struct("iiq")
_START_SECONDS = 10.0


class InfrastructureError(Exception):
    """The machinery, not the candidate, failed: the item is to be judged again."""


class Unjudgeable(Exception):
    """The tests of the problem cannot be run here, whatever the program: judging again would not help."""


def orphaned() -> None:
    os._exit(0)


class Zygote:
    """The process that forks candidates; started once per judge with an empty environment."""

    def __init__(self, settings: dict[str, Any], tests: bool = False) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here = Path(__file__).resolve().parent
        program = [sys.executable, "-I", "-S", "-X", "utf8", str(here / "zygote.py"), str(here.parents[1])]
        arguments = [*program, CORE_FILE, core.encode({**settings, "tests": tests}).hex()]
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

    def leave(self) -> None:
        """Hang up and wait until it has ended by itself."""
        self.socket.close()
        os.waitpid(self.pid, 0)

    def close(self) -> None:
        self.socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


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


class Candidate(Link):
    """One forked candidate. `arm` sets the deadline of every test.

    Time in which the candidate could run but the machine gave it no core does not count, up to `spare`
    seconds: a busy machine must not change verdicts.
    """

    def __init__(
        self, zygote: Zygote, job: tuple[Any, ...], fds: tuple[int, ...] = (), scratch: bool | None = None
    ) -> None:
        super().__init__()
        self.zygote, self.deadline = zygote, time.monotonic() + _START_SECONDS
        self.beside: Candidate | None = None  # that it waits for: what that one waits for a core counts too
        self.cpu_us = 0
        self.spare = 0.0
        self._waited = 0.0
        ours, theirs = socket.socketpair()
        self.channel = ours
        try:
            writes = wants_scratch(job[1]) if scratch is None else scratch
            self.pidfd = zygote.fork([theirs.fileno(), *fds], writes)
        finally:
            theirs.close()
        self.alive = True
        ready = core.receive(ours.fileno(), _START_SECONDS, 4096, CALLER)
        if ready != b"R":
            self.end()
            reason = ready.decode(errors="replace") if isinstance(ready, bytes) else ready
            raise InfrastructureError(f"a candidate could not be confined: {reason}")
        if not self.send(job):
            self.end()
            raise InfrastructureError("a candidate did not take its program")

    def write(self, data: bytes) -> bool:
        return bool(core.send(self.channel.fileno(), data, max(self.deadline - time.monotonic(), 0.01)))

    def cut(self) -> None:
        self.end()

    def stopped(self) -> NoReturn:
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
        more = self.beside._queued() if self.beside is not None else 0.0
        try:
            pid = Path(f"/proc/self/fdinfo/{self.pidfd}").read_text().split("Pid:")[1].split()[0]
            return more + int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError):
            return more

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

    def read(self) -> bytes:
        while True:
            left = max(self.deadline - time.monotonic(), 0.0)
            data = core.receive(self.channel.fileno(), left, self.zygote.max_bytes + 64, CALLER)
            if data != "timeout" or not self._extend():
                break
        if isinstance(data, bytes):
            return data
        if data == "orphaned":
            orphaned()
        if data == "closed":
            self.stopped()
        self.end()
        if data in ("timeout", "cut"):
            raise Stopped("timeout", "time limit")
        raise Stopped("output_limit", "answer too long")

    def finished(self) -> None:
        """Wait for the end of a script; raises what it died of."""
        try:
            self.answer()
        except Stopped as stop:
            if stop.code != 0:
                raise

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
