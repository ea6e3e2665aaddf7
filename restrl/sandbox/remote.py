"""The judge's side of a candidate: start it, call into it, watch its limits, end it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from typing import Any, NoReturn

from restrl.sandbox.link import Link, Stopped
from restrl.sandbox.native import core
from restrl.sandbox.zygotes import START_SECONDS, InfrastructureError, Zygote, read_text

CALLER = 0  # descriptor of the socket to the process that asked; its hang-up ends the judge
_SIGNALS = {int(s): s.name for s in signal.Signals}  # not all: most real-time ones have no name
_WATCH_SECONDS = 0.05  # between looks at the memory of a candidate's children
_LARGE = 0.5  # of its memory limit: a candidate past it that the system killed had run out of memory


class Unjudgeable(Exception):
    """The tests of the problem cannot be run here, whatever the program: judging again would not help."""


def tree_bytes(pid: int) -> int:
    """Memory that `pid` and all below it hold (bytes): what they share counts for each of them."""
    total = 0
    with contextlib.suppress(OSError, ValueError, IndexError):  # it ended meanwhile
        total = int(read_text(f"/proc/{pid}/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in read_text(f"/proc/{pid}/task/{thread}/children").split():
                total += tree_bytes(int(child))
    return total


def can_watch_children() -> bool:
    """Whether this kernel lists the children of a process (CONFIG_PROC_CHILDREN)."""
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def orphaned() -> None:
    os._exit(0)


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


def _kill(pidfd: int) -> None:
    if sys.platform == "linux" and pidfd > 0:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    else:  # a number, and its process group; it is the zygote's child until its end was told
        os.killpg(-pidfd, signal.SIGKILL)


class Candidate(Link):
    """One forked candidate. `arm` sets the deadline of every test.

    Time in which the candidate could run but the machine gave it no core does not count, up to `spare`
    seconds: a busy machine must not change verdicts.
    """

    def __init__(
        self,
        zygote: Zygote,
        job: tuple[Any, ...],
        fds: tuple[int, ...] = (),
        scratch: bool | None = None,
        cpu_seconds: float = 0.0,
    ) -> None:
        super().__init__()
        self.cpu_seconds = max(zygote.cpu_seconds, int(cpu_seconds))
        self.zygote, self.deadline = zygote, time.monotonic() + START_SECONDS
        self.beside: Candidate | None = None  # that it waits for: what that one waits for a core counts too
        self.cpu_us = 0
        self.spare = 0.0
        self._asked = time.monotonic()
        self._forked: tuple[int, float] | None = None
        self._waited = 0.0
        self._looked = 0.0
        self._last: bytes = b""  # what it said last
        self.alive = self.confined = True
        writes = wants_scratch(job[1]) if scratch is None else scratch
        self.channel = zygote.ask(fds, writes, self.cpu_seconds)
        if not self.send(job):
            self.end()
            raise InfrastructureError("a candidate did not take its program")

    @property
    def pidfd(self) -> int:
        """Its pidfd, or its number, negative. Waits until it is there."""
        if self._forked is None:
            self._forked = self.zygote.forked()
        return self._forked[0]

    def write(self, data: bytes) -> bool:
        return bool(core.send(self.channel, data, max(self.deadline - time.monotonic(), 0.01)))

    def cut(self) -> None:
        self.end()
        self._was_confined(self._last.decode(errors="replace"))

    def _was_confined(self, reason: str) -> None:
        if not self.confined:
            raise InfrastructureError(f"a candidate could not be confined: {reason}")

    def stopped(self) -> NoReturn:
        """Raise for a candidate whose channel is closed: the reason is how it ended."""
        code, cpu_us, peak = 0, 0, 0
        if self.alive and self.pidfd:
            ended = self.zygote.ended(self.deadline - time.monotonic())
            if ended is None:
                self.end()
                raise Stopped("timeout", "time limit")
            self.alive = False
            code, cpu_us, peak, self.confined = ended
            self._was_confined(f"it ended with {code}")
        self.cpu_us = cpu_us
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and cpu_us >= self.cpu_seconds * 1_000_000):
            raise Stopped("timeout", "CPU limit")
        if code == -signal.SIGKILL:
            self._killed(peak)
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
        """Seconds its first thread has waited for a core so far, and to be forked; 0 where none can say."""
        waited = self.beside._queued() if self.beside is not None else 0.0
        with contextlib.suppress(OSError, IndexError):
            waited += int(read_text(f"/proc/{self._pid()}/schedstat").split()[1]) / 1e9
        return waited + (self._forked[1] - self._asked if self._forked is not None else 0.0)

    def _pid(self) -> int:
        """Raises OSError or IndexError where it has ended."""
        return int(read_text(f"/proc/self/fdinfo/{self.pidfd}").split("Pid:")[1].split()[0])

    def _watch(self) -> None:
        """Now and then: what a candidate and its children hold together; each has a limit of its own."""
        now = time.monotonic()
        if now < self._looked + _WATCH_SECONDS:
            return
        self._looked = now
        with contextlib.suppress(OSError, IndexError):
            if tree_bytes(self._pid()) > self.zygote.memory_bytes:
                self.end()
                raise Stopped("memory", "it and the programs it started held too much together")
        if self.beside is not None and self.beside.zygote.children:
            try:
                self.beside._watch()
            except Stopped:
                self.end()
                raise

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
            if self.zygote.children:
                self._watch()
                wait = min(left, _WATCH_SECONDS)
            else:
                wait = left
            data = core.receive(self.channel, wait, self.zygote.max_bytes + 64, CALLER)
            if data != "timeout" or (wait == left and not self._extend()):
                break
        if isinstance(data, bytes):
            self._last = data
            return data
        if data == "orphaned":
            orphaned()
        if data == "closed":
            self.stopped()
        self.end()
        self._was_confined("not within its time limit")
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
                _kill(self.pidfd)
            ended = self.zygote.ended(START_SECONDS)
            if ended is None:
                raise InfrastructureError("a killed candidate did not end")
            self.cpu_us, self.confined = ended[1], ended[3]
        if self._forked is not None and self._forked[0] > 0:
            os.close(self._forked[0])
        self._forked = (0, self._asked)
        if self.channel >= 0:
            os.close(self.channel)
        self.channel = -1

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
                    self.end()
                    self._was_confined("not within its time limit")
                    raise Stopped("timeout", "time limit")
                continue
            part = os.read(pipe, 1 << 16)
            if not part:
                return b"".join(parts)
            size += len(part)
            if size > limit:
                raise Stopped("output_limit", f"more than {limit} bytes of output")
            parts.append(part)
