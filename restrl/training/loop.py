"""One training loop for everything that is trained: policies (GRPO, SFT) and value models.

A job says what a step's loss is; the loop does the rest: AdamW, the learning-rate schedule, clipping, the
guard against non-finite numbers, metrics, checkpoints, exact resume and a clean stop on Ctrl-C.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, Literal

import torch
from torch import Tensor, nn

from restrl.config import TrainConfig
from restrl.errors import RestrlError
from restrl.progress import Progress
from restrl.training import checkpoint

Log = dict[str, float]


@dataclass(frozen=True)
class Settings:
    """What the loop itself needs to know. Names and defaults are those of TrainConfig."""

    total_steps: int  # optimiser steps
    learning_rate: float  # of groups that bring none
    lr_scheduler_type: Literal["linear", "constant", "cosine"] = "linear"
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0  # of groups that bring none
    save_steps: int = 20
    save_total_limit: int = 1
    max_skipped: int = 10  # non-finite steps in a row after which the run stops

    @staticmethod
    def from_config(cfg: TrainConfig, total_steps: int) -> Settings:
        """The loop's part of `cfg`."""
        return Settings(
            total_steps=total_steps,
            learning_rate=cfg.learning_rate,
            lr_scheduler_type=cfg.lr_scheduler_type,
            warmup_steps=cfg.warmup_steps,
            max_grad_norm=cfg.max_grad_norm,
            weight_decay=cfg.weight_decay,
            save_steps=cfg.save_steps,
            save_total_limit=cfg.save_total_limit,
        )


@dataclass(frozen=True)
class Job:
    """What is trained and how its files look.

    parameters  AdamW groups ({"params": [...], optionally "lr", "weight_decay"}), see `parameter_groups`
    losses      losses(step, log) yields the parts of step `step`'s loss (0-based); the loop back-propagates
                each part before it asks for the next, so that only one graph lives at a time (gradient
                accumulation). Parts are summed: they bring their normalisation along. `log` takes metrics of
                the step. It must depend on nothing but the weights, `step`, torch's generators and the job's
                `state`.
    save, load  write the model's files into a folder; read them back into the live module, bit for bit
    state       what the job itself must remember between steps: tensors, numbers, text, lists and dicts of
                these
    restore     takes what `state` gave
    identity    what the run is (JSON): resuming with another identity is refused
    """

    parameters: list[dict[str, Any]]
    losses: Callable[[int, Log], Iterator[Tensor]]
    save: Callable[[Path], None]
    load: Callable[[Path], None]
    state: Callable[[], dict[str, Any]] = dict
    restore: Callable[[dict[str, Any]], None] = field(default=lambda state: None)
    identity: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainResult:
    """path: the final model's folder; metrics: mean of each metric over all steps; rows: metrics.jsonl."""

    path: Path
    metrics: dict[str, float]
    rows: list[dict[str, Any]]


def run(job: Job, settings: Settings, out: Path, *, seed: int, name: str = "train") -> TrainResult:
    """Train to `settings.total_steps`, or go on where the newest checkpoint of `out` ends.

    A run that was killed anywhere and started again ends with the same weights and metrics, bit for bit, as
    one that was not (metrics named *_time aside). A finished run (out/final exists) only loads its final
    weights.

    Raises RestrlError for a folder of another run, a full disk, and `max_skipped` non-finite steps in a row;
    KeyboardInterrupt after a Ctrl-C, when the running step is done and a checkpoint is written.
    """
    checkpoint.claim(out, _identity(job, settings, seed))
    final = out / "final"
    if final.exists():
        job.load(final)
        return _result(out)
    checkpoint.remove_leftovers(out)
    torch.manual_seed(seed)
    stepper = _Stepper(job, settings)
    newest = checkpoint.checkpoints(out)[-1:]
    for _, folder in newest:
        stepper.load(folder)
    checkpoint.keep_metrics(out, stepper.step)
    path = out / checkpoint.METRICS
    with (
        path.open("a", encoding="utf-8") as metrics,
        _Interrupt() as interrupt,
        Progress(name, settings.total_steps, stepper.step) as progress,
    ):
        while stepper.step < settings.total_steps:
            row = stepper.advance(path)
            metrics.write(checkpoint.metrics_line(row))
            metrics.flush()
            progress.update(1, _note(row))
            due = stepper.step % settings.save_steps == 0 and stepper.step < settings.total_steps
            if due or (interrupt.asked and stepper.step < settings.total_steps):
                _flush(metrics)
                checkpoint.write_folder(out / f"checkpoint-{stepper.step}", stepper.save)
                checkpoint.rotate(out, settings.save_total_limit)
            if interrupt.asked and stepper.step < settings.total_steps:
                raise KeyboardInterrupt
        _flush(metrics)
        checkpoint.write_folder(final, job.save)
    if interrupt.asked:
        raise KeyboardInterrupt
    return _result(out)


def lr_factor(kind: str, step: int, warmup: int, total: int) -> float:
    """Learning rate of step `step` (0-based) as a part of its peak: linear rise over `warmup` steps, then
    `kind`.

    The first of several warm-up steps has rate 0, the last step of a linear decay 1 / (total - warmup):
    transformers' schedules.
    """
    if step < warmup:
        return step / warmup
    if kind == "constant":
        return 1.0
    done = (step - warmup) / max(1, total - warmup)
    return 1.0 - done if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def parameter_groups(module: nn.Module, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """AdamW groups of the trainable parameters: matrices decay; biases and norm weights do not."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class _Stepper:
    """The state that one optimiser step changes: weights, AdamW's moments, the step, the count of skipped
    steps.

    Weights below 32 bits get float32 masters that AdamW updates: a step of 1e-7 would vanish in bfloat16.
    """

    def __init__(self, job: Job, settings: Settings) -> None:
        self.job, self.settings = job, settings
        self.step = 0
        self.skipped_in_a_row = 0
        self.weights = [p for group in job.parameters for p in group["params"]]
        if not self.weights:
            raise RestrlError("nothing to train: no parameter has requires_grad")
        masters = {id(p): p if p.dtype.itemsize >= 4 else p.detach().float() for p in self.weights}
        self.masters = [masters[id(p)] for p in self.weights]
        groups = [{**g, "params": [masters[id(p)] for p in g["params"]]} for g in job.parameters]
        self.optimizer = torch.optim.AdamW(
            groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]

    def advance(self, where: Path) -> dict[str, Any]:
        """One optimiser step. Returns its metrics row; raises RestrlError after too many non-finite steps in
        a row.
        """
        start = time.perf_counter()
        settings, log = self.settings, dict[str, float]()
        factor = lr_factor(settings.lr_scheduler_type, self.step, settings.warmup_steps, settings.total_steps)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        loss, parts = 0.0, 0
        for part in self.job.losses(self.step, log):
            part.backward()
            loss += part.item()
            parts += 1
        if parts == 0:  # a gradient of 0, not none: AdamW's moments go on decaying
            for weight in self.weights:
                weight.grad = torch.zeros_like(weight)
        norm = self._clipped_gradient_norm()
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            self.optimizer.step()
            self._publish()
        for weight in (*self.weights, *self.masters):
            weight.grad = None
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        self.step += 1
        if self.skipped_in_a_row >= settings.max_skipped:
            raise RestrlError(
                f"{where}: loss or gradient was not finite in {self.skipped_in_a_row} steps in a row "
                f"(step {self.step}: loss {loss}, grad_norm {norm}); lower learning_rate or check the data"
            )
        return {
            "step": self.step,
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "skipped": 0 if finite else 1,
            **log,
            "step_time": time.perf_counter() - start,
        }

    def save(self, folder: Path) -> None:
        """Write model files and trainer_state.pt."""
        self.job.save(folder)
        state = {
            "step": self.step,
            "skipped_in_a_row": self.skipped_in_a_row,
            "optimizer": self.optimizer.state_dict(),
            "masters": [m for m, w in zip(self.masters, self.weights, strict=True) if m is not w],
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "job": self.job.state(),
        }
        torch.save(state, folder / checkpoint.STATE)

    def load(self, folder: Path) -> None:
        """Take over what `save` wrote."""
        self.job.load(folder)
        state = torch.load(folder / checkpoint.STATE, weights_only=True, map_location="cpu")
        self.step = state["step"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        self.optimizer.load_state_dict(state["optimizer"])
        own = [m for m, w in zip(self.masters, self.weights, strict=True) if m is not w]
        with torch.no_grad():
            for master, saved in zip(own, state["masters"], strict=True):
                master.copy_(saved)
        torch.set_rng_state(state["rng"])
        if len(state["cuda_rng"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        self.job.restore(state["job"])

    def _clipped_gradient_norm(self) -> float:
        for weight, master in zip(self.weights, self.masters, strict=True):
            if master is not weight:
                master.grad = None if weight.grad is None else weight.grad.float()
        return float(torch.nn.utils.clip_grad_norm_(self.masters, self.settings.max_grad_norm))

    @torch.no_grad()
    def _publish(self) -> None:
        for weight, master in zip(self.weights, self.masters, strict=True):
            if master is not weight:
                weight.copy_(master)


class _Interrupt:
    """While active, the first Ctrl-C only sets `asked`; the second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: Any = None

    def __enter__(self) -> _Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr)


def _identity(job: Job, settings: Settings, seed: int) -> dict[str, Any]:
    harmless = ("save_steps", "save_total_limit", "max_skipped")
    own = {key: value for key, value in vars(settings).items() if key not in harmless}
    return {"seed": seed, **own, **job.identity}


def _note(row: dict[str, Any]) -> str:
    shown = ("loss", "reward", "kl")
    return " ".join(f"{key} {row[key]:.4g}" for key in shown if row.get(key) is not None)


def _flush(file: IO[str]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _result(out: Path) -> TrainResult:
    rows = checkpoint.read_metrics(out)
    return TrainResult(out / "final", checkpoint.mean_metrics(rows), rows)
