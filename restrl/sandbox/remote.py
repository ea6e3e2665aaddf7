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
from typing import Any, NoReturn

from restrl.sandbox.link import Link, Stopped
from restrl.sandbox.native import CORE_FILE, core

CALLER = 0  # descriptor of the socket to the process that asked; its hang-up ends the judge
_ENDED = struct.Struct("iiq")
_START_SECONDS = 10.0
_SIGNALS = {int(s): s.name for s in signal.Signals}  # not all: most real-time ones have no name
_LARGE = 0.5  # of its memory limit: a candidate past it that the system killed had run out of memory


class InfrastructureError(Exception):
    """The machinery, not the candidate, failed: the item is to be judged again."""


class Unjudgeable(Exception):
    """The tests of the problem cannot be run here, whatever the program: judging again would not help."""


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _out_of_memory_killings() -> int:
    """Of this machine since it started; 0 where the kernel does not say."""
    try:
        counts = dict(line.split() for line in _read("/proc/vmstat").splitlines())
        return int(counts["oom_kill"])
    except (OSError, KeyError, ValueError):
        return 0


def orphaned() -> None:
    os._exit(0)


class Zygote:
    """The process that forks candidates; started once per judge with an empty environment."""

    def __init__(self, settings: dict[str, Any], tests: bool = False) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here = os.path.dirname(os.path.realpath(__file__))
        root = os.path.dirname(os.path.dirname(here))
        program = [sys.executable, "-I", "-S", "-X", "utf8", os.path.join(here, "zygote.py"), root]
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
        self.memory_bytes = int(settings["memory_bytes"])
        self.cpu_us = int(settings["cpu_seconds"]) * 1_000_000
        self._killings = _out_of_memory_killings()

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

    def ended(self, timeout: float) -> tuple[int, int, int] | None:
        """(exit code or -signal, CPU microseconds, peak bytes) of the candidate; None if it runs on."""
        self.socket.settimeout(max(timeout, 0.0) or 1e-6)
        try:
            data = self.socket.recv(64)
        except (TimeoutError, BlockingIOError):
            return None
        finally:
            self.socket.settimeout(_START_SECONDS)
        if data[:1] != b"X":
            raise InfrastructureError("the zygote ended")
        code, kib, cpu = _ENDED.unpack(data[1:])
        return code, cpu, kib << 10

    def memory_was_short(self) -> bool:
        """Whether the system killed any process for want of memory since this was last asked."""
        before, self._killings = self._killings, _out_of_memory_killings()
        return self._killings > before

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
        ended = self.zygote.ended(max(self.deadline - time.monotonic(), 0.0)) if self.alive else (0, 0, 0)
        if ended is None:
            self.end()
            raise Stopped("timeout", "time limit")
        self.alive, self.cpu_us = False, ended[1]
        code = ended[0]
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and ended[1] >= self.zygote.cpu_us):
            raise Stopped("timeout", "CPU limit")
        if code == -signal.SIGKILL:
            self._killed(ended[2])
        if code < 0:
            raise Stopped("crashed", f"ended by {_SIGNALS.get(-code, f'signal {-code}')}")
        raise Stopped("error" if code == 1 else "crashed", f"ended itself with code {code}", code)

    def _killed(self, peak: int) -> NoReturn:
        """The system kills what is large when memory is short; who else did it cannot be known."""
        short = self.zygote.memory_was_short()  # asked in any case: its own end is not to excuse its next one
        if peak >= _LARGE * self.zygote.memory_bytes:
            raise Stopped("memory", "killed by the system, which had no memory left")
        if short:
            raise InfrastructureError("a small candidate was killed while memory was short")
        raise Stopped("crashed", "killed")

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
            pid = _read(f"/proc/self/fdinfo/{self.pidfd}").split("Pid:")[1].split()[0]
            return more + int(_read(f"/proc/{pid}/schedstat").split()[1]) / 1e9
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
        else:  # a script has nothing to answer: this would hide how it ended
            raise Stopped("crashed", "it wrote to its channel")

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
