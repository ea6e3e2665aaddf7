"""Progress of long work: a bar with rate and time left on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

Sink = Callable[[str, int, int, str], None]  # (name, done, total, note)

_sink: Sink | None = None


def report_to(sink: Sink | None) -> None:
    """Send all progress of this process to `sink` instead of stderr (None: back to stderr)."""
    global _sink
    _sink = sink


class Progress:
    """`with Progress("sample", total, done) as bar: bar.update(n, "reward .31")`."""

    def __init__(self, name: str, total: int, done: int = 0, every: float = 10.0) -> None:
        self.name, self.total, self.done = name, total, done
        self._every, self._first, self._last = every, done, 0.0
        self._start = time.monotonic()
        self._sink = _sink
        shown = self._sink is None and sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=name) if shown else None
        if self._sink is not None:
            self._sink(name, done, total, "")

    def update(self, n: int, note: str = "") -> None:
        """`n` more are done."""
        self.done += n
        if self._sink is not None:
            self._sink(self.name, self.done, self.total, note)
        elif self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(n)
        else:
            self._line(note)

    def _line(self, note: str) -> None:
        now = time.monotonic()
        if now - self._last < self._every and self.done < self.total:
            return
        self._last = now
        rate = (self.done - self._first) / max(now - self._start, 1e-9)
        left = f"{clock((self.total - self.done) / rate)} left" if rate > 0 else "time left unknown"
        line = f"{self.name}: {self.done}/{self.total}, {left}{', ' + note if note else ''}"
        print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
