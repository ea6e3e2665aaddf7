"""The judge's side of a zygote: start it, have it fork, hear how a candidate ended.

Imports little: a judge starts its zygote before it loads the rest of itself.
"""

from __future__ import annotations

import os
import sys

from restrl.sandbox.native import CORE_FILE, core

TYPE_CHECKING = False  # as in typing, which takes its time
if TYPE_CHECKING:
    from typing import Any, NoReturn

START_SECONDS = 10.0
# The native part comes first, so that all that follows lies in huge pages.
_PROGRAM = """\
import sys
from importlib.machinery import ExtensionFileLoader, ModuleSpec, SourceFileLoader
def load(name, loader):
    spec = ModuleSpec(name, loader, origin=loader.path)
    module = loader.create_module(spec) or type(sys)(name)
    module.__spec__, module.__file__ = spec, loader.path
    sys.modules[name] = module
    loader.exec_module(module)
    return module
_, root, core_file, zygote_file, plain_file, settings = sys.argv
sys.path.insert(0, root)
core = load("restrl._sandbox", ExtensionFileLoader("restrl._sandbox", core_file))
core.allocate_in_huge_pages()
plain = load("restrl.sandbox.plain", SourceFileLoader("restrl.sandbox.plain", plain_file))
zygote = load("restrl.sandbox.zygote", SourceFileLoader("restrl.sandbox.zygote", zygote_file))
zygote.main(core, plain, settings)
"""


class InfrastructureError(Exception):
    """The machinery, not the candidate, failed: the item is to be judged again."""


def keep_to(core_number: int | None) -> None:
    """Stay on this core from here on. None: on any."""
    try:
        if core_number is not None:
            os.sched_setaffinity(0, {core_number})
    except OSError:  # it was taken away meanwhile
        pass


def read_text(path: str) -> str:
    with open(path) as file:
        return file.read()


def _out_of_memory_killings() -> int:
    """Of this machine since it started; 0 where the kernel does not say."""
    try:
        counts = dict(line.split() for line in read_text("/proc/vmstat").splitlines())
        return int(counts["oom_kill"])
    except (OSError, KeyError, ValueError):
        return 0


class Zygote:
    """The process that forks candidates; started once per judge with an empty environment."""

    def __init__(self, settings: dict[str, Any], tests: bool = False, children: bool = False) -> None:
        if children:  # fewer processes, and the system's programs
            readable = list(dict.fromkeys([*settings["readable"], *settings["programs"]]))
            settings = {**settings, "children": True, "processes": 32, "readable": readable}
        else:
            settings = {**settings, "programs": []}
        self.control, theirs = core.socketpair()
        here = os.path.dirname(os.path.realpath(__file__))
        root = os.path.dirname(os.path.dirname(here))
        files = [root, CORE_FILE, os.path.join(here, "zygote.py"), os.path.join(here, "plain.py")]
        program = [sys.executable, "-I", "-S", "-X", "utf8", "-c", _PROGRAM, *files]
        arguments = [*program, core.encode({**settings, "tests": tests}).hex()]
        # Above 3, so that the copy to 3 is a real one and is inherited.
        high = os.dup(theirs) if theirs == 3 else theirs
        actions = [
            (os.POSIX_SPAWN_DUP2, high, 3),
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
        ]
        # Functions of libraries are looked up at its start, not in every candidate; it forgets the variable.
        now = {"LD_BIND_NOW": "1"}
        self.pid = os.posix_spawn(sys.executable, arguments, now, file_actions=actions)
        for descriptor in {theirs, high}:
            os.close(descriptor)
        self.max_bytes = int(settings["result_bytes"])
        self.memory_bytes = int(settings["memory_bytes"])
        self.cpu_seconds = int(settings["cpu_seconds"])
        self.children = children
        self._killings = _out_of_memory_killings()

    def wait_ready(self) -> None:
        """Raises InfrastructureError with the reason where the isolation could not be set up."""
        answer = core.receive(self.control, START_SECONDS)
        if answer == b"":
            return
        reason = (
            answer.decode(errors="replace") if isinstance(answer, bytes) else f"no answer at start: {answer}"
        )
        raise InfrastructureError("the zygote ended at start" if answer == "closed" else reason)

    def ask(self, fds: tuple[int, ...], scratch: bool, cpu_seconds: int) -> int:
        """The channel of a new candidate that gets `fds` (stdin, stdout). It need not be there yet."""
        try:
            return int(core.ask(self.control, scratch, cpu_seconds, fds))
        except OSError as error:
            raise InfrastructureError(f"zygote: {error}") from error

    def forked(self) -> tuple[int, float]:
        """(pidfd, or its number, negative; monotonic seconds) of the candidate asked for. Once for each."""
        return self._report(core.forked, START_SECONDS) or self._silent()

    def ended(self, timeout: float) -> tuple[int, int, int, bool] | None:
        """(exit code or -signal, CPU microseconds, peak bytes, whether it had been confined) of the candidate
        that `forked` told of; None if it runs on."""
        return self._report(core.ended, timeout)

    def _report(self, kind: Any, timeout: float) -> Any:
        try:
            return kind(self.control, max(timeout, 0.0))
        except OSError as error:
            raise InfrastructureError(str(error)) from error

    def _silent(self) -> NoReturn:
        raise InfrastructureError("the zygote did not fork")

    def memory_was_short(self) -> bool:
        """Whether the system killed any process for want of memory since this was last asked."""
        before, self._killings = self._killings, _out_of_memory_killings()
        return self._killings > before

    def leave(self) -> None:
        """Hang up and wait until it has ended by itself."""
        os.close(self.control)
        os.waitpid(self.pid, 0)

    def close(self) -> None:
        import signal  # takes its time too

        os.kill(self.pid, signal.SIGKILL)  # it is not reaped before
        self.leave()
