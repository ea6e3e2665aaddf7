"""Environments in odd places: below /tmp, in a closed home, with spaces, behind links and .pth files.

The real path: a verifier started by an environment's own interpreter, with verdicts that need its packages.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

import restrl
from restrl import _core, _sandbox

_SCRIPT = """
import json, sys
from restrl.records import Context, Problem, Unittest
from restrl.sandbox import Verifier
import restrl

CONTEXT = '''
import numpy as np, small
def test_execution(solution):
    env = {}
    exec("import numpy as np, small\\\\n" + solution, env)
    assert env["result"] == small.VALUE + int(np.ones(3).sum())
'''
TESTS = '''
import unittest, tempfile, os, numpy, small, beyond
from unittest.mock import patch
class TestCases(unittest.TestCase):
    def test_apart(self):
        self.assertEqual(task_func(1), small.VALUE + beyond.VALUE + 1)
    def test_beside(self):
        with patch("small.VALUE", 5):
            self.assertEqual(task_func(0), 5 + beyond.VALUE)
    def test_own_place(self):
        self.assertFalse([n for n in os.listdir("/tmp") if n.endswith(".txt")])
        with tempfile.NamedTemporaryFile() as file:
            self.assertTrue(file.name.startswith("/tmp/"))
'''
REFERENCE = "import numpy, small, beyond\\ndef task_func(x):\\n"
REFERENCE += "    return int(numpy.abs(x)) + small.VALUE + beyond.VALUE\\n"
# Its own packages stay what they are, and nothing else of the machine is seen.
WRITES = '''
import small, os
def task_func(x):
    for act in (lambda: open(small.__file__, "w"), lambda: os.unlink(small.__file__), lambda: open(SECRET)):
        try:
            act()
        except OSError:
            continue
        raise RuntimeError("open")
    return x + small.VALUE + 30
'''
common = dict(task_id="place", source="test", prompt="", mode="instruct")
unit = Problem(**common, tests=Unittest(code=TESTS, entry_point="task_func"), reference=REFERENCE)
context = Problem(**common, tests=Context(code=CONTEXT), reference="result = small.VALUE + 3")
wants = [(unit, REFERENCE), (context, context.reference)]
wants += [(unit, WRITES.replace("SECRET", repr(sys.argv[2])))]
with Verifier(workers=1, cache=False, isolation=sys.argv[1]) as verifier:
    verdicts = [v.__dict__ for v in verifier.verify(wants)]
print(json.dumps({"where": restrl.__file__, "verdicts": verdicts}))
"""


def _environment(place: Path) -> tuple[Path, Path]:
    """An environment at `place` with restrl, a package of its own, links to all others, one behind a .pth."""
    venv.create(place, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = place / "lib" / version / "site-packages"
    shutil.copytree(
        Path(restrl.__file__).parent,
        packages / "restrl",
        ignore=shutil.ignore_patterns("__pycache__", "*.so"),
    )
    for module in (_core, _sandbox):
        name = module.__name__.rpartition(".")[2] + importlib.machinery.EXTENSION_SUFFIXES[0]
        shutil.copy(str(module.__file__), packages / "restrl" / name)
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "restrl" not in entry.name and entry.suffix != ".pth" and not (packages / entry.name).exists():
            (packages / entry.name).symlink_to(entry)
    (packages / "small").mkdir()
    (packages / "small" / "__init__.py").write_text("VALUE = 12\n")
    other = place / "elsewhere" / "site-packages"
    other.mkdir(parents=True)
    (other / "beyond.py").write_text("VALUE = 30\n")
    (packages / "more.pth").write_text(f"{other}\n{place / 'work'}\n")
    (place / "work").mkdir()
    secret = place / "work" / "notes.txt"  # on the path too, but no place of packages
    secret.write_text("mine")
    return place / "bin" / "python", secret


@pytest.fixture(params=["below /tmp", "closed home", "with spaces", "behind a link"])
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    below = "/tmp" if request.param == "below /tmp" else "/var/tmp"
    with tempfile.TemporaryDirectory(dir=below) as top:
        home = Path(top)
        if request.param == "with spaces":
            home = home / "my own files"
        if request.param != "closed home":
            Path(top).chmod(0o755)  # as it is made it is its owner's alone
        if request.param == "behind a link":
            (home / "real").mkdir()
            (home / "link").symlink_to(home / "real")
            home = home / "link"
        yield home / "env"


@pytest.mark.parametrize("tier", ["tier1+tier2", "tier2"])
def test_verdicts_that_need_packages(place: Path, tier: str) -> None:
    python, secret = _environment(place)
    environment = {"PATH": os.environ["PATH"], "HOME": "/nowhere"}
    done = subprocess.run(
        [python, "-c", _SCRIPT, tier, secret], capture_output=True, text=True, env=environment, check=False
    )
    if "no sandbox can be set up here" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert Path(said["where"]).is_relative_to(place)
    unit, context, writes = said["verdicts"]
    assert context["passed"], context
    if tier == "tier2":  # has no place to write to
        assert unit["reward"] is None, unit
        assert "test_own_place" in unit["detail"]
        return
    assert unit["passed"], unit
    assert unit["mode"] == "split+guarded"
    assert writes["tests"][0] == "passed", writes
