"""A training process killed (SIGKILL) at random moments until it ends equals an undisturbed one."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import training_job
from safetensors.torch import load_file
from tiny_models import make_tiny_qwen2


def start(model: Path, out: Path) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["restrl.training.grpo", "transformers.models.qwen2.modeling_qwen2"])
    process = context.Process(target=training_job.train, args=(model, out))
    process.start()
    return process


def rows(out: Path) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.endswith("_time")} for line in lines]


def check_whole(out: Path) -> None:
    """Every checkpoint that stands there is complete."""
    for folder in out.glob("checkpoint-*"):
        state = torch.load(folder / "trainer_state.pt", weights_only=True)
        assert state["step"] == int(folder.name.split("-")[1])
        assert load_file(folder / "model.safetensors")
        assert (folder / "tokenizer.json").stat().st_size > 0


def test_kill_at_random_moments(tmp_path: Path) -> None:
    model = make_tiny_qwen2(tmp_path / "model")
    start(model, tmp_path / "whole").join()
    rng, kills = random.Random(), 0
    for attempt in range(3):
        torn = tmp_path / f"torn-{attempt}"
        kills += run_with_kills(model, torn, rng)
        start(model, torn).join()  # a finished run stays as it is
        for name in ("model.safetensors", "config.json", "tokenizer.json"):
            assert (torn / "final" / name).read_bytes() == (tmp_path / "whole" / "final" / name).read_bytes()
        assert rows(torn) == rows(tmp_path / "whole")
        assert [row["step"] for row in rows(torn)] == list(range(1, 15))
    assert kills >= 3


def run_with_kills(model: Path, out: Path, rng: random.Random) -> int:
    """Start and kill until the run is done; the number of kills."""
    kills = 0
    while not (out / "final").exists():
        process = start(model, out)
        step = rng.randint(0, 18 if kills else 8)  # beyond the last: it ends by itself
        while process.is_alive() and steps(out) < step:
            time.sleep(0.002)
        process.join(rng.uniform(0, 0.1 if kills else 0))
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        check_whole(out)
        assert kills < 40, "no progress"
    return kills


def steps(out: Path) -> int:
    """Lines of the metrics that are written."""
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
