"""Our own attacks (tests/attacks/*.txt), under each tier, four at a time, between honest and wrong programs.

Every program gets the verdict of its file, none has a side effect, and no verdict beside it changes.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from restrl.errors import RestrlError
from restrl.records import Asserts, Calls, Check, Context, Problem, Stdio, Tests, Unittest
from restrl.sandbox import Verdict, Verifier

_CHECK = """
def check(candidate):
    assert candidate(3) == 6
    assert candidate("ab") == "abab"
    assert candidate([1]) == [1, 1]
    assert abs(candidate(0.5) - 1.0) < 1e-9
"""
_SWALLOW = """
def check(candidate):
    for x in (1, 2):
        try:
            candidate(x)
        except:
            pass
"""
_UNITTEST = """
import unittest
class TestF(unittest.TestCase):
    def test_numbers(self):
        self.assertEqual(f(3), 6)
    def test_error(self):
        with self.assertRaises(ValueError):
            f(None)
    def test_no_error_at_all(self):
        try:
            f(1)
        except:
            pass
"""
_GUARDED = """
import unittest
from unittest.mock import patch
@patch("os.sep", "/")
class TestG(unittest.TestCase):
    def test_number(self):
        got = f(3)
        self.assertEqual(got, 6)
    def test_text(self):
        got = f("ab")
        self.assertEqual(got, "abab")
    def test_error(self):
        with self.assertRaises(ValueError):
            f(None)
"""
_SHARED = """
import os, io, random, unittest
from contextlib import redirect_stdout
class TestS(unittest.TestCase):
    def setUp(self):
        with open("/tmp/in.txt", "w") as file: file.write("12")
    def test_file(self):
        self.assertEqual(f("/tmp/in.txt").n, 12)
        self.assertEqual(open("/tmp/out.txt").read(), "24")
        import json
    def test_object(self):
        got = f("title")
        self.assertIsInstance(got, object)
        self.assertEqual(len(got), 2)
        self.assertEqual([v for v in got], [1, 2])
        self.assertEqual(got.title(), "T")
    def test_printed(self):
        os.environ["RX"] = "7"
        random.seed(5)
        want = random.random()
        random.seed(5)
        with redirect_stdout(io.StringIO()) as out:
            f("print")
        self.assertEqual(out.getvalue(), f"7 {want}\\n")
        self.assertEqual(os.environ["RY"], "8")
    def test_error(self):
        import statistics
        with self.assertRaises(statistics.StatisticsError):
            f("error")
"""
_CONTEXT = """
def generate_test_case(i):
    xs = [3, 1, 2] if i == 1 else [10, -4, 7, 7]
    return xs, [2 * v for v in sorted(xs)]
exec_context = "xs = test_input\\n[insert]\\n"
def test_execution(solution):
    code = exec_context.replace("[insert]", solution)
    for i in range(2):
        test_input, expected = generate_test_case(i + 1)
        env = {"test_input": test_input}
        exec(code, env)
        assert env["result"] == expected
"""
_VALUES = """
import collections, datetime, decimal, fractions, math
def check(c):
    assert c("counter") == collections.Counter("aab") and c("deque") == collections.deque([1, 2])
    assert c("default") == {"a": [1]} and c("named") == (1, 2) and c("flag") is True
    assert str(c("decimal")) == "1.10" and c("fraction") == fractions.Fraction(1, 3)
    assert c("date") == datetime.date(2020, 1, 2) and c("delta") == datetime.timedelta(1, 2)
    assert math.isnan(c("nan")) and math.copysign(1, c("zero")) == -1 and c("complex") == 1 + 2j
    assert list(c("generator")) == [0, 1, 4] and c("range") == range(3) and c("keys") == {"a": 1}.keys()
    assert c("large") == 10**3000 and c("enum") == 2 and c("surrogate") == "\\ud800"
    assert list(c("ordered")) == ["b", "a"] and c("nested") == {(1, 2): {3}, None: [([],)]}
    assert c("function")(3) == 6 and c("bytes") == b"ab" and c("zone").utcoffset().seconds == 3600
"""
_UNITTEST_REFERENCE = "def f(x):\n    if x is None: raise ValueError\n    return x * 2\n"
_FUNCTION: dict[str, Tests] = {
    "check": Check(code=_CHECK, entry_point="f"),
    "calls": Calls(fn_name="f", args=[[1], [2], [[3]]], expected=[2, 4, [3, 3]]),
    "asserts": Asserts(
        setup="import math",
        asserts=["assert f(3) == 6", "assert set(f([1, 2])) == {1, 2}", "assert math.isclose(f(0.5), 1.0)"],
    ),
    "message": Check(
        code="def check(c):\n    got = c(3)\n    assert type(got) is int and got == 6, got", entry_point="f"
    ),
    "idle": Check(code="def check(candidate):\n    pass\n", entry_point="f"),
    "swallow": Check(code=_SWALLOW, entry_point="f"),
    "unittest": Unittest(code=_UNITTEST, entry_point="f"),
    "stdio": Stdio(inputs=["3\n4\n", "10\n-4\n"], outputs=["7\n", "6\n"]),
    "sorted": Check(code="def check(c):\n    assert sorted(c([2, 1])) == [1, 1, 2, 2]", entry_point="f"),
    "guarded": Unittest(code=_GUARDED, entry_point="f"),
    "unknown": Unittest(code=_GUARDED, entry_point="f"),
    "shared": Unittest(code=_SHARED, entry_point="f"),
    "harness": Context(code=_CONTEXT),
    "values": Check(code=_VALUES, entry_point="f"),
}
_KINDS = {**_FUNCTION, "probe": _FUNCTION["check"], "files": _FUNCTION["check"]}
_PROBE = """
try:
    _worked = probe() is True
except BaseException:
    _worked = False
def f(x):
    if not _worked:
        raise RuntimeError("sealed")
    return x * 2
"""
_HONEST = "def f(x): return x * 2  # {}"
_WRONG = "def f(x): return x + x[:0] if isinstance(x, list) else x * 2  # {}"


@dataclass(frozen=True)
class Attack:
    name: str
    kind: str
    passes: bool
    code: str


def _read() -> list[Attack]:
    attacks = []
    for path in sorted((Path(__file__).parent / "attacks").glob("*.txt")):
        for part in path.read_text(encoding="utf-8").split("\n### ")[1:]:
            title, _, code = part.partition("\n")
            name, _, kind = title.rpartition(" | ")
            attacks.append(Attack(name, kind, path.stem == "oddities", code))
    return attacks


ATTACKS = _read()


def _problem(kind: str) -> Problem:
    with_error = dict.fromkeys(("unittest", "guarded"), _UNITTEST_REFERENCE)
    reference = {"asserts": _HONEST, **with_error}.get(kind)
    return Problem(
        task_id=kind, source="test", prompt="", mode="instruct", tests=_KINDS[kind], reference=reference
    )


@dataclass
class Target:
    """What attacks reach for: a directory, sockets, a process. `harm` says what they did to it."""

    place: Path
    tcp: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    abstract: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_UNIX))
    name: str = field(default_factory=lambda: f"restrl-attack-{secrets.token_hex(8)}")

    def __post_init__(self) -> None:
        self.place.chmod(0o755)
        (self.place / "keep.txt").write_text("kept")
        os.mkfifo(self.place / "pipe")
        self.before = self._state()
        self.tcp.setblocking(False)
        self.abstract.bind("\0" + self.name)
        self.abstract.listen()
        self.abstract.setblocking(False)
        self.victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self.null = self._null()
        # Signals from candidates would end the tests' own process.
        self.signals: list[int] = []
        self.handler = signal.signal(signal.SIGUSR1, lambda number, frame: self.signals.append(number))

    def _null(self) -> tuple[int, int]:
        info = os.stat("/dev/null")
        return stat.S_IMODE(info.st_mode), info.st_uid

    def _state(self) -> dict[str, tuple[int, int, int]]:
        stats = {p.name: p.stat() for p in [*self.place.iterdir(), self.place]}
        return {
            n: (s.st_mode, s.st_mtime_ns if n != self.place.name else 0, s.st_size) for n, s in stats.items()
        }

    def fill(self, code: str) -> str:
        known = {
            "DIR": self.place,
            "PORT": self.tcp.getsockname()[1],
            "NAME": self.name,
            "VICTIM": self.victim.pid,
            "CALLER": os.getpid(),
        }
        return re.sub(r"@(DIR|PORT|NAME|VICTIM|CALLER)@", lambda m: str(known[m.group(1)]), code)

    def harm(self) -> list[str]:
        found = []
        if self._state() != self.before or (self.place / "keep.txt").read_text() != "kept":
            found.append(f"files: {self._state()}")
        for listener in (self.tcp, self.abstract):
            try:
                listener.accept()[0].close()
                found.append("a connection")
            except BlockingIOError:
                pass
        if self.victim.poll() is not None or self.signals:
            found.append("a signal")
        if self._null() != self.null:
            found.append("/dev/null")
        left = [p for d in ("/dev/shm", "/dev/mqueue", "/tmp") if os.path.isdir(d) for p in os.listdir(d)]
        found += [p for p in left if "restrl_attack" in p or p in ("linked", "away", "x.db")]
        return found

    def close(self) -> None:
        self.victim.kill()
        self.victim.wait()
        self.tcp.close()
        self.abstract.close()
        signal.signal(signal.SIGUSR1, self.handler)


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on: state, parent, group, session, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _candidates() -> set[int]:
    """Candidates of verifiers of this process: forks of a zygote that lead a session, zombies too."""
    parents, sessions = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = _stat(int(entry.name))
            except OSError:
                continue
            parents[int(entry.name)], sessions[int(entry.name)] = int(fields[1]), int(fields[3])
    below = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    depth = {pid: 0 for pid in below if parents[pid] not in below}
    while len(depth) < len(below):
        depth |= {pid: depth[parents[pid]] + 1 for pid in below - depth.keys() if parents[pid] in depth}
    return {pid for pid in below if sessions[pid] == pid and depth[pid] > 1}  # judges lead one at depth 1


@dataclass
class Run:
    verdicts: dict[str, Verdict]
    beside: list[Verdict]
    harm: list[str]
    left: set[int]
    isolation: str


@pytest.fixture(scope="module", params=["tier1+tier2", "tier2", "tier1"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    tier = request.param
    secret = "HUNTER2:" + secrets.token_hex(32)  # in the environment and the heap of who starts the verifier
    kept = [secret.encode() * 100 for _ in range(100)]
    os.environ["RESTRL_SECRET"] = secret
    try:
        verifier = Verifier(workers=4, timeout=1.0, isolation=tier, cache=False, allow_unsafe=True)
    except RestrlError as error:
        pytest.skip(str(error))
    target = Target(tmp_path_factory.mktemp("place"))
    try:
        with verifier:
            items = []
            for number, attack in enumerate(ATTACKS):
                code = target.fill(attack.code) + (_PROBE if attack.kind == "probe" else "")
                items.append((_problem(attack.kind), code))
                items.append((_problem("calls"), (_WRONG if number % 2 else _HONEST).format(number)))
            verdicts = verifier.verify(items)
            time.sleep(0.2)
            left = _candidates()
            verdict_of = dict(zip((a.name for a in ATTACKS), verdicts[::2], strict=True))
            yield Run(verdict_of, verdicts[1::2], target.harm(), left, tier)
    finally:
        target.close()
        del os.environ["RESTRL_SECRET"], kept


def test_there_are_enough() -> None:
    assert len({a.name for a in ATTACKS}) == len(ATTACKS)
    assert sum(not a.passes for a in ATTACKS) >= 250
    assert sum(a.passes for a in ATTACKS) >= 40


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_every_program_gets_its_verdict(run: Run, attack: Attack) -> None:
    verdict = run.verdicts[attack.name]
    if attack.passes and attack.kind in ("files", "shared") and "tier1" not in run.isolation:
        pytest.skip("only namespaces give a candidate a place to write to")
    assert verdict.reward is not None, verdict
    assert verdict.passed == attack.passes, verdict
    assert verdict.seconds < 12.0
    assert verdict.detail.isprintable()


def test_verdicts_beside_attacks_do_not_change(run: Run) -> None:
    assert [v.passed for v in run.beside] == [n % 2 == 0 for n in range(len(ATTACKS))]
    assert all(v.status == "failed" for v in run.beside if not v.passed)


def test_attacks_do_no_harm_and_leave_nothing(run: Run) -> None:
    assert run.harm == []
    assert run.left == set()


def test_a_candidate_ends_with_a_killed_judge() -> None:
    """Without a pid namespace of its own nothing but its parent-death signal ends it."""
    program = "import ctypes, time\nctypes.CDLL(None).prctl(15, b'{}', 0, 0, 0)\ntime.sleep(60)"
    name = f"rs-{secrets.token_hex(4)}"
    try:
        verifier = Verifier(workers=1, timeout=6.0, isolation="tier2", cache=False)
    except RestrlError as error:
        pytest.skip(str(error))
    with verifier:
        thread = threading.Thread(target=lambda: verifier.verify([(_problem("calls"), program.format(name))]))
        thread.start()
        ended: list[int] = []
        deadline = time.monotonic() + 20
        while len(ended) < 3 and time.monotonic() < deadline:  # it is tried three times
            time.sleep(0.02)
            for pid in _candidates():
                if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                    judge = int(_stat(int(_stat(pid)[1]))[1])  # one that lives would end it itself
                    os.kill(judge, signal.SIGKILL)
                    ended.append(pid)
                    time.sleep(0.1)
        thread.join()
        assert len(ended) == 3
        left = [p for p in ended if Path(f"/proc/{p}").exists() and _stat(p)[0] != "Z"]
    assert left == []


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's tiers")
def test_the_probes_would_notice_an_open_door(tmp_path: Path) -> None:
    """Without isolation many probes must work: they are no idle threats."""
    target = Target(tmp_path)
    safe = [a for a in ATTACKS if a.kind == "probe" and a.name in _HARMLESS]
    try:
        with Verifier(workers=2, timeout=2.0, isolation="none", cache=False, allow_unsafe=True) as verifier:
            items = [(_problem("probe"), target.fill(a.code) + _PROBE) for a in safe]
            works = [a.name for a, v in zip(safe, verifier.verify(items), strict=True) if v.passed]
    finally:
        target.close()
    assert len(safe) == len(_HARMLESS)
    assert set(_HARMLESS) - set(works) == set()


_HARMLESS = {
    "read a file of the caller",
    "change a mode",
    "change times",
    "list the root of the machine",
    "list processes",
    "connect to the loopback",
    "an abstract socket",
    "urgent data on its own pair",
    "descriptors over a socket",
    "the judge's process from the channel",
    "fork, vfork, spawn",
    "memory files",
    "lock a file that all share",
    "more of the pipes' memory than its share",
    "run a shell command",
}
