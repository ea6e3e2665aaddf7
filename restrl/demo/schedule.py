"""Runs the demo's jobs in two processes, shows how far they are, and goes on where a killed demo stopped."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from queue import Empty
from typing import Any

from restrl import progress
from restrl.config import difference
from restrl.demo import table
from restrl.demo.jobs import Job, Settings, jobs, write_problems
from restrl.errors import RestrlError
from restrl.progress import clock
from restrl.rows import lock, write_json
from restrl.sandbox.native import core

PROCESSES = 2

_messages: Any = None  # in a worker process: where its progress goes


def demo(out: Path, *, seed: int = 0, short: bool = False) -> None:
    """Run the demo into `out` and print its table. Raises RestrlError for a folder of another demo."""
    settings = Settings.of(seed, short)
    start = time.monotonic()
    with lock(out):
        _check_settings(out, settings)
        write_problems(out, settings)
        _run_all(out, settings, jobs(settings))
        table.write(out, settings, time.monotonic() - start)
    print(table.text(out))


def _check_settings(out: Path, settings: Settings) -> None:
    path = out / "settings.json"
    new = json.loads(json.dumps(dataclasses.asdict(settings)))
    if not path.exists():
        write_json(path, new)
        return
    lines = difference(json.loads(path.read_text(encoding="utf-8")), new)
    if lines:
        raise RestrlError(f"{out} holds another demo ({'; '.join(lines)}); choose another --out")


def _run_all(out: Path, settings: Settings, todo: list[Job]) -> None:
    done = {job.name for job in todo if _marker(out, job).exists()}
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    log = out / "log.txt"
    screen = _Screen(todo, done)
    pool = ProcessPoolExecutor(
        PROCESSES, context, initializer=_prepare, initargs=(messages, str(log), os.getpid())
    )
    running: dict[Future[float], Job] = {}
    try:
        while len(done) < len(todo):
            for job in todo:
                free = len(running) < PROCESSES
                if (
                    free
                    and job.name not in done
                    and job not in running.values()
                    and done.issuperset(job.needs)
                ):
                    running[pool.submit(_run_one, job, out, settings)] = job
            finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            screen.take(messages)
            for future in finished:
                job = running.pop(future)
                write_json(_marker(out, job), {"seconds": round(future.result(), 2)})
                done.add(job.name)
                screen.finish(job)
        screen.close()
    except BrokenProcessPool:
        raise RestrlError(
            f"a process of the demo was killed (out of memory?); {log} has its last words; the same command "
            "goes on from here"
        ) from None
    finally:
        for process in multiprocessing.active_children():
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _marker(out: Path, job: Job) -> Path:
    return out / "jobs" / f"{job.name.replace(' ', '-')}.json"


def _prepare(messages: Any, log: str, parent: int) -> None:
    """In a fresh worker process: one thread, output to the log, progress to the parent, no life after it.

    The folder's lock goes with the parent: a worker that went on would write beside the next demo's.
    """
    core.die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    import torch

    torch.set_num_threads(1)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    global _messages
    _messages = messages


def _run_one(job: Job, out: Path, settings: Settings) -> float:
    """Seconds that the job took."""
    progress.report_to(lambda _, done, total, note: _messages.put((job.name, done, total, note)))
    start = time.monotonic()
    job.run(out, settings)
    return time.monotonic() - start


class _Screen:
    """One line that says how much is done, what is running and how long it will take."""

    def __init__(self, todo: list[Job], done: set[str]) -> None:
        self.weights = {job.name: job.weight for job in todo}
        self.done = set(done)
        self.first = self._fraction()
        self.parts: dict[str, tuple[int, int, str]] = {}
        self.start = self.last = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.every = 0.5 if self.terminal else 10.0

    def take(self, messages: Any) -> None:
        """Read what the workers said, and show it now and then."""
        while True:
            try:
                name, done, total, note = messages.get_nowait()
            except Empty:
                break
            self.parts[name] = (done, total, note)
            if done >= total:
                del self.parts[name]
        if time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            self._print()

    def finish(self, job: Job) -> None:
        self.done.add(job.name)
        if not self.terminal:
            self._print(f"{job.name} done")

    def close(self) -> None:
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _fraction(self) -> float:
        return sum(self.weights[name] for name in self.done) / sum(self.weights.values())

    def _print(self, event: str = "") -> None:
        elapsed = time.monotonic() - self.start
        fraction = self._fraction()
        gained = fraction - self.first
        left = f"about {clock(elapsed * (1 - fraction) / gained)} left" if gained > 0.03 else "estimating"
        running = " | ".join(f"{n} {d}/{t} {note}".rstrip() for n, (d, t, note) in self.parts.items())
        text = f"[{clock(elapsed)}, {fraction:4.0%}, {left}] {event or running}"
        if self.terminal:
            print(f"\r\x1b[K{text[: _width() - 1]}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return 100
