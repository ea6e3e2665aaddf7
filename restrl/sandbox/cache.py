"""Verdicts already known: policies repeat themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

from restrl.errors import RestrlError


class VerdictCache:
    """Verdict fields by digest: in memory and, with a path, in a JSONL file, one line per verdict."""

    def __init__(self, path: Path | None = None) -> None:
        self._rows: dict[str, dict[str, Any]] = {}
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
                    self._rows[row.pop("key")] = row
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

    def get(self, key: str) -> dict[str, Any] | None:
        row = self._rows.get(key)
        self.hits += row is not None
        return row

    def put(self, key: str, row: dict[str, Any]) -> None:
        self._rows[key] = row
        if self._file is not None:
            try:
                self._file.write(json.dumps({"key": key, **row}) + "\n")
                self._file.flush()
            except OSError as error:
                raise RestrlError(f"verdict cache {self._file.name}: {error.strerror}") from None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
