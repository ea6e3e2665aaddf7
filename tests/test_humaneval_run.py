"""The documented example: the whole loop on a HumanEval file with a tiny random Qwen2."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from restrl import rows

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("RESTRL_SHARED_DATA", ROOT.parent / "shared" / "data"))

MADE = [  # in HumanEval's form, so that the test needs no download
    {
        "task_id": f"HumanEval/{i}",
        "prompt": f'def {name}(x: int) -> int:\n    """Return x {sign} {i + 2}."""\n',
        "entry_point": name,
        "canonical_solution": f"    return x {sign} {i + 2}\n",
        "test": f"def check(candidate):\n    assert candidate(7) == 7 {sign} {i + 2}\n",
    }
    for i, (name, sign) in enumerate([("plus", "+"), ("minus", "-"), ("times", "*"), ("rest", "%")])
]


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "tiny-qwen2"
    script = ROOT / "examples" / "tiny_qwen2.py"
    subprocess.run([sys.executable, str(script), str(folder)], check=True, timeout=120)
    return folder


def start(tmp_path, model, problems, *more):
    return subprocess.Popen(
        [
            sys.executable, "-m", "restrl", "run", str(ROOT / "examples" / "humaneval.toml"),
            f"out={tmp_path / 'run'}", f"model.path={model}", f"problems.train={problems}",
            f"problems.test={problems}", *more,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def check_samples(path, problems):
    """What EvalPlus asks of a samples file: every problem, whole programs, no key with an underscore."""
    samples = rows.read_rows(path)
    assert [s["task_id"] for s in samples] == [p["task_id"] for p in problems]
    for sample, problem in zip(samples, problems, strict=True):
        assert sample["solution"] == problem["prompt"] + sample["completion"]
        assert not any(key.startswith("_") for key in sample)


def test_it_is_killed_resumes_ends_and_yields_samples(tmp_path, model):
    problems = tmp_path / "made.jsonl.gz"
    with gzip.open(problems, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in MADE)
    process = start(tmp_path, model, problems)
    states = tmp_path / "run" / "iter-1" / "states.jsonl"
    limit = time.monotonic() + 120
    while not states.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert states.exists(), errors
    assert not (tmp_path / "run" / "results").exists()
    process = start(tmp_path, model, problems)
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    check_samples(tmp_path / "run" / "results" / "samples.jsonl", MADE)
    results = json.loads((tmp_path / "run" / "results" / "results.json").read_text())
    assert {row["decoding"] for row in results["rows"]} == {"greedy", "likelihood", "vm-mcts"}


@pytest.mark.skipif(not (SHARED / "humaneval").exists(), reason="the real HumanEval file is not here")
def test_the_real_file(tmp_path, model):
    path = SHARED / "humaneval" / "HumanEval.half.jsonl.gz"
    process = start(tmp_path, model, path, "collect.problems=4", "decode.methods=['greedy', 'vm-mcts']")
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    check_samples(tmp_path / "run" / "results" / "samples.jsonl", rows.read_rows(path))
