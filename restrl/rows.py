"""JSON files of a run: JSONL that survives a kill at any byte, atomic JSON, and the lock of a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from restrl.errors import RestrlError

Row = dict[str, Any]
_NO_PLACE = (
    errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT,
    errno.ENAMETOOLONG,
)  # fmt: skip


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a JSONL file (.gz too). Raises RestrlError naming file and line."""
    path = Path(path)
    rows: list[Row] = []
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as file
        ):
            for number, line in enumerate(file, 1):
                if line.strip():
                    rows.append(_row(line, path, number))
    except FileNotFoundError:
        raise RestrlError(f"{path}: no such file") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise RestrlError(f"{path}: cannot be read: {error}") from None
    return rows


def _row(line: str, path: Path, number: int) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise RestrlError(f"{path}:{number}: not valid JSON: {error.msg}") from None
    if not isinstance(row, dict):
        raise RestrlError(f"{path}:{number}: a row must be a JSON object, not {type(row).__name__}")
    return row


class Appender:
    """A JSONL file that is filled in chunks and gets its name only when it is complete.

    Rows go to `<path>.part`. Opening it again after a kill keeps the whole chunks that are there and drops
    what follows them (a torn line, part of a chunk), so that the work goes on at a chunk border and every
    chunk is computed from the same inputs as in an undisturbed run.
    """

    def __init__(self, path: str | Path, chunk: int) -> None:
        self.path = Path(path)
        self.chunk = chunk
        self.part = self.path.with_name(self.path.name + ".part")
        self.complete = self.path.exists()
        self.rows: list[Row] = []
        self._file: TextIO | None = None
        if self.complete:
            self.rows = read_rows(self.path)
            return
        with disk(self.part):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = self._keep_whole_chunks()
            self._file = self.part.open("r+" if self.part.exists() else "w", encoding="utf-8")
            self._file.truncate(kept)
            self._file.seek(kept)

    def _keep_whole_chunks(self) -> int:
        """Bytes of the whole chunks in the part file; fills `rows`."""
        if not self.part.exists():
            return 0
        lines = self.part.read_bytes().split(b"\n")[:-1]  # what follows the last newline is torn
        rows: list[Row] = []
        for line in lines:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        count = len(rows) - len(rows) % self.chunk
        self.rows = rows[:count]
        return sum(len(line) + 1 for line in lines[:count])

    def append(self, rows: Sequence[Row]) -> None:
        """Write one chunk and force it to the disk."""
        assert self._file is not None, "the file is complete"
        with disk(self.part):
            self._file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            self._file.flush()
            os.fsync(self._file.fileno())
        self.rows.extend(rows)

    def finish(self) -> list[Row]:
        """Give the file its name; returns all rows."""
        if not self.complete:
            self.close()
            with disk(self.path):
                os.replace(self.part, self.path)
            self.complete = True
        return self.rows

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Appender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def write_text(path: str | Path, text: str) -> None:
    """Write a file whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: str | Path, data: Any) -> None:
    """`data` as indented JSON, atomically."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def write_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """A whole JSONL file, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def remove_torn(folder: Path) -> None:
    """Delete what a killed process left of files it was writing. Only for the one that holds the folder."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turns a full or read-only disk into one sentence; what was written before stays."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RestrlError(
                f"{path}: the disk is full; what is finished is kept: free space and run the same command"
            ) from None
        if error.errno in _NO_PLACE:
            raise RestrlError(f"{path}: cannot be written: {error.strerror}") from None
        raise


@contextlib.contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Holds a folder for one process; the lock goes with the process, however that ends."""
    folder = Path(folder)
    if folder.is_file():
        raise RestrlError(f"{folder} is a file; a run needs a folder to write to")
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RestrlError(
                f"{folder}: another restrl process is working in this folder; wait or choose another folder"
            ) from None
        yield
