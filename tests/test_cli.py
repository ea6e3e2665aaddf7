"""The command line: fast help, and one sentence for every mistake."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_models import make_tiny_qwen2

PROBLEM = {
    "task_id": "one", "source": "restrl", "prompt": "def f(x):\n", "mode": "complete", "entry_point": "f",
    "prefix": "def f(x):\n", "tests": {"kind": "calls", "fn_name": "f", "args": [[1]], "expected": [2]},
    "reference": "def f(x):\n    return x + 1\n", "meta": {},
}  # fmt: skip


def restrl(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "restrl", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, check=False, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def refused(done, *words):
    """Exit code 2 and one sentence that has these words."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("restrl: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps(PROBLEM) + "\n")
    return path


@pytest.fixture
def config(tmp_path, problems):
    path = tmp_path / "run.toml"
    path.write_text(
        f'out = "run"\n[model]\npath = "model"\ndevice = "cpu"\n[problems]\ntrain = "{problems.name}"\n'
        "[sample]\nn = 2\nmax_new_tokens = 8\n[assemble]\nmode = 'naive'\n"
    )
    return path


def test_help_is_fast_and_imports_no_torch(tmp_path):
    begin = time.monotonic()
    done = restrl("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert time.monotonic() - begin < 2  # 0.1 s on an idle machine
    for command in ("demo", "run", "sample", "assemble", "train-policy", "verify", "validate", "report"):
        assert command in done.stdout
    code = "import sys, restrl, restrl.cli, restrl.records, restrl.config; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


def test_missing_and_damaged_problem_files(tmp_path, config, problems):
    refused(restrl("run", config, "problems.train=none.jsonl", cwd=tmp_path), "none.jsonl")
    problems.write_text("")
    refused(restrl("run", config, cwd=tmp_path), "problems.jsonl", "empty")
    problems.write_text(json.dumps(PROBLEM) + "\n{torn\n")
    refused(restrl("run", config, cwd=tmp_path), "problems.jsonl:2")
    problems.write_text(2 * (json.dumps(PROBLEM) + "\n"))
    refused(restrl("run", config, cwd=tmp_path), "problems.jsonl:2", "one")
    refused(restrl("run", config, "problems.format=nonsense", cwd=tmp_path), "nonsense", "humaneval")
    refused(restrl("validate", "none.jsonl", cwd=tmp_path), "none.jsonl")
    problems.write_text(json.dumps({**PROBLEM, "reference": None}) + "\n")
    done = restrl("validate", problems, cwd=tmp_path)
    assert done.returncode != 0
    assert "reference" in done.stdout + done.stderr


def test_model_folders_that_are_none(tmp_path, config):
    refused(restrl("run", config, cwd=tmp_path), "model")
    model = make_tiny_qwen2(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (Path(model) / name).unlink()
    refused(restrl("run", config, cwd=tmp_path), "tokenizer")


def test_a_prompt_longer_than_the_context(tmp_path, config, problems):
    make_tiny_qwen2(tmp_path / "model", context=64)
    text = "# " + "words and words " * 100 + "\ndef f(x):\n"
    problems.write_text(json.dumps({**PROBLEM, "prompt": text, "prefix": text}) + "\n")
    refused(restrl("run", config, cwd=tmp_path), "one", "64")


def test_unknown_keys_and_missing_configs(tmp_path, config):
    refused(restrl("run", config, "train.lr=1", cwd=tmp_path), "unknown key train.lr")
    refused(restrl("run", "none.toml", cwd=tmp_path), "none.toml: no such config file")


def test_losses_that_do_not_exist_are_refused_before_sampling(tmp_path, config):
    refused(restrl("run", config, "train.loss_type=dapo", cwd=tmp_path), "dapo", "0.18.2", "1.16")
    assert not (tmp_path / "run").exists()


def test_iterations_outside_the_run(tmp_path, config):
    done = restrl("sample", config, "--iteration", "2", cwd=tmp_path)
    refused(done, "--iteration 2 is not in 1..1")
    assert not (tmp_path / "run").exists()


def test_run_folders_that_cannot_be(tmp_path, config):
    refused(restrl("sample", config, f"out={config.name}", cwd=tmp_path), f"{config.name} is a file")
    refused(restrl("sample", config, "out=/proc/none", cwd=tmp_path), "/proc/none: cannot be written")


def test_doctor_names_every_tier(tmp_path):
    done = restrl("doctor", cwd=tmp_path)
    for word in ("torch", "tier1+tier2", "tier2", "GPU"):
        assert word in done.stdout
    assert done.returncode in (0, 1)
    assert done.returncode == ("no sufficient isolation" in done.stdout)


def test_report_of_a_folder_that_holds_no_run(tmp_path):
    refused(restrl("report", tmp_path, cwd=tmp_path), str(tmp_path))
