"""One judge as a process of this one, and what it is given to do."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from restrl.sandbox.native import CORE_FILE, core

GRACE = 1.0  # seconds past a verdict's cap before the judge itself is taken to hang
PATIENCE = 0.5  # seconds a cancelled task may run on: a fresh judge takes about as long to start
START_SECONDS = 20.0

_PROGRAM = """\
import importlib.util, sys
root, core = sys.argv[1:3]
sys.path.insert(0, root)
spec = importlib.util.spec_from_file_location("restrl._sandbox", core)
sys.modules["restrl._sandbox"] = native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
import restrl
restrl._sandbox = native
sys.path += sys.argv[3:]
native.die_with_parent()
data = native.receive(0)  # the settings
if isinstance(data, bytes):
    settings = native.decode(data)
    from restrl.sandbox.zygotes import Zygote
    zygote = Zygote(settings)  # starts while this loads the rest
    from restrl.sandbox.judge import main
    main(settings, zygote)
"""


class Task:
    """One program to judge. `done` is called once, from the pool's thread, with the judge's answer.

    seconds    cap on the whole, known before
    priority   a task of a higher one is begun first; of equal ones the one that came first
    options    plain data for the judge: {"problem": bytes that no other tests have, "early_exit": bool}
    """

    def __init__(
        self,
        program: str,
        tests: bytes,
        seconds: float,
        done: Callable[[dict[str, Any]], None],
        options: dict[str, Any],
        priority: int = 0,
    ) -> None:
        self.program, self.tests, self.seconds, self.done = program, tests, seconds, done
        self.priority, self.options = priority, options
        self.order = -1  # among all tasks; the first submission counts, also for one that is judged again
        self.attempts = 0
        self.cancelled = False


class JudgeProcess:
    """One judge and the tasks it holds, oldest first."""

    def __init__(self, settings: dict[str, Any], core_number: int | None) -> None:
        ours, theirs = socket.socketpair()
        root = str(Path(__file__).resolve().parents[2])
        arguments = [sys.executable, "-I", "-S", "-X", "utf8", "-c", _PROGRAM, root, CORE_FILE]
        try:
            self.process = subprocess.Popen(
                arguments + settings["sys_path"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.socket = ours
        self.core = core_number
        self.ready = False
        self.tasks: OrderedDict[int, Task] = OrderedDict()
        self.deadline = time.monotonic() + START_SECONDS
        self.send({**settings, "core": core_number})

    def send(self, message: Any) -> bool:
        return bool(core.send(self.socket.fileno(), core.encode(message), 30.0))

    def restart_clock(self, seconds: float | None = None) -> None:
        """A task begins, or goes on for `seconds` more than was known."""
        oldest = next(iter(self.tasks.values()), None)
        if oldest is None:
            self.deadline = float("inf")
        elif oldest.cancelled:
            self.deadline = time.monotonic() + PATIENCE
        else:
            self.deadline = time.monotonic() + (oldest.seconds if seconds is None else seconds) + GRACE

    def end(self) -> None:
        self.socket.close()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
