"""Seconds and bytes of functions: interleaved repetitions, CPU time or a GPU's events, peak memory."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

MB = 1e6
T = TypeVar("T")


@dataclass(frozen=True)
class Times:
    """Seconds of every repetition: CPU time of all threads, or the GPU's own; and the clock's."""

    seconds: list[float]
    wall: list[float]


def once(run: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds and wall seconds of one run: CPU time, or the time between two events on the GPU (twice).

    The GPU first writes elsewhere for a millisecond: its caches hold nothing of the last run, and the host is
    ahead of it, as in training; a run that waits for the GPU loses that.
    """
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        for _ in range(4):
            elsewhere().zero_()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        seconds = start.elapsed_time(end) / 1e3
        return seconds, seconds
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


@cache
def elsewhere() -> torch.Tensor:
    return torch.empty(1 << 30, dtype=torch.uint8, device="cuda")


def interleaved(
    runs: Mapping[str, Callable[[], object]], before: Callable[[], object], repeats: int, device: str
) -> dict[str, Times]:
    """Every repetition runs all of them one after another, so that a slow minute of the machine hits all.

    The runs were warmed up by the caller; `before` is called before each, outside the time.
    """
    found = {name: Times([], []) for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            before()
            seconds, wall = once(run, device)
            found[name].seconds.append(seconds)
            found[name].wall.append(wall)
    return found


def peak_mb(run: Callable[[], object], before: Callable[[], object], device: str) -> float:
    """Peak memory above what there was before the run, MB, the results included. The second run counts: the
    first one compiles and allocates what stays.

    On the CPU this is the process's resident memory, so it needs a process in which nothing else happens.
    """
    run()
    before()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - held) / MB
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    held = status_kb("VmRSS")
    run()
    return (status_kb("VmHWM") - held) * 1024 / MB


def status_kb(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def in_child(function: Callable[..., T], *arguments: object) -> T:
    """The result of `function(*arguments)` in a fresh process; both must pickle."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
