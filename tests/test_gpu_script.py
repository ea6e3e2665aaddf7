"""gpu.py without a GPU: its dry run goes through every part, a part that fails stops nothing."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def script(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCHMARKS / "gpu.py", *words],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = script()
    assert done.returncode == 1
    said = "There is no GPU that torch can use here; --dry-run walks through the script without one.\n"
    assert (done.stdout, done.stderr) == (said, "")


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("kernels_gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are not interpreted")
@pytest.mark.timeout(600)
def test_every_part_goes_through_a_dry_run(parts: ModuleType) -> None:
    session = parts.Session(dry=True, until=time.time() + 500)
    for name, part in parts.PARTS.items():
        if name not in ("tests", "compiled"):  # tested by themselves
            part(session)
    assert all(row.p50 > 0 or "error" in row.name for row in session.rows)
    judged = [row for row in session.rows if row.must is not None]
    assert len(judged) > 30
    assert all(row.met for row in judged)
    assert {row.unit for row in judged} == {""}  # a dry run's times are held against nothing


def test_a_run_goes_on_with_the_parts_that_it_lacks(parts: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = script("--dry-run", "--json", str(out), "--only", "repeatability")
    assert done.returncode == 0, done.stdout + done.stderr
    done = script("--dry-run", "--json", str(out), "--resume", "--only", "ceilings", "repeatability")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "== ceilings" in done.stdout
    assert "== repeatability" not in done.stdout
    found = json.loads(out.read_text())
    assert {name: part["state"] for name, part in found["parts"].items()} == {
        "repeatability": "done", "ceilings": "done",
    }  # fmt: skip
    assert {row["name"].split(":")[-1].strip() for row in found["rows"]} >= {"equal bits twice", parts.COPIED}


STUB = """
import time
class Session:
    def __init__(self, dry, until):
        self.rows = []
    def describe(self):
        return {}
    versions = describe
def fails(s):
    raise ValueError("a launch failed")
def hangs(s):
    import harness
    s.rows.append(harness.row("before it hung", "ms", [1.0]))
    s.report()
    time.sleep(600)
def dies(s):
    import os
    os.abort()
class Part:
    def __init__(self, run):
        self.run, self.seconds = run, 5  # a dry run has four times as much
    def __call__(self, s):
        return self.run(s)
PARTS = {name: Part(run) for name, run in dict(fails=fails, hangs=hangs, dies=dies, late=fails).items()}
PARTS["fine"] = Part(lambda s: "well")
PARTS["late"].seconds = 3
"""


def test_a_part_that_fails_hangs_or_dies_stops_nothing(tmp_path: Path) -> None:
    """On copies of the scripts beside which other parts stand."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name in ("gpu.py", "harness.py"):
        (folder / name).write_text((BENCHMARKS / name).read_text("utf-8"), "utf-8")
    (folder / "kernels_gpu.py").write_text(STUB, "utf-8")
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, folder / "gpu.py", "--dry-run", "--json", out],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.exists(), done.stdout + done.stderr
    assert done.returncode == 1
    found = json.loads(out.read_text())
    states = {name: part["state"] for name, part in found["parts"].items()}
    assert states == {
        "fails": "failed", "hangs": "timed out", "dies": "failed", "late": "left out", "fine": "done",
    }  # fmt: skip
    assert "ValueError: a launch failed" in found["parts"]["fails"]["said"]
    assert found["parts"]["hangs"]["said"] == "stopped after 20 s"
    assert found["parts"]["dies"]["said"] == "exit code -6"
    assert [row["name"] for row in found["rows"]] == ["before it hung"]
