"""Training of both heads: it learns what can be learned, keeps the best, and a kill changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import make_tiny_qwen2

from restrl.config import ValueConfig
from restrl.errors import RestrlError
from restrl.policy.local import LocalPolicy
from restrl.records import Calls, Problem
from restrl.training import loop
from restrl.value import line_ends, load_value, train
from restrl.value.train import _batches, _split, _spread, _target, train_value

torch.set_num_threads(1)

GOOD, BAD = "    c = b[::-1]\n", "    b = [x for x in a if x >= 5]\n"


def problem(name: str) -> Problem:
    text = f"# {name}\ndef f(a):\n"
    return Problem(
        task_id=name,
        source="pipelines",
        prompt=text,
        mode="complete",
        prefix=text,
        tests=Calls(fn_name="f", args=[[1]], expected=[1]),
    )


PROBLEMS = {p.task_id: p for p in (problem(f"t{i}") for i in range(20))}


def rows(per_problem: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """Three lines each, good or bad; the target at a line end is the share of good lines so far."""
    rng = np.random.default_rng(seed)
    out = []
    for p in PROBLEMS.values():
        for _ in range(per_problem):
            good = rng.integers(0, 2, 3)
            program = p.prefix + "".join(GOOD if g else BAD for g in good)
            ends = line_ends(program, len(p.prefix))
            values = [float(good[: i + 1].prod()) for i in range(3)]
            out.append(
                {
                    "task_id": p.task_id,
                    "program": program,
                    "ends": ends,
                    "values": values,
                    "visits": [3, 2, 1],
                }
            )
    return out


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> LocalPolicy:
    return LocalPolicy(make_tiny_qwen2(tmp_path_factory.mktemp("qwen")), device="cpu", max_rows=32)


ADDITIVE = ValueConfig(head="additive", epochs=15, hidden_size=32, learning_rate=1e-2)
SCALAR = ValueConfig(head="scalar", epochs=12, learning_rate=5e-3)


@pytest.mark.parametrize("cfg", [ADDITIVE, SCALAR], ids=["additive", "scalar"])
def test_learns_what_can_be_learned(cfg: ValueConfig, policy: LocalPolicy, tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in policy.model.state_dict().items()}
    final = train_value(cfg, rows(), PROBLEMS, policy, tmp_path / "v", seed=0)
    summary = json.loads((tmp_path / "v" / "value.json").read_text())
    assert summary["eval_mse"] < 0.3 * summary["constant_mse"]
    assert summary["eval_auc"] > 0.95
    assert summary["eval_spearman"] > 0.8
    assert (summary["problems"], summary["eval_problems"], summary["rows"]) == (18, 2, 72)
    assert all(torch.equal(v, before[k]) for k, v in policy.model.state_dict().items())
    value = load_value(final, policy=policy)
    p = PROBLEMS["t3"]
    good, bad = value.score([(p, p.prefix + GOOD * 3), (p, p.prefix + GOOD + BAD + GOOD)])
    assert good.last > 0.6 > 0.4 > bad.last
    assert bad.values[0] > bad.values[1] + 0.3
    kept = [path.name for path in (tmp_path / "v" / "train").iterdir() if path.is_dir()]
    assert kept == []


def test_best_evaluation_is_the_result(policy: LocalPolicy, tmp_path: Path) -> None:
    train_value(ADDITIVE, rows(), PROBLEMS, policy, tmp_path / "v", seed=0)
    metrics = [
        json.loads(line) for line in (tmp_path / "v" / "train" / "metrics.jsonl").read_text().splitlines()
    ]
    summary = json.loads((tmp_path / "v" / "value.json").read_text())
    seen = {row["step"] - 1: row["eval_loss"] for row in metrics if "eval_loss" in row}
    assert len(seen) >= 8
    assert summary["eval_loss"] <= min(seen.values()) + 1e-6
    if summary["best_step"] in seen:
        assert summary["eval_loss"] == pytest.approx(seen[summary["best_step"]], abs=1e-6)


def test_weights_that_fit_noise_are_not_the_result(policy: LocalPolicy, tmp_path: Path) -> None:
    """Targets that nothing explains: the evaluation gets worse with training, and an early state is kept."""
    data = rows()
    rng = np.random.default_rng(1)
    for row in data:
        row["values"] = [float(rng.integers(0, 2))] * 3
        row["program"] = row["program"].replace(">= 5", f">= {rng.integers(0, 100)}")
        row["ends"] = line_ends(row["program"], len(PROBLEMS[row["task_id"]].prefix))
    cfg = ADDITIVE.model_copy(update={"epochs": 25})
    train_value(cfg, data, PROBLEMS, policy, tmp_path / "v", seed=0)
    summary = json.loads((tmp_path / "v" / "value.json").read_text())
    lines = (tmp_path / "v" / "train" / "metrics.jsonl").read_text().splitlines()
    seen = [row["eval_loss"] for row in map(json.loads, lines) if "eval_loss" in row]
    assert summary["best_step"] < summary["steps"]
    assert summary["eval_loss"] == pytest.approx(min(seen))
    assert seen[-1] > 1.1 * min(seen)


@pytest.mark.parametrize(
    "cfg", [ADDITIVE, SCALAR.model_copy(update={"epochs": 6})], ids=["additive", "scalar"]
)
def test_killed_and_started_again(
    cfg: ValueConfig, policy: LocalPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rows()
    undisturbed = train_value(cfg, data, PROBLEMS, policy, tmp_path / "a", seed=4)
    advance = loop._Stepper.advance
    for stop in (3, 27):

        def dying(self: Any, where: Path, stop: int = stop) -> Any:
            if self.step == stop:
                raise KeyboardInterrupt
            return advance(self, where)

        monkeypatch.setattr(loop._Stepper, "advance", dying)
        with pytest.raises(KeyboardInterrupt):
            train_value(cfg, data, PROBLEMS, policy, tmp_path / "b", seed=4)
        monkeypatch.setattr(loop._Stepper, "advance", advance)

    def full(path: Path, data: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "write_json", full)
    with pytest.raises(KeyboardInterrupt):  # the loop is done, the result is not written
        train_value(cfg, data, PROBLEMS, policy, tmp_path / "b", seed=4)
    monkeypatch.undo()
    again = train_value(cfg, data, PROBLEMS, policy, tmp_path / "b", seed=4)
    names = sorted(path.name for path in undisturbed.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    for name in names:
        assert (undisturbed / name).read_bytes() == (again / name).read_bytes(), name
    assert (tmp_path / "a" / "value.json").read_bytes() == (tmp_path / "b" / "value.json").read_bytes()
    stamp = (again / names[0]).stat().st_mtime_ns
    assert train_value(cfg, data, PROBLEMS, policy, tmp_path / "b", seed=4) == again
    assert (again / names[0]).stat().st_mtime_ns == stamp


def test_killed_while_the_last_but_best_weights_are_deleted(
    policy: LocalPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a folder must not stand there as weights that could be the best."""
    monkeypatch.setattr(train, "_EVALUATIONS", 2)
    data, remove = rows(), shutil.rmtree
    undisturbed = train_value(ADDITIVE, data, PROBLEMS, policy, tmp_path / "a", seed=4)
    killed = []

    def torn(path: Path, *arguments: Any, **options: Any) -> None:
        if "best-" in path.name and not killed:
            killed.append(path)
            (path / "additive_head.safetensors").unlink()
            raise KeyboardInterrupt
        remove(path, *arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", torn)
    with pytest.raises(KeyboardInterrupt):
        train_value(ADDITIVE, data, PROBLEMS, policy, tmp_path / "b", seed=4)
    assert (tmp_path / "b" / "train" / "final").exists()  # it was the last evaluation
    again = train_value(ADDITIVE, data, PROBLEMS, policy, tmp_path / "b", seed=4)
    name = "additive_head.safetensors"
    assert (undisturbed / name).read_bytes() == (again / name).read_bytes()


def test_another_seed_or_other_rows_are_another_run(policy: LocalPolicy, tmp_path: Path) -> None:
    cfg = ADDITIVE.model_copy(update={"epochs": 1})
    a = train_value(cfg, rows(), PROBLEMS, policy, tmp_path / "a", seed=1)
    b = train_value(cfg, rows(), PROBLEMS, policy, tmp_path / "b", seed=2)
    name = "additive_head.safetensors"
    assert any(not torch.equal(v, load_file(b / name)[k]) for k, v in load_file(a / name).items())
    (tmp_path / "a" / "final").rename(tmp_path / "gone")
    with pytest.raises(RestrlError, match="other settings"):
        train_value(cfg, rows(seed=9), PROBLEMS, policy, tmp_path / "a", seed=1)


def test_visits_weigh_targets(policy: LocalPolicy, tmp_path: Path) -> None:
    """The same program with targets 0 and 1: the value settles where the visits pull it."""
    data = []
    for p in PROBLEMS.values():
        program = p.prefix + GOOD
        for y, visits in ((1.0, 9), (0.0, 1)):
            data.append(
                {
                    "task_id": p.task_id,
                    "program": program,
                    "ends": [len(program)],
                    "values": [y],
                    "visits": [visits],
                }
            )
    cfg = ADDITIVE.model_copy(update={"pairwise": 0.0, "weight_by_visits": True})
    p = PROBLEMS["t0"]
    for weighted, want in ((True, 0.9), (False, 0.5)):
        final = train_value(
            cfg.model_copy(update={"weight_by_visits": weighted}),
            data,
            PROBLEMS,
            policy,
            tmp_path / str(weighted),
            seed=0,
        )
        (got,) = load_value(final, policy=policy).score([(p, p.prefix + GOOD)])
        assert got.last == pytest.approx(want, abs=0.1)


def test_long_programs_are_dropped_and_counted(policy: LocalPolicy, tmp_path: Path) -> None:
    data = rows()
    for row in data[::4]:
        row["program"] += GOOD * 20
        row["ends"].append(len(row["program"]))
        row["values"].append(1.0)
        row["visits"].append(1)
    for head in ("additive", "scalar"):
        cfg = ValueConfig(head=head, epochs=1, max_length=100, learning_rate=1e-3)  # type: ignore[arg-type]
        train_value(cfg, data, PROBLEMS, policy, tmp_path / head, seed=0)
        assert json.loads((tmp_path / head / "value.json").read_text())["dropped"] == 20
    with pytest.raises(RestrlError, match="80 of 80 programs are longer"):
        train_value(cfg.model_copy(update={"max_length": 5}), data, PROBLEMS, policy, tmp_path / "c", seed=0)


def test_damaged_rows_are_named(policy: LocalPolicy, tmp_path: Path) -> None:
    good = rows()[0]
    for change, words in [
        ({"task_id": "elsewhere"}, "value target 1: KeyError"),
        ({"values": [0.5]}, "equally long"),
        ({"ends": good["ends"][::-1]}, "rising"),
        ({"values": [0.5, 0.5, 1.5]}, r"not in \[0, 1\]"),
        ({"values": [0.5, 0.5, float("nan")]}, r"not in \[0, 1\]"),
        ({"ends": [1, 2, 3]}, "outside the program"),
        ({"program": "x"}, "outside the program"),
    ]:
        with pytest.raises(RestrlError, match=words):
            train_value(ADDITIVE, [{**good, **change}], PROBLEMS, policy, tmp_path / "v", seed=0)
    with pytest.raises(RestrlError, match="nothing to train"):
        train_value(ADDITIVE, [], PROBLEMS, policy, tmp_path / "v", seed=0)


def test_split_spread_and_batches() -> None:
    targets = [_target(row, i, PROBLEMS) for i, row in enumerate(rows())]
    train, held_out = _split(targets, 3)
    assert {t.problem.task_id for t in train}.isdisjoint({t.problem.task_id for t in held_out})
    assert (len(train), len(held_out)) == (72, 8)
    assert _split(targets, 3) == (train, held_out)
    few = _spread(targets, 25, 0)
    counts = [sum(t.problem.task_id == name for t in few) for name in PROBLEMS]
    assert sum(counts) == 25
    assert set(counts) == {1, 2}

    class Example:
        def __init__(self, group: int) -> None:
            self.group = group

    examples: Any = [Example(i % 10) for i in range(50)]
    batches = _batches(examples, 16, 4, [0, 0])
    assert sorted(i for b in batches for i in b) == list(range(50))
    assert all(len(b) <= 16 for b in batches)
    assert _batches(examples, 16, 4, [0, 1]) != batches
    singles = _batches(examples, 16, 1, [0, 0])
    assert [len(b) for b in singles] == [16, 16, 16, 2]
