"""What lasts: the verifier for long, with hostile programs and with processes killed under it.

    python benchmarks/bench_verifier.py --robust [SHARE]     about five minutes on two idle cores; .1: a tenth

Each row says how many verdicts came, how many of them are wrong, lost or late, and what is left behind.
Every item has a problem of its own: a swapped program or verdict would be wrong. Ends with 1 if any row is
not as it must be.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from restrl.records import Calls, Problem
from restrl.sandbox import Verdict, Verifier

Item = tuple[Problem, str]
HOSTILE = {
    "fork bomb": "import os\ndef f(x):\n    while True: os.fork()",
    "thread bomb": "import threading, time\ndef f(x):\n    while True:\n"
    "        threading.Thread(target=time.sleep, args=(99,)).start()",
    "memory": "def f(x):\n    kept = []\n    while True: kept.append(bytearray(8 << 20))",
    "full disk": "def f(x):\n    with open('/tmp/x', 'wb') as file:\n"
    "        while True: file.write(bytes(1 << 20))",
    "output": "def f(x): return 'x' * (1 << 28)",
    "spin": "def f(x):\n    while True: pass",
    "kill": "import os\ndef f(x):\n    os.kill(os.getppid(), 9)\n    os.kill(0, 9)",
}


def numbered(count: int, first: int = 0) -> list[Item]:
    """Two of three pass; which ones is known, and each asks for a number of its own."""
    return [(_asks(n), f"def f(x): return x + {n - n % 3 // 2}") for n in range(first, first + count)]


def _asks(n: int) -> Problem:
    tests = Calls(fn_name="f", args=[[0], [1]], expected=[n, n + 1])
    return Problem(task_id=f"p{n}", source="bench", prompt="", mode="instruct", tests=tests)


def wrong(verdicts: list[Verdict], first: int = 0) -> int:
    """Verdicts that are not what `numbered` deserves; those that are none do not count."""
    return sum(v.passed != (n % 3 != 2) for n, v in enumerate(verdicts, first) if v.reward is not None)


# -- what is left behind


def below(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        more = children.get(todo.pop(), [])
        found += more
        todo += more
    return found


def held(pids: list[int]) -> float:
    """MiB of private memory (what is shared with a parent counts once, there)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return total / 1024


def state() -> dict[str, float]:
    pids = [os.getpid(), *below(os.getpid())]
    files = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            files += len(os.listdir(f"/proc/{pid}/fd"))
    return {"processes": len(pids), "descriptors": files, "mib": round(held(pids), 1)}


def all_there(verifier: Verifier) -> None:
    judges = verifier._pool._judges
    while len(judges) < verifier.workers or not all(judge.ready for judge in judges):
        time.sleep(0.01)


def growth(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {f"more_{name}": round(after[name] - before[name], 1) for name in before}


class Rows:
    """Prints rows and remembers whether all were as they must be."""

    def __init__(self) -> None:
        self.bad = 0

    def show(self, name: str, good: bool, **row: Any) -> None:
        self.bad += not good
        print(json.dumps({"row": name, "good": good, **row}), flush=True)


# -- the rows


def in_a_row(rows: Rows, count: int) -> None:
    """Many verdicts one after another; memory, descriptors and processes stay as they were at first."""
    with Verifier(workers=2, cache=False) as verifier:
        all_there(verifier)
        verifier.verify(numbered(count // 2))  # what it keeps of problems is bounded, and full by then
        before, begin, bad, done = state(), time.monotonic(), 0, 0
        for first in range(0, count, 500):
            verdicts = verifier.verify(numbered(min(500, count - first), first))
            bad += wrong(verdicts, first)
            done += len(verdicts)
        seconds, more = time.monotonic() - begin, growth(before, state())
        good = done == count and not bad and verifier.stats.infrastructure_errors == 0
        good = good and more["more_processes"] == more["more_descriptors"] == 0 and more["more_mib"] < 32
        rows.show(
            "verdicts in a row", good, verdicts=done, wrong=bad, retries=verifier.stats.retries,
            seconds=round(seconds, 1), **more,
        )  # fmt: skip


def hanging(rows: Rows, count: int, limit: float = 0.5, workers: int = 32) -> None:
    """Programs that sleep, and one of 20 that spins, for ever: no verdict later than limit + spare + 1 s."""
    sleeps = "import time\ndef f(x):\n    time.sleep(99)  # {}"
    spins = "def f(x):\n    while True: pass  # {}"
    tests = Calls(fn_name="f", args=[[0]], expected=[0])
    what = Problem(task_id="hang", source="bench", prompt="", mode="instruct", tests=tests)
    with Verifier(workers=workers, timeout=limit, cache=False) as verifier:
        all_there(verifier)
        before, begin = state(), time.monotonic()
        verdicts = verifier.verify([(what, (sleeps if n % 20 else spins).format(n)) for n in range(count)])
        seconds, more = time.monotonic() - begin, growth(before, state())
        latest = max(v.seconds for v in verdicts)
        statuses = collections.Counter(v.status for v in verdicts)
        # A program that got no core for a while has that given back, up to one limit more.
        good = statuses == {"timeout": count} and latest < 2 * limit + 1 and more["more_processes"] == 0
        rows.show(
            "hanging programs", good, verdicts=len(verdicts), statuses=statuses, limit=limit, workers=workers,
            latest=round(latest, 2), seconds=round(seconds, 1), at_least=count * limit / workers, **more,
        )  # fmt: skip


def killing(rows: Rows, count: int, every: float = 0.3) -> None:
    """Judges, zygotes and candidates are killed at random while ordinary programs are judged."""
    with Verifier(workers=2, cache=False) as verifier:
        stop, killed = threading.Event(), collections.Counter[str]()

        def kill() -> None:
            turn = 0
            while not stop.wait(every):
                victims = sorted(below(os.getpid()))
                turn += 7
                with contextlib.suppress(OSError, IndexError):
                    pid = victims[turn % len(victims)]
                    words = Path(f"/proc/{pid}/cmdline").read_bytes()
                    os.kill(pid, signal.SIGKILL)
                    killed["judge" if b"sandbox.judge" in words else "zygote or candidate"] += 1

        thread = threading.Thread(target=kill)
        thread.start()
        verdicts = verifier.verify(numbered(count))
        stop.set()
        thread.join()
        stats = verifier.stats
        lost = sum(v.reward is None for v in verdicts)
        crashed = sum(v.status == "crashed" for v in verdicts)  # the candidate itself was the victim
        bad = wrong(verdicts) - sum(v.status == "crashed" and n % 3 != 2 for n, v in enumerate(verdicts))
        good = len(verdicts) == count and bad == 0 and lost == stats.infrastructure_errors
        after = verifier.verify(numbered(30))
        good = good and wrong(after) == 0 and all(v.reward is not None for v in after)
        rows.show(
            "killed processes", good, verdicts=len(verdicts), killed=killed, wrong=bad, crashed=crashed,
            retries=stats.retries, judges_replaced=stats.judges_replaced, infrastructure_errors=lost,
        )  # fmt: skip


def hostile(rows: Rows, count: int) -> None:
    """Hostile programs between ordinary ones, whose verdicts do not change."""
    items = numbered(count)
    for n in range(0, count, 5):
        bad = list(HOSTILE.values())[n // 5 % len(HOSTILE)]
        items[n] = (items[n][0], bad)
    with Verifier(workers=4, timeout=0.5, memory_mb=128, cache=False) as verifier:
        all_there(verifier)
        before = state()
        verdicts = verifier.verify(items)
        more = growth(before, state())
        ordinary = sum(v.passed != (n % 3 != 2) for n, v in enumerate(verdicts) if n % 5)
        passed = sum(v.passed for v in verdicts[::5])
        stats = verifier.stats
        found = {
            name: collections.Counter(v.status for v in verdicts[5 * i :: 5 * len(HOSTILE)])
            for i, name in enumerate(HOSTILE)
        }
        good = ordinary == passed == stats.infrastructure_errors == more["more_processes"] == 0
        rows.show(
            "hostile programs", good, verdicts=len(verdicts), ordinary_changed=ordinary,
            hostile_passed=passed, retries=stats.retries, statuses=found, **more,
        )  # fmt: skip


def interrupted(rows: Rows, rounds: int) -> None:
    """Ctrl-C in the middle, again and again: the verifier goes on, and nothing of the old work is left."""
    late, bad = 0.0, 0
    with Verifier(workers=2, cache=False, queue=256) as verifier:  # it comes while items are handed in, too
        all_there(verifier)
        verifier.verify(numbered(20))
        before = state()
        for n in range(rounds):
            items = numbered(3000, first=n)
            threading.Timer(0.05 + 0.02 * (n % 7), os.kill, (os.getpid(), signal.SIGINT)).start()
            begin = time.monotonic()
            try:
                verifier.verify(items)
            except KeyboardInterrupt:
                late = max(late, time.monotonic() - begin)
            bad += wrong(verifier.verify(numbered(20)))
        more = growth(before, state())
        open_ones = len(verifier._works)
    good = bad == open_ones == 0 and late < 2 and more["more_processes"] == more["more_descriptors"] == 0
    rows.show("Ctrl-C", good, rounds=rounds, wrong=bad, under_way=open_ones, latest=round(late, 2), **more)


def robust(share: float) -> None:
    rows = Rows()
    interrupted(rows, max(2, round(20 * share)))
    killing(rows, max(100, round(3000 * share)))
    hostile(rows, max(70, round(700 * share)))
    hanging(rows, max(64, round(2000 * share)))
    in_a_row(rows, max(200, round(10_000 * share)))
    left = below(os.getpid())
    rows.show("left behind", not left, processes=len(left))
    if rows.bad:
        sys.exit(1)
