"""Verdicts already known: policies repeat themselves."""

from __future__ import annotations

import contextlib
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from restrl.errors import RestrlError
from restrl.sandbox.verdict import Verdict

MOST = 1 << 18  # verdicts kept in memory; past that the oldest go


class VerdictCache:
    """Verdicts by digest: in memory and, with a path, in a JSONL file, one line per verdict.

    A file that can no longer be written (a full disk) ends the writing with a warning, not the verifying.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._known: dict[str, Verdict] = {}
        self._file: TextIO | None = None
        self.hits = 0
        if path is not None:
            self._open(path)

    def _open(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_bytes() if path.exists() else b""
            whole = text[: text.rfind(b"\n") + 1]  # a torn last line is what a killed run leaves behind
            for number, line in enumerate(whole.splitlines(), 1):
                try:
                    row = json.loads(line)
                    key = row.pop("key")
                    self._keep(key, Verdict(**{**row, "tests": tuple(row["tests"])}))
                except (ValueError, KeyError, AttributeError, TypeError):
                    raise RestrlError(
                        f"{path}, line {number}: no verdict; remove the file to start afresh"
                    ) from None
            if whole != text:
                with path.open("r+b") as file:
                    file.truncate(len(whole))
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise RestrlError(f"verdict cache {path}: {error.strerror}") from None

    def get(self, key: str) -> Verdict | None:
        verdict = self._known.get(key)
        self.hits += verdict is not None
        return verdict

    def put(self, key: str, verdict: Verdict) -> None:
        self._keep(key, verdict)
        if self._file is not None:
            try:
                self._file.write(json.dumps({"key": key, **asdict(verdict)}) + "\n")
                self._file.flush()
            except OSError as error:
                warnings.warn(
                    f"verdict cache {self._file.name}: {error.strerror}; verdicts are kept in memory only",
                    stacklevel=2,
                )
                self.close()

    def _keep(self, key: str, verdict: Verdict) -> None:
        self._known[key] = verdict
        if len(self._known) > MOST:
            del self._known[next(iter(self._known))]

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # what could not be written has been told already
                file.close()
