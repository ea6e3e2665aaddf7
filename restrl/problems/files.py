"""Problem files as numbered rows, and access to their keys that says where something is wrong."""

from __future__ import annotations

import ast
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from restrl.errors import RestrlError


class LeftOut(Exception):
    """A problem whose tests cannot be run here: it is left out, and the user is told why."""


class Fields:
    """One row of a problem file. `where` is "file:line" (or "file: entry n" of a JSON array)."""

    def __init__(self, row: dict[str, Any], where: str) -> None:
        self.row, self.where = row, where

    def fail(self, key: str, problem: str) -> RestrlError:
        return RestrlError(f"{self.where}: key {key!r} {problem}")

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """The value of `key`; `default` where the key is missing or null and a default is given."""
        value = self.row.get(key)
        if value is None:
            if default is not None:
                return default
            raise self.fail(key, "is missing")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join(_NAMES[k] for k in kinds)
            raise self.fail(key, f"must be {wanted}, not {_NAMES.get(type(value), type(value).__name__)}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        return str(self.get(key, str, default))

    def texts(self, key: str, default: list[str] | None = None) -> list[str]:
        values = self.get(key, list, default)
        if not all(isinstance(v, str) for v in values):
            raise self.fail(key, "must be a list of strings")
        return list(values)

    def identifier(self, *keys: str) -> str:
        """The problem's own id as text, from the first of `keys` that is there."""
        for key in keys:
            if key in self.row:
                return str(self.get(key, (str, int)))
        raise self.fail(keys[0], "is missing")

    def data(self, key: str, default: Any = None) -> Any:
        """JSON data that a tool may have written as a string holding JSON or a Python literal."""
        value = self.get(key, (str, list, dict), default)
        if not isinstance(value, str):
            return value
        if not value.strip() and default is not None:
            return default
        try:
            return json.loads(value)
        except ValueError:
            pass  # not JSON: perhaps the literal that the method's own published files hold
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise self.fail(key, "holds neither JSON nor a Python literal") from None


_NAMES: dict[type, str] = {
    str: "a string", int: "a number", list: "a list", dict: "an object", bool: "a boolean", float: "a number",
}  # fmt: skip


def read_fields(path: Path) -> Iterator[Fields]:
    """The rows of a JSONL file or of a JSON array, either of them gzipped too.

    Raises RestrlError for what cannot be read, naming file and line.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise RestrlError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise RestrlError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (OSError, EOFError) as error:
        raise RestrlError(f"{path}: cannot be read: {error}") from None
    if not text.strip():
        raise RestrlError(f"{path}: the file is empty")
    if text.lstrip().startswith("["):
        yield from _array(text, path)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _fields(_parse(line, f"{path}:{number}"), f"{path}:{number}")


def _array(text: str, path: Path) -> Iterator[Fields]:
    rows = _parse(text, str(path))
    if not rows:
        raise RestrlError(f"{path}: the file holds no problem")
    for number, row in enumerate(rows, 1):
        yield _fields(row, f"{path}: entry {number}")


def _parse(text: str, where: str) -> Any:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)  # APPS holds integers of many thousand digits
    try:
        return json.loads(text)
    except ValueError as error:
        raise RestrlError(f"{where}: not valid JSON: {error}") from None
    except RecursionError:
        raise RestrlError(f"{where}: not valid JSON: nested too deeply") from None
    finally:
        sys.set_int_max_str_digits(limit)


def _fields(row: Any, where: str) -> Fields:
    if not isinstance(row, dict):
        raise RestrlError(f"{where}: a row must be a JSON object, not {_NAMES.get(type(row), 'null')}")
    return Fields(row, where)
