"""Judges as processes: start them, feed them, replace those that end. One thread owns them all.

That thread starts the judges, so that their parent-death signal is tied to it: they end with this process,
whatever ends it. Nothing is ever forked from the caller (it may hold a model and secrets): judges are fresh
programs.
"""

from __future__ import annotations

import collections
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from restrl.sandbox.native import CORE_FILE, core
from restrl.sandbox.settings import Limits

QUEUE = 3  # items a judge holds: the one it judges and what it goes on with
GRACE = 2.0  # seconds past a verdict's cap before the judge itself is taken to hang
ATTEMPTS = 3
QUEUED_BYTES = (
    32 << 10
)  # a larger task waits for an idle judge: a busy one does not read, and nobody shall wait for it
START_SECONDS = 20.0

_PROGRAM = """\
import importlib.util, sys
root, core = sys.argv[1:3]
sys.path.insert(0, root)
spec = importlib.util.spec_from_file_location("restrl._core", core)
sys.modules["restrl._core"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import restrl
restrl._core = module
sys.path += sys.argv[3:]
from restrl.sandbox.judge import main
main()
"""


class Task:
    """One program to judge. `done` is called once, from the pool's thread, with the judge's answer."""

    def __init__(
        self, program: str, tests: bytes, seconds: float, done: Callable[[dict[str, Any]], None]
    ) -> None:
        self.program, self.tests, self.seconds, self.done = program, tests, seconds, done
        self.attempts = 0


class JudgeProcess:
    """One judge and the tasks it holds, oldest first."""

    def __init__(self, settings: dict[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        root = str(Path(__file__).resolve().parents[2])
        arguments = [sys.executable, "-I", "-S", "-X", "utf8", "-c", _PROGRAM, root, CORE_FILE]
        self.process = subprocess.Popen(
            arguments + settings["sys_path"],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            start_new_session=True,
        )
        theirs.close()
        self.socket = ours
        self.ready = False
        self.tasks: collections.OrderedDict[int, Task] = collections.OrderedDict()
        self.deadline = time.monotonic() + START_SECONDS
        self.send(settings)

    def send(self, message: Any) -> bool:
        return bool(core.send(self.socket.fileno(), core.encode(message), 30.0))

    def restart_clock(self) -> None:
        oldest = next(iter(self.tasks.values()), None)
        self.deadline = time.monotonic() + oldest.seconds + GRACE if oldest else float("inf")

    def end(self) -> None:
        self.socket.close()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Pool:
    """`workers` judges of one isolation tier. Raises RuntimeError with the reason if they cannot start."""

    def __init__(self, settings: dict[str, Any], limits: Limits, workers: int) -> None:
        self.settings, self.limits, self.workers = settings, limits, workers
        self.retries = 0
        self._waiting: collections.deque[Task] = collections.deque()
        self._lock = threading.Lock()
        self._closing = False
        self._numbers = 0
        self._failure: str | None = None
        self._started = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._judges: list[JudgeProcess] = []
        self._thread = threading.Thread(target=self._run, name="restrl-verifier", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            raise RuntimeError(self._failure)

    def submit(self, tasks: list[Task]) -> None:
        with self._lock:
            if self._failure is not None or self._closing:
                raise RuntimeError(self._failure or "the verifier is closed")
            self._waiting.extend(tasks)
        self._signal()

    def close(self) -> None:
        self._closing = True
        self._signal()
        self._thread.join()

    def _signal(self) -> None:
        try:
            self._wake.send(b"w")
        except BlockingIOError:
            pass  # the thread has plenty of reasons to wake already
        except OSError:
            if not self._closing:
                raise

    # -- the pool's thread

    def _run(self) -> None:
        try:
            self._selector.register(self._woken, selectors.EVENT_READ, None)
            for _ in range(self.workers):
                self._start()
            while not self._closing and self._failure is None:
                self._step()
        except Exception as error:  # a waiting caller must hear of it
            self._fail(f"{type(error).__name__}: {error}")
        finally:
            self._stop()

    def _step(self) -> None:
        self._deal()
        left = min((j.deadline for j in self._judges), default=float("inf")) - time.monotonic()
        for key, _ in self._selector.select(None if left == float("inf") else max(left, 0.0)):
            if key.data is None:
                self._woken.recv(4096)
            elif key.data in self._judges:
                self._read(key.data)
        now = time.monotonic()
        for judge in [j for j in self._judges if j.deadline < now]:
            self._overdue(judge)

    def _start(self) -> None:
        judge = JudgeProcess(self.settings)
        self._judges.append(judge)
        self._selector.register(judge.socket, selectors.EVENT_READ, judge)

    def _deal(self) -> None:
        for load in range(QUEUE):
            for judge in self._judges:
                if judge.ready and len(judge.tasks) == load:
                    with self._lock:
                        if not self._waiting:
                            return
                        if (
                            load > 0
                            and len(self._waiting[0].program) + len(self._waiting[0].tests) > QUEUED_BYTES
                        ):
                            return
                        task = self._waiting.popleft()
                    self._numbers += 1
                    judge.tasks[self._numbers] = task
                    if load == 0:
                        judge.restart_clock()
                    judge.send((self._numbers, task.program, task.tests))

    def _read(self, judge: JudgeProcess) -> None:
        data = core.receive(judge.socket.fileno(), 30.0)
        if not isinstance(data, bytes):
            self._replace(judge, "the judge ended")
            return
        kind, *rest = core.decode(data)
        if kind == "ready":
            judge.ready = True
            judge.restart_clock()
            if all(j.ready for j in self._judges):
                self._started.set()
        elif kind == "refused":
            self._fail(str(rest[0]))
        elif kind == "verdict":
            number, statuses, seconds, detail, mode = rest
            task = judge.tasks.pop(number)
            judge.restart_clock()
            task.done({"tests": statuses, "seconds": seconds, "detail": detail, "mode": mode})
        else:
            number, reason = rest
            task = judge.tasks.pop(number)
            judge.restart_clock()
            if kind == "unjudgeable":
                task.done({"tests": None, "seconds": 0.0, "detail": str(reason), "infrastructure": True})
            else:
                self._again(task, str(reason))

    def _overdue(self, judge: JudgeProcess) -> None:
        """A judge that is past its time: its test code, or what it decodes, takes too long."""
        if not judge.ready:
            self._replace(judge, "the judge did not start")
            return
        number, task = next(iter(judge.tasks.items()))
        del judge.tasks[number]
        self._replace(judge, "the judge hung", first_is_guilty=False)
        task.done(
            {"tests": None, "seconds": task.seconds + GRACE, "detail": "time limit (comparing the results)"}
        )

    def _replace(self, judge: JudgeProcess, reason: str, first_is_guilty: bool = True) -> None:
        self._selector.unregister(judge.socket)
        self._judges.remove(judge)
        judge.end()
        tasks = list(judge.tasks.values())
        with self._lock:
            self._waiting.extendleft(reversed(tasks[1:] if first_is_guilty else tasks))
        if tasks and first_is_guilty:
            self._again(tasks[0], reason)
        if not judge.ready:
            self.retries += 1
            if self.retries > ATTEMPTS * self.workers:
                self._fail(f"judges do not start: {reason}")
                return
        self._start()

    def _again(self, task: Task, reason: str) -> None:
        task.attempts += 1
        self.retries += 1
        if task.attempts >= ATTEMPTS:
            task.done({"tests": None, "seconds": 0.0, "detail": reason, "infrastructure": True})
        else:
            with self._lock:
                self._waiting.appendleft(task)

    def _fail(self, reason: str) -> None:
        with self._lock:
            self._failure = reason
            left = [t for j in self._judges for t in j.tasks.values()] + list(self._waiting)
            self._waiting.clear()
        for judge in self._judges:
            judge.tasks.clear()
        for task in left:
            task.done({"tests": None, "seconds": 0.0, "detail": reason, "infrastructure": True})
        self._started.set()

    def _stop(self) -> None:
        for judge in self._judges:
            idle = judge.ready and not judge.tasks
            judge.socket.close()
            if idle:  # ends by itself, its zygote after it
                try:
                    judge.process.wait(2.0)
                except subprocess.TimeoutExpired:
                    idle = False
            if not idle:
                judge.process.kill()
                judge.process.wait()
        self._judges.clear()
        self._selector.close()
        self._wake.close()
        self._woken.close()
