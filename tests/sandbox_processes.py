"""The processes of a verifier, seen from outside."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from restrl.sandbox import Verifier


def descendants(pid: int) -> list[int]:
    """Processes below `pid`, zombies too."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def all_there(verifier: Verifier) -> None:
    """Wait for the judges that start while the first one works already."""
    judges = verifier._pool._judges
    deadline = time.monotonic() + 20
    while len(judges) < verifier.workers or not all(judge.ready for judge in judges):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _named(word: bytes) -> list[int]:
    found = []
    for pid in descendants(os.getpid()):
        try:
            if word in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue  # it ended meanwhile
    return found


def judges() -> list[int]:
    return _named(b"restrl.sandbox.judge")


def zygotes() -> list[int]:
    """Zygotes, and the candidates that they forked."""
    return _named(b"zygote.py")


def candidates() -> list[int]:
    """Zygotes and what keeps their namespace have children, candidates have none."""
    return [p for p in zygotes() if len(descendants(p)) == 0]


def kill_candidate(least_bytes: int = 0, within: float = 20.0) -> None:
    """SIGKILL, as the system does it, for a candidate that holds at least so many bytes."""
    idle = set(candidates()) if least_bytes == 0 else set()
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        for pid in candidates():
            if pid not in idle and held_bytes(pid) >= least_bytes:
                os.kill(pid, signal.SIGKILL)
                return
        time.sleep(0.02)
    raise AssertionError("no such candidate")


def held_bytes(pid: int) -> int:
    """Memory that a process holds; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
