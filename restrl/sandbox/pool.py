"""Judges as processes: start them, feed them, replace those that end. One thread owns them all.

That thread starts the judges, so that their parent-death signal is tied to it: they end with this process,
whatever ends it. Nothing is ever forked from the caller (it may hold a model and secrets): judges are fresh
programs.

    submit ──► heap (priority, then order) ──► at most QUEUE tasks per judge ──► done(answer), once
    cancel ──► leaves the heap at once; a task that a judge already holds ends unheard
"""

from __future__ import annotations

import heapq
import selectors
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import Any

from restrl.sandbox.native import core
from restrl.sandbox.process import GRACE, PATIENCE, JudgeProcess, Task
from restrl.sandbox.settings import PLACES, Limits, usable_cores

QUEUE = 3  # items a judge holds: the one it judges and what it goes on with
ATTEMPTS = 3
QUEUED_BYTES = (
    32 << 10
)  # a larger task waits for an idle judge: a busy one does not read, and nobody shall wait for it


@dataclass
class Counts:
    """What a pool did. retries: tasks judged again; replaced: judges that ended, hung or were cut short;
    given_up: tasks that the machinery failed `ATTEMPTS` times, or that cannot be judged at all."""

    judged: int = 0
    cancelled: int = 0
    retries: int = 0
    replaced: int = 0
    given_up: int = 0


class Pool:
    """`workers` judges of one isolation tier. Raises RuntimeError with the reason if they cannot start."""

    def __init__(self, settings: dict[str, Any], limits: Limits, workers: int) -> None:
        self.settings, self.limits, self.workers = settings, limits, workers
        self.counts = Counts()
        self._heap: list[tuple[int, int, Task]] = []  # (-priority, order, task); cancelled ones are skipped
        self._orders = 0
        self._lock = threading.Lock()
        self._closing = False
        self._numbers = 0
        self._false_starts = 0
        self._failure: str | None = None
        self._started = threading.Event()
        self._signalled = False
        self._recheck = False  # a task that a judge holds was cancelled
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

    @property
    def inside(self) -> bool:
        """Whether the caller is the pool's own thread, as in `done`."""
        return threading.current_thread() is self._thread

    def submit(self, task: Task) -> None:
        with self._lock:
            if self._failure is not None or self._closing:
                raise RuntimeError(self._failure or "the verifier is closed")
            self._push(task)
        self._signal()

    def cancel(self, task: Task) -> None:
        """Its `done` may still be called by an answer that is on its way, and will not be otherwise."""
        with self._lock:
            task.cancelled = self._recheck = True
            self.counts.cancelled += 1
        self._signal()

    def raise_priority(self, task: Task, priority: int) -> None:
        """For a task that still waits: somebody else wants the same, and sooner."""
        with self._lock:
            task.priority = max(priority, task.priority)
            self._heap = [(-task.priority if t is task else p, order, t) for p, order, t in self._heap]
            heapq.heapify(self._heap)

    def close(self) -> None:
        self._closing = True
        self._signal()
        self._thread.join()

    def _signal(self) -> None:
        if self._signalled or self.inside:
            return
        self._signalled = True
        try:
            self._wake.send(b"w")
        except BlockingIOError:
            pass  # the thread has plenty of reasons to wake already
        except OSError:
            if not self._closing:
                raise

    # -- the queue, under the lock

    def _push(self, task: Task) -> None:
        if task.order < 0:
            task.order = self._orders
            self._orders += 1
        heapq.heappush(self._heap, (-task.priority, task.order, task))

    def _next(self, most_bytes: float) -> Task | None:
        while self._heap and self._heap[0][2].cancelled:
            heapq.heappop(self._heap)
        if not self._heap:
            return None
        task = self._heap[0][2]
        if len(task.program) + len(task.tests) > most_bytes:
            return None
        return heapq.heappop(self._heap)[2]

    # -- the pool's thread

    def _run(self) -> None:
        try:
            self._selector.register(self._woken, selectors.EVENT_READ, None)
            self._start()  # the others when the first has shown that it can be done here
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
                self._signalled = False
            elif key.data in self._judges:
                self._read(key.data)
        if self._recheck:
            self._recheck = False
            for judge in self._judges:
                first = next(iter(judge.tasks.values()), None)
                if first is not None and first.cancelled:
                    judge.deadline = min(judge.deadline, time.monotonic() + PATIENCE)
        now = time.monotonic()
        for judge in [j for j in self._judges if j.deadline < now]:
            self._overdue(judge)

    def _start(self) -> None:
        while True:
            try:
                judge = JudgeProcess(self.settings, self._free_core())
                break
            except OSError:  # no process or descriptor to be had just now
                self._false_starts += 1
                if self._false_starts > ATTEMPTS * self.workers:
                    raise
                time.sleep(0.1 * self._false_starts)
        self._judges.append(judge)
        self._selector.register(judge.socket, selectors.EVENT_READ, judge)

    def _free_core(self) -> int | None:
        """The core of the next judge, where there are enough judges for every core; else the system's choice.

        Judge, zygote and candidate take turns, so they lose nothing on one core. Left to itself the system
        moves them all the time, and often puts two judges on one core while another is idle.
        """
        cores = usable_cores()
        if not PLACES or self.workers < len(cores):
            return None
        taken = [judge.core for judge in self._judges]
        return min(cores, key=taken.count)

    def _deal(self) -> None:
        # While some start, the others take no more than they can judge at once.
        loads = QUEUE if all(judge.ready for judge in self._judges) else 1
        for load in range(loads):
            for judge in self._judges:
                if judge.ready and len(judge.tasks) == load:
                    with self._lock:
                        task = self._next(float("inf") if load == 0 else QUEUED_BYTES)
                    if task is None:
                        return
                    self._numbers += 1
                    judge.tasks[self._numbers] = task
                    if load == 0:
                        judge.restart_clock()
                    judge.send((self._numbers, task.program, task.tests, task.options))

    def _read(self, judge: JudgeProcess) -> None:
        data = core.receive(judge.socket.fileno(), 30.0)
        if not isinstance(data, bytes):
            self._replace(judge, "the judge ended")
            return
        kind, *rest = core.decode(data)
        if kind == "ready":
            judge.ready = True
            self._false_starts = 0
            judge.restart_clock()
            self._started.set()
            while len(self._judges) < self.workers:
                self._start()
        elif kind == "refused":
            if self._started.is_set():  # it could be done here before: something was killed
                self._replace(judge, str(rest[0]))
            else:
                self._fail(str(rest[0]))
        elif kind == "longer":
            judge.restart_clock(float(rest[1]))
        elif kind == "verdict":
            number, statuses, seconds, detail, mode = rest
            task = judge.tasks.pop(number)
            judge.restart_clock()
            self._done(task, {"tests": statuses, "seconds": seconds, "detail": detail, "mode": mode})
        else:
            number, reason = rest
            task = judge.tasks.pop(number)
            judge.restart_clock()
            if kind == "unjudgeable":
                self._give_up(task, str(reason))
            else:
                self._again(task, str(reason))

    def _done(self, task: Task, answer: dict[str, Any]) -> None:
        if not task.cancelled:
            self.counts.judged += 1
            task.done(answer)

    def _overdue(self, judge: JudgeProcess) -> None:
        """A judge past its time: its test code, or what it decodes, takes too long, or nobody waits."""
        if not judge.ready:
            self._replace(judge, "the judge did not start")
            return
        number, task = next(iter(judge.tasks.items()))
        del judge.tasks[number]
        self._replace(judge, "the judge hung", first_is_guilty=False)
        detail = "time limit (comparing the results)"
        self._done(task, {"tests": None, "seconds": task.seconds + GRACE, "detail": detail})

    def _replace(self, judge: JudgeProcess, reason: str, first_is_guilty: bool = True) -> None:
        self._selector.unregister(judge.socket)
        self._judges.remove(judge)
        judge.end()
        tasks = list(judge.tasks.values())
        with self._lock:
            for task in tasks[1:] if first_is_guilty else tasks:
                self._push(task)
        if tasks and first_is_guilty:
            self._again(tasks[0], reason)
        if judge.ready:
            self.counts.replaced += 1
        else:
            self._false_starts += 1
            if self._false_starts > ATTEMPTS * self.workers:
                self._fail(f"judges do not start: {reason}")
                return
        self._start()

    def _again(self, task: Task, reason: str) -> None:
        if task.cancelled:
            return
        task.attempts += 1
        self.counts.retries += 1
        if task.attempts >= ATTEMPTS:
            self._give_up(task, reason)
        else:
            with self._lock:
                self._push(task)

    def _give_up(self, task: Task, reason: str) -> None:
        if not task.cancelled:
            self.counts.given_up += 1
            task.done({"tests": None, "seconds": 0.0, "detail": reason, "infrastructure": True})

    def _fail(self, reason: str) -> None:
        with self._lock:
            self._failure = reason
            left = [t for j in self._judges for t in j.tasks.values()] + [t for _, _, t in self._heap]
            self._heap.clear()
        for judge in self._judges:
            judge.tasks.clear()
        for task in left:
            self._give_up(task, reason)
        self._started.set()

    def _stop(self) -> None:
        for judge in self._judges:
            judge.socket.close()  # an idle one ends by itself at that, its zygote after it
        for judge in self._judges:
            idle = judge.ready and not judge.tasks
            if idle:
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
