"""Programs that try to pass without solving anything, and valid programs that look odd."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from restrl.records import Calls, Check, Context, Problem, Stdio, Unittest
from restrl.sandbox import Verifier

_DATA = Path(os.environ.get("RESTRL_SHARED_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
_FILE = _DATA / "attacks" / "attacks.jsonl"


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(workers=4, timeout=2.0, cache=False) as v:
        yield v


def _problem(row: dict[str, Any]) -> Problem:
    given = row["problem"]
    fields: dict[str, Any] = {"task_id": row["name"], "source": "attacks"}
    if row["format"] == "stdio":
        tests = Stdio(inputs=given["inputs"], outputs=given["outputs"])
        return Problem(**fields, prompt=given["statement"], mode="instruct", tests=tests)
    if row["format"] == "harness":
        return Problem(**fields, prompt="", mode="instruct", tests=Context(code=given["code_context"]))
    fields |= {"prompt": given["prompt"], "prefix": given["prompt"], "mode": "complete"}
    if row["format"] == "unittest":
        return Problem(**fields, tests=Unittest(code=given["test"], entry_point=given["entry_point"]))
    check = Check(code=given["test"], entry_point=given["entry_point"])
    return Problem(**fields, tests=check)


@pytest.mark.skipif(not _FILE.exists(), reason="no attack programs here")
def test_labelled_attacks(verifier: Verifier, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in _FILE.read_text().splitlines()]
    assert {r["format"] for r in rows} == {"function", "stdio", "unittest", "harness"}
    items = []
    for number, row in enumerate(rows):  # four at a time, between right and wrong programs
        items.append((_problem(row), row["code"]))
        items.append((DOUBLE, f"def f(x): return x * {2 + number % 2}  # {number}"))
    verdicts = verifier.verify(items)
    assert [v.passed for v in verdicts[1::2]] == [n % 2 == 0 for n in range(len(rows))]
    wrong = []
    for row, verdict in zip(rows, verdicts[::2], strict=True):
        right = verdict.passed == (row["expect"]["verdict"] == "passed")
        if not right or verdict.reward is None:
            wrong.append((row["name"], verdict))
        for ban in row["expect"]["must_not"]:
            if ban["kind"] == "file_exists" and os.path.exists(ban["path"]):
                wrong.append((row["name"], ban))
            if ban["kind"] == "hang" and verdict.seconds > ban["seconds"]:
                wrong.append((row["name"], ban))
    with capsys.disabled():
        print(
            f" attacks: {len(rows) - len(wrong)} of {len(rows)} as labelled ({verifier.isolation}) ", end=""
        )
    assert not wrong


@pytest.mark.skipif(not _FILE.exists(), reason="no attack programs here")
def test_labelled_attacks_beside_the_tests(verifier: Verifier) -> None:
    """The `unittest` ones once more, with tests that have to share the program's process."""
    rows = [json.loads(line) for line in _FILE.read_text().splitlines()]
    rows = [r for r in rows if r["format"] == "unittest"]
    for row in rows:
        code = row["problem"]["test"].replace("    def test", "    @patch('os.sep', '/')\n    def test")
        row["problem"]["test"] = "from unittest.mock import patch\n" + code
    verdicts = verifier.verify([(_problem(r), r["code"]) for r in rows])
    assert {v.mode for v in verdicts} == {"guarded"}
    assert [v.passed for v in verdicts] == [r["expect"]["verdict"] == "passed" for r in rows]
    assert not os.path.exists("/tmp/canary/fs_ut")


DOUBLE = Problem(
    task_id="double",
    source="test",
    prompt="",
    mode="instruct",
    tests=Calls(fn_name="f", args=[[1], [2], [[3]]], expected=[2, 4, [3, 3]]),
)

CHEATS = {
    "equal to everything": "class A:\n    def __eq__(self, o): return True\ndef f(x): return A()",
    "an int that is equal to everything": (
        "class A(int):\n    def __eq__(self, o): return True\ndef f(x): return A(99)"
    ),
    "a list that is equal to everything": (
        "class A(list):\n    def __eq__(self, o): return True\ndef f(x): return A([99])"
    ),
    "a forged value on the channel": (
        "import os, struct\n"
        "def f(x):\n"
        "    body = b't' + struct.pack('I', 2) + b's' + struct.pack('I', 5) + b'value'\n"
        "    body += b'i' + struct.pack('q', 99)\n"
        "    os.write(3, struct.pack('I', len(body)) + body)\n"
        "    return 99"
    ),
    "a forged verdict on every descriptor": (
        "import os\n"
        "for fd in range(64):\n"
        "    try: os.write(fd, b'\\x07\\x00\\x00\\x00passed!')\n"
        "    except OSError: pass\n"
        "def f(x): return 0"
    ),
    "a closed channel": "import os\nos.close(3)\ndef f(x): return 0",
    "the set-up's own exit code": "import os\nos._exit(125)",
    "walking to the caller": (
        "import sys\n"
        "def f(x):\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n"
        "        for v in list(frame.f_locals.values()):\n"
        "            if isinstance(v, dict) and 'expected' in v: return v['expected'][0]\n"
        "        frame = frame.f_back\n"
        "    return 0"
    ),
    "other candidates' objects": (
        "import gc\ndef f(x):\n    return next((o for o in gc.get_objects() if o == [2, 4, [3, 3]]), 0)"
    ),
    "a lying codec": (
        "import sys\n"
        "def f(x):\n"
        "    frame = sys._getframe(1)\n"
        "    me = frame.f_locals['self']\n"
        "    me._send_value = lambda value: None\n"
        "    return 2"
    ),
    "an endless iterator": "import itertools\ndef f(x): return itertools.count()",
    "many times one list": "def f(x):\n    a = []\n    for _ in range(60): a = [a, a]\n    return a",
    "a cycle": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "a huge range": "def f(x): return list(range(2 * 10**8))",
    "a huge int": "def f(x): return 1 << (1 << 31)",
    "keys that collide": "def f(x): return {i * (2**61 - 1): 0 for i in range(20000)}",
    "an exception that lies": (
        "class E(AssertionError):\n    def __str__(self): raise SystemExit(0)\ndef f(x): raise E()"
    ),
    "builtins replaced": (
        "import builtins\nbuiltins.isinstance = lambda *a: True\ndef f(x): return 0"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_do_not_pass(verifier: Verifier, name: str) -> None:
    honest = "def f(x): return x * 2"
    cheat, after = verifier.verify([(DOUBLE, CHEATS[name]), (DOUBLE, honest)])
    assert not cheat.passed, cheat
    assert cheat.reward is not None
    assert cheat.reward < 0.5
    assert after.passed


def test_hostile_programs_do_not_disturb_honest_ones(verifier: Verifier) -> None:
    threads = "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()"
    fork_bomb = "import os\nwhile True: os.fork()"
    memory = "x = []\nwhile True: x.append(bytearray(b'x') * (1 << 26))"
    flood = "import os\ndef f(x):\n    while True: os.write(3, b'x' * 65536)"
    bad = [threads, fork_bomb, memory, flood, *CHEATS.values()]
    items = [pair for program in bad for pair in ((DOUBLE, program), (DOUBLE, "def f(x): return x * 2"))]
    verdicts = verifier.verify(items)
    assert [v.passed for v in verdicts] == [False, True] * len(bad)
    assert all(v.reward is not None for v in verdicts)
