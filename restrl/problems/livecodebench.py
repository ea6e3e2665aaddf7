"""LiveCodeBench: public and private tests, of programs that read stdin or of functions."""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import pickletools
import zlib
from datetime import date, datetime
from typing import Any, NoReturn

from restrl.problems.files import Fields
from restrl.records import Calls, Problem, Stdio

KEYS = {"question_id", "public_test_cases"}
MAX_PACKED = 256 << 20  # characters of packed tests
MAX_UNPACKED = 512 << 20  # bytes they may unpack to
# What a pickled string is made of; anything else is not looked at.
_OPCODES = {"PROTO", "FRAME", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "MEMOIZE", "STOP"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}


class StringUnpickler(pickle.Unpickler):
    """Reads plain data only: a pickle that names a class or a function is refused."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it names an object elsewhere")


def livecodebench(row: Fields) -> Problem | None:
    """One row; None where it has no tests. `meta["contest_date"]` is an ISO date, where the row has one."""
    cases = _cases(row, "public_test_cases", row.data("public_test_cases", []))
    cases += _cases(row, "private_test_cases", _private(row))
    if not cases:
        return None
    kinds = {case["testtype"] for case in cases}
    if len(kinds) != 1 or not kinds <= {"stdin", "functional"}:
        raise row.fail("public_test_cases", f"has tests of the types {', '.join(sorted(map(str, kinds)))}")
    metadata = row.data("metadata", {})
    if not isinstance(metadata, dict):
        raise row.fail("metadata", "must hold an object")
    tests: Calls | Stdio
    name = metadata.get("func_name")
    if kinds == {"functional"}:
        if not isinstance(name, str) or not name.isidentifier():
            raise row.fail("metadata", "has no 'func_name', which functional tests need")
        tests = Calls(
            fn_name=name,
            args=[[_json(row, line) for line in c["input"].split("\n") if line.strip()] for c in cases],
            expected=[_json(row, c["output"]) for c in cases],
        )
    else:
        tests = Stdio(inputs=[c["input"] for c in cases], outputs=[c["output"] for c in cases])
    starter = row.text("starter_code", "")
    begin = f"\nBegin with this code:\n{starter.rstrip()}\n" if starter.strip() else ""
    question = row.text("question_content", row.text("question_title", ""))
    keys = ("question_title", "platform", "contest_id", "difficulty")
    meta = {k: row.row[k] for k in keys if isinstance(row.row.get(k), str)}
    if row.row.get("contest_date") is not None:
        meta["contest_date"] = _date(row).isoformat()
    return Problem(
        task_id=row.identifier("question_id"),
        source="livecodebench",
        prompt=f"{question.rstrip()}\n{begin}" if begin else question,
        mode="instruct",
        entry_point=name if isinstance(tests, Calls) else None,
        prefix=starter.rstrip() + "\n" if starter.strip() else "",
        tests=tests,
        meta=meta,
    )


def _date(row: Fields) -> date:
    try:
        return datetime.fromisoformat(row.text("contest_date")).date()
    except ValueError:
        raise row.fail("contest_date", "is no ISO date") from None


def _json(row: Fields, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise row.fail("public_test_cases", "or the private ones have a value that is no JSON") from None


def _cases(row: Fields, key: str, cases: Any) -> list[dict[str, Any]]:
    texts = ("input", "output", "testtype")
    if not isinstance(cases, list) or not all(
        isinstance(c, dict) and all(isinstance(c.get(k), str) for k in texts) for c in cases
    ):
        raise row.fail(key, "must be a list of tests with the texts 'input', 'output' and 'testtype'")
    return list(cases)


def _private(row: Fields) -> Any:
    """The private tests: a list, JSON, or base64 of zlib of a pickled JSON text."""
    value = row.get("private_test_cases", (str, list), "")
    if not isinstance(value, str):
        return value
    if not value.strip():
        return []
    if value.lstrip()[:1] != "[":
        value = _unpack(row, value)
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise row.fail("private_test_cases", "holds neither JSON nor packed JSON") from None


def _unpack(row: Fields, packed: str) -> str:
    key = "private_test_cases"
    if len(packed) > MAX_PACKED:
        raise row.fail(key, f"is packed text of more than {MAX_PACKED >> 20} MiB")
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(base64.b64decode(packed, validate=True), MAX_UNPACKED)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise row.fail(key, f"is neither JSON nor base64 of zlib: {error}") from None
    if stream.unconsumed_tail:
        raise row.fail(key, f"unpacks to more than {MAX_UNPACKED >> 20} MiB")
    if not stream.eof:
        raise row.fail(key, "is cut off")
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in _OPCODES and not (opcode.name in _PUTS and int(argument or 0) < 16):
                raise pickle.UnpicklingError(f"it is more than a text ({opcode.name})")
        text = StringUnpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, ValueError, EOFError, IndexError, KeyError) as error:
        raise row.fail(key, f"holds a pickle that is refused: {error}") from None
    if not isinstance(text, str):
        raise row.fail(key, "holds a pickle of no text")
    return text
