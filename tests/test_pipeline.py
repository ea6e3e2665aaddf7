"""The whole loop over a run folder: it ends, it can be killed at any moment, and it refuses what it must."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from restrl import config as configuration
from restrl import rows
from restrl.errors import RestrlError
from restrl.pipeline import Run, problem_set
from restrl.value.scalar import ScalarValue

CONFIG = """
out = "{out}"
seed = 5
iterations = 2
[model]
path = "pipelines-base"
device = "cpu"
dtype = "float32"
[problems]
train = "pipelines:train:20:2-4"
test = "pipelines:test:6:2-4"
[sample]
n = 4
temperature = 1.0
max_new_tokens = 96
[train]
max_steps = 4
prompts_per_step = 4
num_generations = 4
learning_rate = 1e-3
max_completion_length = 96
save_steps = 1
[collect]
simulations = 3
k = 3
max_new_tokens = 96
trees_in_flight = 8
[value]
epochs = 1
[decode]
methods = ["sample", "greedy", "vote", "likelihood", "orm", "prm", "orm-mcts", "vm-mcts", "oracle"]
budget = 4
k = 2
max_new_tokens = 96
[verifier]
workers = 1
"""
TIMES = {
    "seconds", "verifier_seconds", "step_time", "generate_time", "reward_time", "out", "git_commit",
}  # fmt: skip


def write_config(folder: Path, name: str, text: str = CONFIG) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text.format(out=folder / name))
    return path


def start(config: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "restrl", "run", str(config), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict[str, object]:
    """Everything a run leaves except checkpoints, which only resuming reads, and times."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or "checkpoint-" in name or path.name in (".lock", "report.html"):
            continue
        if path.suffix == ".jsonl":
            found[name] = [without_times(row) for row in rows.read_rows(path)]
        elif path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        else:
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(folder of a run that nothing disturbed, its seconds)."""
    folder = tmp_path_factory.mktemp("runs")
    begin = time.monotonic()
    process = start(write_config(folder, "whole"))
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    return folder / "whole", time.monotonic() - begin


def test_the_loop_leaves_every_documented_file(undisturbed):
    folder, _ = undisturbed
    for name in (
        "config.json", "run.json", "iter-1/samples.jsonl", "iter-1/states.jsonl", "iter-2/samples.jsonl",
        "iter-2/policy/final/model.safetensors", "iter-2/policy/metrics.jsonl", "value/targets.jsonl",
        "decode/answers.jsonl", "results/results.json", "results/samples.jsonl", "report.html",
    ):  # fmt: skip
        assert (folder / name).exists(), name
    results = json.loads((folder / "results" / "results.json").read_text())["rows"]
    largest = {row["decoding"]: row for row in results}
    assert set(largest) == set(configuration.METHODS)
    assert all(row["problems"] == 6 for row in results)
    assert largest["oracle"]["accuracy"] >= largest["orm"]["accuracy"]
    assert all(row["generated"] <= 6 * row["budget"] for row in results)
    metrics = rows.read_rows(folder / "iter-1" / "policy" / "metrics.jsonl")
    assert [m["step"] for m in metrics] == [1, 2, 3, 4]
    first, second = (
        (folder / f"iter-{i}" / "policy" / "final" / "model.safetensors").read_bytes() for i in (1, 2)
    )
    assert first != second
    sample = rows.read_rows(folder / "results" / "samples.jsonl")[0]
    assert {"task_id", "solution", "completion"} <= sample.keys()
    assert sample["solution"].endswith(sample["completion"])


@pytest.mark.timeout(600)
def test_killed_at_random_moments_it_ends_the_same(undisturbed, tmp_path):
    whole, seconds = undisturbed
    config = write_config(tmp_path, "killed")
    rng = random.Random(0)
    kills = 0
    for _ in range(6):
        process = start(config)
        try:
            process.wait(timeout=rng.uniform(0.2, 0.6) * seconds)
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
    process = start(config)
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    assert kills >= 2
    assert contents(tmp_path / "killed") == contents(whole)


def test_ctrl_c_stops_with_a_sentence_and_goes_on(undisturbed, tmp_path):
    whole, seconds = undisturbed
    config = write_config(tmp_path, "stopped")
    process = start(config)
    time.sleep(0.6 * seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command goes on from here" in errors
    assert "Traceback" not in errors
    process = start(config)
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    assert contents(tmp_path / "stopped") == contents(whole)


def test_a_finished_run_is_not_done_again(undisturbed):
    folder, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    process = start(folder.parent / "whole.toml")
    out, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert "done" in out
    assert "vm-mcts     additive        4  " in out
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_another_config_in_the_same_folder_is_refused_with_the_difference(undisturbed):
    folder, _ = undisturbed
    process = start(folder.parent / "whole.toml", "train.beta=0.5")
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "holds a run of another config (train.beta: 0.04 -> 0.5)" in errors


def test_a_second_process_in_the_folder_is_refused(undisturbed):
    folder, _ = undisturbed
    with rows.lock(folder):
        process = start(folder.parent / "whole.toml")
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "another restrl process is working in this folder" in errors


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("assemble", r"samples\.jsonl is missing: run the stage sample first"),
        ("train-policy", r"states\.jsonl is missing: run the stage assemble first"),
        ("collect", r"iter-2/policy/final is missing: run the stage train-policy first"),
        ("train-value", r"targets\.jsonl is missing: run the stage collect first"),
        ("evaluate", r"answers\.jsonl is missing: run the stage decode first"),
    ],
)
def test_a_stage_without_its_input_says_which_stage_is_missing(tmp_path, stage, message):
    config = configuration.load(write_config(tmp_path, "empty"))
    with Run.open(config) as run, pytest.raises(RestrlError, match=message):
        run.stage(stage)


@pytest.mark.parametrize("stage", ["collect", "train-value", "decode", "evaluate"])
def test_what_belongs_to_the_whole_run_takes_no_earlier_iteration(tmp_path, stage):
    config = configuration.load(write_config(tmp_path, "empty"))
    with Run.open(config) as run, pytest.raises(RestrlError, match="the policy of the last iteration, 2"):
        run.stage(stage, 1)


def test_decoding_scores_programs_longer_than_those_trained_on(tmp_path):
    """value.max_length cannot be changed in a run folder: an error there would end the run for good."""
    text = CONFIG.replace("epochs = 1", 'epochs = 1\nhead = "scalar"\nmax_length = 20')
    with Run.open(configuration.load(write_config(tmp_path, "long", text))) as run:
        policy = run.policy(0)
        ScalarValue.from_policy(policy).save(run.folder / "value" / "model" / "final")
        value = run._values(policy)["scalar"]
        (program,) = run.test[:1]
        (found,) = value.score([(program, program.prefix + "    b = a\n" * 20)])
        assert len(found.values) == 20


def test_what_a_kill_left_of_a_file_goes(tmp_path):
    config = configuration.load(write_config(tmp_path, "torn"))
    torn = tmp_path / "torn" / "results" / ".samples.jsonl.4711.tmp"
    torn.parent.mkdir(parents=True)
    torn.write_text('{"task_')
    with Run.open(config):
        assert not torn.exists()


def test_other_problems_under_the_same_name_are_refused(tmp_path):
    path = tmp_path / "problems.jsonl"
    problems = [p.model_dump() for p in problem_set("pipelines:train:3:2-4", "auto", 0)]
    rows.write_rows(path, problems)
    text = CONFIG.replace("pipelines:train:20:2-4", str(path))
    config = configuration.load(write_config(tmp_path, "changed", text))
    with Run.open(config):
        pass
    with Run.open(config):
        pass
    rows.write_rows(path, problems[1:])
    with pytest.raises(RestrlError, match="not the problems that the run"), Run.open(config):
        pass


@pytest.mark.parametrize(
    "spec",
    ["pipelines:train", "pipelines:train:x", "pipelines:train:4:2", "pipelines:", "pipelines:dev:4:2-3:x"],
)
def test_malformed_generated_problem_sets(spec):
    with pytest.raises(RestrlError, match="not of the form pipelines:SPLIT:N:LO-HI"):
        problem_set(spec, "auto", 0)


def test_dry_run_prints_the_resolved_config(tmp_path):
    config = write_config(tmp_path, "dry")
    process = start(config, "--dry-run", "seed=9")
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert json.loads(out)["seed"] == 9
    assert not (tmp_path / "dry").exists()
