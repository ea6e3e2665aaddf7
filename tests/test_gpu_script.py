"""gpu.py without a GPU: its dry run goes through every part, a part that fails stops nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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


def test_the_dry_run_goes_through_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    out = tmp_path / "gpu.json"
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from kernels_gpu import PARTS

    parts = set(PARTS) - {"tests", "compiled"}  # tested by themselves
    done = script("--dry-run", "--json", str(out), "--only", *(p for p in parts if p != "ceilings"))
    assert done.returncode == 0, done.stdout + done.stderr
    done = script("--dry-run", "--json", str(out), "--resume", "--only", "ceilings", "repeatability")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "== ceilings" in done.stdout
    assert "== repeatability" not in done.stdout
    found = json.loads(out.read_text())
    assert set(found["parts"]) == parts
    assert {part["state"] for part in found["parts"].values()} == {"done"}
    rows = found["rows"]
    assert all(row["p50"] > 0 or "error" in row["name"] for row in rows)
    judged = [row for row in rows if row["must"] is not None]
    assert len(judged) > 30
    assert all(row["met"] for row in judged)
    assert {row["unit"] for row in judged} == {""}  # a dry run's times are held against nothing


def test_what_fails_is_said_and_what_is_late_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "path", [*sys.path])
    import gpu

    class Session:
        until = float("inf")

    def part(session: Session) -> str:
        raise ValueError("a launch failed")

    found = gpu.run("a part", part, Session())
    assert found["state"] == "failed"
    assert "ValueError: a launch failed" in str(found["said"])
    Session.until = 0.0
    assert gpu.run("a part", part, Session()) == {"state": "left out"}
