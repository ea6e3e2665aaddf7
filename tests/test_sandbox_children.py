"""Problems whose reference solution starts programs: others may too, and these are as sealed as they are."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_processes import descendants

from restrl.errors import RestrlError
from restrl.records import Problem, Unittest
from restrl.sandbox import Verdict, Verifier

REFERENCE = """
import subprocess
def task_func(text):
    return int(subprocess.run(["wc", "-w"], input=text.encode(), capture_output=True).stdout)
"""
TESTS = """
import unittest
class TestCases(unittest.TestCase):
    def test_one(self):
        self.assertEqual(task_func("x"), 1)
    def test_two(self):
        self.assertEqual(task_func("a b"), 2)
"""
GUARDED = TESTS.replace(
    "    def test_one",
    "    def setUp(self): import os; os.environ.get('X'); os.chdir('/tmp')\n    def test_one",
)
HONEST = "def task_func(text): return len(text.split())\n"


def problem(tests: str = TESTS, reference: str | None = REFERENCE) -> Problem:
    return Problem(
        task_id="children", source="test", prompt="", mode="instruct",
        tests=Unittest(code=tests, entry_point="task_func"), reference=reference,
    )  # fmt: skip


SPLIT = problem()
TOGETHER = problem(GUARDED)


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    try:
        v = Verifier(workers=1, timeout=2.0, memory_mb=512, isolation="tier1+tier2", cache=False)
    except RestrlError as error:
        pytest.skip(str(error))
    with v:
        v.verify([(SPLIT, REFERENCE), (TOGETHER, REFERENCE)])  # all its zygotes are there now
        yield v


def one(verifier: Verifier, program: str, what: Problem = SPLIT) -> Verdict:
    """Its verdict; nothing that it started is left, and the judge is the same as before."""
    before = set(descendants(os.getpid()))
    verdict = verifier.verify([(what, program)])[0]
    time.sleep(0.05)
    assert set(descendants(os.getpid())) == before
    assert verifier.stats.judges_replaced == verifier.stats.retries == 0
    assert verdict.reward is not None, verdict
    return verdict


def worked(verifier: Verifier, body: str, what: Problem = SPLIT) -> bool:
    """Whether `probe`, the text of a function, returned true: the program passes only then."""
    head = f"import os, subprocess, ctypes\n{body}\n"
    program = head + "def task_func(text):\n    assert probe()\n    return len(text.split())\n"
    return one(verifier, program, what).passed


def shell(command: str) -> str:
    return f"def probe(): return subprocess.run({command!r}, shell=True, capture_output=True).returncode == 0"


@pytest.mark.parametrize(("what", "mode"), [(SPLIT, "split+processes"), (TOGETHER, "guarded+processes")])
def test_programs_can_be_started_and_the_mode_says_so(verifier: Verifier, what: Problem, mode: str) -> None:
    for program in (
        REFERENCE,
        HONEST,
        "import os\ndef task_func(t): return int(os.popen(f'echo {t} | wc -w').read())",
    ):
        verdict = one(verifier, program, what)
        assert verdict.passed, verdict
        assert verdict.mode == mode
    assert one(verifier, "def task_func(text): return 7", what).reward == 0
    assert worked(verifier, shell("true"), what)
    assert worked(
        verifier,
        shell("cd /tmp && seq 9 | split -l 3 - part_ && tar czf a.tgz part_* && gzip -t a.tgz"),
        what,
    )
    assert not worked(verifier, shell("false"), what)


def test_only_the_problem_s_own_code_decides() -> None:
    starts = "import subprocess\ndef task_func(text): return int(subprocess.check_output(['echo', '1']))"
    alone = problem(reference=HONEST)
    with Verifier(workers=1, cache=False) as v:
        # Imports alone do not: the reference has to need it.
        named = problem(reference="import subprocess\n" + HONEST)
        for what in (alone, named, problem(reference=None)):
            verdict = v.verify([(what, starts)])[0]
            assert not verdict.passed
            assert verdict.mode == "split"
            assert "not permitted" in verdict.detail


@pytest.mark.parametrize("tier", ["tier2", "none"])
def test_without_a_pid_namespace_no_program_is_started(tier: str) -> None:
    try:
        v = Verifier(workers=1, isolation=tier, cache=False, allow_unsafe=True)
    except RestrlError as error:
        pytest.skip(str(error))
    with v:
        verdict = v.verify([(SPLIT, REFERENCE)])[0]
        assert "processes" not in verdict.mode
        assert verdict.reward is None if tier == "tier2" else verdict.passed


def test_a_fork_bomb_ends_with_its_verdict(verifier: Verifier) -> None:
    begin = time.monotonic()
    bomb = "import os\ndef task_func(text):\n    while True:\n        try: os.fork()\n"
    bomb += "        except OSError: pass\n"
    assert one(verifier, bomb).status in ("timeout", "crashed", "memory")
    assert one(verifier, bomb, TOGETHER).status in ("timeout", "crashed", "memory")
    shells = "import os\ndef task_func(text): return os.system('b() { b | b & }; b; sleep 60')"
    assert not one(verifier, shells).passed
    assert time.monotonic() - begin < 30
    assert one(verifier, REFERENCE).passed


@pytest.mark.parametrize("what", [SPLIT, TOGETHER], ids=["split", "guarded"])
def test_nothing_outlives_its_verdict(verifier: Verifier, what: Problem) -> None:
    daemon = """
import os, subprocess, time
def task_func(text):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True: time.sleep(1)
        os._exit(0)
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    return len(text.split())
"""
    assert one(verifier, daemon, what).passed


@pytest.mark.parametrize("how", ["bytearray(b'x') * (60 << 20)", "shared()"])
def test_memory_counts_over_all_children(how: str) -> None:
    spread = f"""
import os, mmap, time
def shared():
    pages = mmap.mmap(-1, 60 << 20)
    for i in range(0, 60 << 20, 4096): pages[i] = 1
    return pages
def task_func(text):
    for _ in range(8):
        if os.fork() == 0:
            kept = {how}
            time.sleep(60)
    time.sleep(60)
"""
    try:
        v = Verifier(workers=1, timeout=15.0, memory_mb=256, isolation="tier1+tier2", cache=False)
    except RestrlError as error:
        pytest.skip(str(error))
    with v:
        verdict = v.verify([(SPLIT, spread)])[0]
    assert verdict.tests == ("memory", "memory"), verdict
    assert verdict.detail == "it and the programs it started held too much together"


def test_the_judge_and_others_cannot_be_reached(verifier: Verifier) -> None:
    kill = """
import os, signal
def probe():
    for pid in (os.getppid(), -1, *range(2, 400)):
        try:
            if pid != os.getpid(): os.kill(pid, signal.SIGKILL)
        except OSError: pass
    return True
"""
    assert worked(verifier, kill)  # it has its own process numbers, and has killed nobody
    verdict = one(
        verifier, "import subprocess\ndef task_func(t): return subprocess.call('kill -9 -1 1', shell=True)"
    )
    assert not verdict.passed


# By their numbers on x86-64 where no command makes them.
_CALLS = {
    "ptrace": "101, 0, 0, 0, 0",
    "io_uring": "425, 1, 0",
    "bpf": "321, 0, 0, 0",
    "keyctl": "250, 0, 0",
    "memfd": "319, b'x', 0",
    "memory of others": "310, 1, 0, 0, 0, 0, 0",
    "unshare": "272, 0x10000000",
    "clone a user namespace": "56, 0x10000011, 0, 0, 0, 0",
    "clone a pid namespace": "56, 0x20000011, 0, 0, 0, 0",
    "internet socket": "41, 2, 1, 0",
    "unix datagrams": "41, 1, 2, 0",
    "execveat": "322, 3, b'', 0, 0, 0x1000",
    "setns": "308, 3, 0",
    "mount": "165, 0, b'/tmp', b'tmpfs', 0, 0",
}
_SYSCALL = "def probe(): return ctypes.CDLL(None, use_errno=True).syscall({}) >= 0"


@pytest.mark.parametrize(
    "body",
    [
        shell("cat /etc/passwd"),
        shell("echo x > /usr/lib/x"),
        shell("cp /bin/true /tmp/own && /tmp/own"),  # what it wrote itself is no program
        shell("mount -t tmpfs x /tmp"),
        shell("unshare -U true"),
        shell("unshare -n true"),
        shell("su -c true"),
        shell("mkdir /tmp/x && chroot /tmp/x /bin/true"),
        shell("ls /proc/1"),
        shell("chown 0 /tmp"),
        "def probe(): return subprocess.check_output(['su', '-c', 'id -u']).strip() == b'0'",
        "def probe(): return ctypes.CDLL(None).setuid(0) == 0",
        *map(_SYSCALL.format, _CALLS.values() if platform.machine() == "x86_64" else ()),
    ],
    ids=lambda body: body[-48:],
)
def test_what_stays_closed(verifier: Verifier, body: str) -> None:
    assert not worked(verifier, body)
    assert not worked(verifier, body, TOGETHER)


def test_no_connection_gets_out(verifier: Verifier, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        assert not worked(verifier, shell(f"bash -c 'echo x > /dev/tcp/127.0.0.1/{port}'"))
        with pytest.raises(BlockingIOError):
            server.accept()


def test_outcomes_told_twice_are_no_outcomes(verifier: Verifier) -> None:
    """A program that forks within the first test: both go on, and each tells how the tests ended."""
    tests = GUARDED + "    def test_zero(self):\n        self.assertEqual(task_func(''), 0)\n"
    what = problem(tests)
    twice = (
        "import os\ndef task_func(text):\n    if text == 'x': os.fork()\n    return len(text.split()) or 7\n"
    )
    assert one(verifier, HONEST, what).passed
    verdict = one(verifier, twice, what)
    assert not verdict.passed
    assert verdict.tests[-1] != "passed"
