"""CPU-seconds of the training half of a GRPO step: log-probs, loss, gradients, optimiser; one thread.

    python benchmarks/bench_training.py [STEPS]

The demo's size: 16 prompts of the pipelines family, 8 completions each, the shipped policy in float32. The
completions are drawn once and serve every step, with rewards of a seeded coin, so that runs are comparable
between versions. One JSON row.
"""

from __future__ import annotations

import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from restrl.assets import BASE_POLICY
from restrl.config import TrainConfig
from restrl.policy import Completion, Prompt, Sampling
from restrl.policy.local import LocalPolicy
from restrl.problems import pipelines
from restrl.training.grpo import train_grpo
from restrl.training.rollout import TrainState

PROMPTS, GROUP, NEW_TOKENS = 16, 8, 160


class Recorded(LocalPolicy):
    """Draws completions once; notes when they are asked for."""

    def complete(self, requests: Sequence[Prompt], n: int, sampling: Sampling, **rest: object) -> list:  # type: ignore[override]
        asked.append(time.process_time())
        missing = [p for p in requests if p.text not in drawn]
        if missing:
            groups = super().complete(missing, n, sampling)
            drawn.update({p.text: group for p, group in zip(missing, groups, strict=True)})
        return [drawn[p.text] for p in requests]


drawn: dict[str, list[Completion]] = {}
asked: list[float] = []
scored: list[float] = []


def measure(steps: int, beta: float) -> dict[str, object]:
    """Median CPU-seconds per step, the first left out."""
    asked.clear(), scored.clear()
    policy = Recorded(BASE_POLICY, device="cpu", dtype="float32")
    states = [
        TrainState(p, policy.format.prompt(p, p.prefix, p.task_id), stops=policy.format.stops(p))
        for p in pipelines.generate("dev", PROMPTS, seed=0)
    ]
    coin = random.Random(0)

    def reward(chosen: Sequence[TrainState], groups: list[list[Completion]]) -> list[list[float | None]]:
        rewards: list[list[float | None]] = [[float(coin.random() < 0.5) for _ in group] for group in groups]
        scored.append(time.process_time())
        return rewards

    cfg = TrainConfig(
        num_generations=GROUP,
        prompts_per_step=PROMPTS,
        max_completion_length=NEW_TOKENS,
        max_steps=steps,
        learning_rate=3e-4,
        beta=beta,
        save_steps=10**6,
    )
    with tempfile.TemporaryDirectory() as folder:
        train_grpo(policy, states, reward, cfg, Path(folder), seed=0)
    spent = [end - start for start, end in zip(scored[1:], asked[2:], strict=False)]
    return {
        "steps": steps,
        "beta": beta,
        "completions": PROMPTS * GROUP,
        "tokens": sum(len(c.token_ids) for group in drawn.values() for c in group),
        "cpu_s_per_step": round(statistics.median(spent), 4),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for weight in (0.0, 0.04):
        print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 12, weight)), flush=True)
