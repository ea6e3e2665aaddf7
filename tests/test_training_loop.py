"""The training loop on a small regression: updates, schedules, guard, metrics, checkpoints, resume."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import get_scheduler

from restrl.errors import RestrlError
from restrl.training import checkpoint
from restrl.training.loop import Job, Log, Settings, lr_factor, parameter_groups, run

Hook = Callable[[int], None]


def settings(**changes: Any) -> Settings:
    return Settings(**{"total_steps": 12, "learning_rate": 0.05, "save_steps": 4, **changes})


class Regression:
    """A job that draws its data from torch's generator, counts its steps and can be disturbed by
    `hook(step)`.
    """

    def __init__(self, hook: Hook = lambda step: None, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(1)
        self.module = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 1))
        with torch.no_grad():
            for p in self.module.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        self.module.to(dtype)
        self.hook, self.count = hook, 0

    def losses(self, step: int, log: Log) -> Iterator[Tensor]:
        self.hook(step)
        self.count += 1
        log["count"] = self.count
        x = torch.randn(16, 3)
        for part in x.split(6):
            found = self.module(part.to(next(self.module.parameters()).dtype)).float()
            yield ((found - part.sum(1, keepdim=True)) ** 2).sum() / 16

    def job(self, **changes: Any) -> Job:
        return Job(
            **{
                "parameters": parameter_groups(self.module, 0.1),
                "losses": self.losses,
                "save": lambda folder: torch.save(self.module.state_dict(), folder / "weights.pt"),
                "load": lambda folder: self.module.load_state_dict(torch.load(folder / "weights.pt")),
                "state": lambda: {"count": self.count},
                "restore": lambda state: setattr(self, "count", state["count"]),
                **changes,
            }
        )

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.module.parameters()])


def stable(out: Path) -> list[dict[str, Any]]:
    """Metrics without times."""
    return [{k: v for k, v in row.items() if not k.endswith("_time")} for row in checkpoint.read_metrics(out)]


class Crash(Exception):
    pass


def crash_at(*steps: int) -> Hook:
    left = list(steps)

    def hook(step: int) -> None:
        if left and step == left[0]:
            left.pop(0)
            raise Crash

    return hook


def test_updates_equal_plain_adamw(tmp_path: Path) -> None:
    found = Regression()
    result = run(found.job(), settings(max_grad_norm=0.5), tmp_path, seed=3)
    plain = Regression()
    torch.manual_seed(3)
    optimizer = torch.optim.AdamW(parameter_groups(plain.module, 0.1), lr=0.05)
    for step in range(12):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (12 - step) / 12
        optimizer.zero_grad()
        x = torch.randn(16, 3)
        loss = ((plain.module(x) - x.sum(1, keepdim=True)) ** 2).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.module.parameters(), 0.5)
        optimizer.step()
        row = result.rows[step]
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
        assert row["learning_rate"] == pytest.approx(0.05 * (12 - step) / 12)
    torch.testing.assert_close(found.weights(), plain.weights(), rtol=1e-5, atol=1e-6)
    assert [row["step"] for row in result.rows] == list(range(1, 13))
    assert result.metrics["loss"] == pytest.approx(sum(row["loss"] for row in result.rows) / 12)


def test_only_matrices_decay() -> None:
    matrices, others = parameter_groups(Regression().module, 0.1)
    assert (len(matrices["params"]), matrices["weight_decay"]) == (2, 0.1)
    assert (len(others["params"]), others["weight_decay"]) == (4, 0.0)


@pytest.mark.parametrize("kind", ["linear", "constant", "cosine"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_equal_transformers(kind: str, warmup: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    name = "constant_with_warmup" if kind == "constant" else kind
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=10)
    for step in range(10):
        assert lr_factor(kind, step, warmup, 10) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_groups_keep_their_own_learning_rate(tmp_path: Path) -> None:
    frozen = Regression()
    first, last = frozen.module[0], frozen.module[2]
    groups = [{"params": [first.weight], "lr": 0.0, "weight_decay": 0.0}, {"params": [last.weight]}]
    before = first.weight.detach().clone(), last.weight.detach().clone()
    run(frozen.job(parameters=groups), settings(), tmp_path, seed=0)
    assert torch.equal(first.weight, before[0])
    assert not torch.equal(last.weight, before[1])


@pytest.mark.parametrize("crashes", [(0,), (3,), (4,), (5, 6, 11), (8, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_exact(tmp_path: Path, crashes: tuple[int, ...], dtype: torch.dtype) -> None:
    whole = Regression(dtype=dtype)
    run(whole.job(), settings(), tmp_path / "whole", seed=7)
    hook = crash_at(*crashes)
    for _ in crashes:
        with pytest.raises(Crash):
            run(Regression(hook, dtype).job(), settings(), tmp_path / "torn", seed=7)
        torch.manual_seed(99)  # whatever the next process starts with
    last = Regression(hook, dtype)
    run(last.job(), settings(), tmp_path / "torn", seed=7)
    assert torch.equal(last.weights(), whole.weights())
    assert stable(tmp_path / "torn") == stable(tmp_path / "whole")


def test_a_kill_at_any_file_operation_leaves_whole_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renames, deletions and flushes, each in turn the last thing a process does."""
    whole = Regression()
    run(whole.job(), settings(), tmp_path / "whole", seed=7)
    places = [(os, "replace"), (shutil, "rmtree"), (os, "fsync"), (torch, "save")]
    originals = [getattr(module, name) for module, name in places]
    survived = 0
    while True:
        out = tmp_path / str(survived)
        calls = iter(range(survived))

        def dying(original: Any, calls: Any = calls) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                if next(calls, None) is None:
                    raise Crash
                return original(*args, **kwargs)

            return call

        for (module, name), original in zip(places, originals, strict=True):
            monkeypatch.setattr(module, name, dying(original))
        try:
            run(Regression().job(), settings(), out, seed=7)
            break
        except Crash:
            pass
        finally:
            for (module, name), original in zip(places, originals, strict=True):
                monkeypatch.setattr(module, name, original)
        for step, folder in checkpoint.checkpoints(out):
            assert torch.load(folder / "trainer_state.pt", weights_only=True)["step"] == step
            assert torch.load(folder / "weights.pt", weights_only=True)
        rest = Regression()
        run(rest.job(), settings(), out, seed=7)
        assert torch.equal(rest.weights(), whole.weights())
        assert stable(out) == stable(tmp_path / "whole")
        survived += 1
    assert survived > 25


def test_a_torn_row_and_rows_past_the_checkpoint_go(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        run(Regression(crash_at(7)).job(), settings(), tmp_path, seed=7)
    assert [row["step"] for row in checkpoint.read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    run(Regression().job(), settings(), tmp_path, seed=7)
    assert [row["step"] for row in checkpoint.read_metrics(tmp_path)] == list(range(1, 13))


def test_checkpoints_rotate_and_leftovers_go(tmp_path: Path) -> None:
    (tmp_path / ".incomplete-checkpoint-2").mkdir()
    run(Regression().job(), settings(save_steps=2, save_total_limit=2), tmp_path, seed=0)
    assert [step for step, _ in checkpoint.checkpoints(tmp_path)] == [8, 10]
    assert not list(tmp_path.glob(".*"))


def test_a_finished_run_loads_its_final_weights(tmp_path: Path) -> None:
    first = Regression()
    result = run(first.job(), settings(), tmp_path, seed=0)
    again = Regression(crash_at(0))
    assert run(again.job(), settings(), tmp_path, seed=0) == result
    assert torch.equal(again.weights(), first.weights())


def test_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        run(Regression(crash_at(5)).job(), settings(), tmp_path, seed=0)
    with pytest.raises(RestrlError, match=r"learning_rate 0\.05 there, 0\.1 now"):
        run(Regression().job(), settings(learning_rate=0.1), tmp_path, seed=0)
    with pytest.raises(RestrlError, match="seed 0 there, 1 now"):
        run(Regression().job(), settings(), tmp_path, seed=1)
    with pytest.raises(RestrlError, match="data"):
        run(Regression().job(identity={"data": "x"}), settings(), tmp_path, seed=0)
    run(Regression().job(), settings(save_steps=3, save_total_limit=5), tmp_path, seed=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_step_is_skipped_and_counted(tmp_path: Path, bad: float) -> None:
    seen: list[Tensor] = []
    disturbed = Regression(lambda step: seen.append(disturbed.weights()))
    inner = disturbed.losses

    def losses(step: int, log: Log) -> Iterator[Tensor]:
        for part in inner(step, log):
            yield part * bad if step in (4, 5) else part

    rows = run(disturbed.job(losses=losses), settings(), tmp_path, seed=0).rows
    assert [row["skipped"] for row in rows] == [int(step in (4, 5)) for step in range(12)]
    assert rows[4]["loss"] is None
    assert torch.equal(seen[4], seen[6])
    assert not torch.equal(seen[6], seen[7])
    assert all("NaN" not in line for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_a_finite_loss_with_a_non_finite_gradient_is_skipped_too(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.zeros(2))
    job = Regression().job(
        parameters=[{"params": [weight]}], losses=lambda step, log: iter([weight.abs().sum().sqrt()])
    )
    with pytest.raises(RestrlError, match="grad_norm nan"):
        run(job, settings(max_skipped=3), tmp_path, seed=0)
    assert (weight == 0).all()


def test_many_non_finite_steps_stop_the_run_and_say_where(tmp_path: Path) -> None:
    broken = Regression()
    job = broken.job(losses=lambda step, log: (part * math.nan for part in broken.losses(step, log)))
    with pytest.raises(RestrlError, match=r"metrics\.jsonl: .* 3 steps in a row \(step 3: loss nan"):
        run(job, settings(max_skipped=3), tmp_path, seed=0)


def test_no_parts_is_a_gradient_of_zero(tmp_path: Path) -> None:
    """Momentum goes on, as it does for a loss that is zero."""
    weights = []
    for empty in (True, False):
        regression = Regression()
        inner = regression.losses

        def losses(step: int, log: Log, empty: bool = empty, inner: Any = inner) -> Iterator[Tensor]:
            parts = list(inner(step, log))
            return iter([] if empty and step == 6 else [p * (step != 6) for p in parts])

        run(regression.job(losses=losses), settings(), tmp_path / str(empty), seed=0)
        weights.append(regression.weights())
    assert torch.equal(*weights)


def test_ctrl_c_saves_and_the_run_goes_on(tmp_path: Path) -> None:
    whole = Regression()
    run(whole.job(), settings(), tmp_path / "whole", seed=7)

    def press(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(Regression(press).job(), settings(), tmp_path / "torn", seed=7)
    assert signal.getsignal(signal.SIGINT) is before
    assert [step for step, _ in checkpoint.checkpoints(tmp_path / "torn")] == [6]
    rest = Regression(lambda step: None if step >= 6 else pytest.fail("a step was done twice"))
    run(rest.job(), settings(), tmp_path / "torn", seed=7)
    assert torch.equal(rest.weights(), whole.weights())
    assert stable(tmp_path / "torn") == stable(tmp_path / "whole")


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    regression = Regression()

    def full(folder: Path) -> None:
        (folder / "weights.pt").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RestrlError, match=r"checkpoint-4: the disk is full; free some space"):
        run(regression.job(save=full), settings(), tmp_path, seed=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "training.json"]


def test_small_steps_are_not_lost_in_bfloat16(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    job = Regression().job(
        parameters=[{"params": [weight]}], losses=lambda step, log: iter([weight.float().sum()])
    )
    run(
        job, settings(total_steps=40, learning_rate=1e-3, lr_scheduler_type="constant"), tmp_path, seed=0
    )  # one step is an eighth of the gap between bfloat16 numbers
    assert weight.item() == pytest.approx(0.96, abs=0.004)


def test_nothing_to_train_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RestrlError, match="nothing to train"):
        run(Regression().job(parameters=[]), settings(), tmp_path, seed=0)


def test_training_json_says_what_the_run_is(tmp_path: Path) -> None:
    run(Regression().job(identity={"method": "x"}), settings(), tmp_path, seed=4)
    found = json.loads((tmp_path / "training.json").read_text())
    assert (found["seed"], found["method"], found["total_steps"]) == (4, "x", 12)
