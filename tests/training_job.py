"""A small GRPO run that a test can start in a process of its own and kill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from restrl.config import TrainConfig
from restrl.policy import Completion, Prompt
from restrl.policy.local import LocalPolicy
from restrl.records import Asserts, Problem
from restrl.training.grpo import train_grpo
from restrl.training.rollout import TrainState

CONFIG = TrainConfig(
    num_generations=4,
    prompts_per_step=3,
    max_completion_length=12,
    learning_rate=3e-3,
    max_steps=14,
    num_iterations=2,
    save_steps=2,
    save_total_limit=2,
)


def reward(states: Sequence[TrainState], completions: list[list[Completion]]) -> list[list[float | None]]:
    return [[(sum(c.token_ids) % 5) / 4 for c in group] for group in completions]


def train(model: Path, out: Path) -> None:
    """Run, or go on with, the training of `model` into `out`."""
    torch.set_num_threads(1)
    problem = Problem(task_id="t", source="s", prompt="p", mode="instruct", tests=Asserts(asserts=[]))
    states = [TrainState(problem, Prompt(f"# {i}\n", "b = ", str(i)), "partial") for i in range(5)]
    train_grpo(LocalPolicy(model), states, reward, CONFIG, out, seed=5)
