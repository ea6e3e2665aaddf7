"""TRL's own GRPO loss and advantages, run unbound on a stand-in for the trainer, on the CPU.

`python tests/trl_peer.py FILE` with an older TRL first on PYTHONPATH writes what that release computes, as
in tests/golden/trl_1.8.jsonl.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import random
import sys
from types import SimpleNamespace
from typing import Any

import torch
from reference_cases import LOSSES, frozen_case, random_options
from torch import Tensor

from restrl.reference import LossSpec


class _Accelerator:
    """One process that says it is one of `num_processes`."""

    process_index, sync_gradients = 0, True

    def __init__(self, num_processes: int = 1) -> None:
        self.num_processes, self.device = num_processes, torch.device("cpu")

    def gather(self, x: Tensor) -> Tensor:
        return x

    def gather_for_metrics(self, x: Tensor) -> Tensor:
        return x

    def reduce(self, x: Tensor, reduction: str) -> Tensor:
        return x

    def pad_across_processes(self, x: Tensor, dim: int, pad_index: float) -> Tensor:
        return x


def trainer_class() -> Any:
    from trl.trainer.grpo_trainer import GRPOTrainer

    return GRPOTrainer


def loss(
    spec: LossSpec,
    log_probs: Tensor,
    entropies: Tensor,
    mask: Tensor,
    advantages: Tensor,
    *,
    old: Tensor | None = None,
    ref: Tensor | None = None,
    sampler: Tensor | None = None,
    importance_ratio: Tensor | None = None,
    gradient_accumulation_steps: int = 1,
    num_processes: int = 1,
    steps_per_generation: int = 1,
    num_items_in_batch: float | None = None,
    training: bool = True,
    metrics: dict[str, list[float]] | None = None,
) -> Tensor:
    """`GRPOTrainer._compute_loss` of log-probs and entropies `[B, T]` in place of a model's.

    metrics: what TRL logs is put there.
    """
    log: Any = collections.defaultdict(list)
    given = dataclasses.asdict(spec)  # the names of its options are TRL's
    trainer = trainer_class()
    accelerator = _Accelerator(num_processes)
    high = given["epsilon"] if given["epsilon_high"] is None else given["epsilon_high"]
    stub = SimpleNamespace(
        **{k: v for k, v in given.items() if k not in ("epsilon", "epsilon_high")},
        args=SimpleNamespace(**given, steps_per_generation=steps_per_generation),
        epsilon_low=given["epsilon"],
        epsilon_high=high,
        accelerator=accelerator,
        model=SimpleNamespace(training=training),
        use_vllm=importance_ratio is not None,
        vllm_importance_sampling_correction=True,
        use_adaptive_entropy=False,
        _entropy_bonus_enabled=given["entropy_coef"] != 0,
        aux_loss_enabled=False,
        current_gradient_accumulation_steps=gradient_accumulation_steps,
        _get_per_token_logps_and_entropies=lambda *a, **k: (log_probs, entropies, None),
        get_off_policy_mask=trainer.get_off_policy_mask,
        get_gamma_weights=trainer.get_gamma_weights,
        get_high_entropy_mask=lambda *a: trainer.get_high_entropy_mask(
            SimpleNamespace(accelerator=accelerator), *a
        ),
        _metrics={"train": log, "eval": log},
    )
    tokens = torch.zeros(mask.shape, dtype=torch.long)
    items = float(mask.sum()) if num_items_in_batch is None else num_items_in_batch
    inputs = {
        "prompt_ids": tokens[:, :1],
        "prompt_mask": tokens[:, :1],
        "completion_ids": tokens,
        "completion_mask": mask,
        "advantages": advantages,
        "num_items_in_batch": torch.tensor(items),
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "importance_sampling_ratio": importance_ratio,
        "sampling_per_token_logps": sampler,
    }
    found = trainer._compute_loss(stub, None, {k: v for k, v in inputs.items() if v is not None})
    if metrics is not None:
        metrics.update(log)
    return found


def scored(
    rewards_per_func: Tensor,
    num_generations: int,
    *,
    scale_rewards: str = "group",
    multi_objective_aggregation: str = "sum_then_normalize",
    reward_weights: Tensor | None = None,
    old: Tensor | None = None,
    sampler: Tensor | None = None,
    lengths: list[int] | None = None,
    mode: str = "sequence_mask",
    cap: float | None = 3.0,
    floor: float | None = None,
) -> dict[str, Tensor]:
    """What `GRPOTrainer._generate_and_score_completions` gives for rewards `[B, F]`: the real method, with
    the generation, the model and the reward functions taken out. With `old` and `sampler` `[B, T]` also the
    sampler ratios.
    """
    trainer = trainer_class()
    rows, functions = rewards_per_func.shape
    lengths = lengths or [1] * rows
    ids = [[1] * n for n in lengths]
    given = None if sampler is None else [row[:n].tolist() for row, n in zip(sampler, lengths, strict=True)]
    stub = SimpleNamespace(
        accelerator=_Accelerator(),
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        args=SimpleNamespace(
            per_device_train_batch_size=rows,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
            gradient_checkpointing_kwargs=None,
        ),
        environment_factories=None,
        environments=None,
        tools=None,
        _tokenizer=SimpleNamespace(pad_token_id=0),
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        num_iterations=1,
        num_generations=num_generations,
        use_vllm=sampler is not None,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_max=cap,
        vllm_importance_sampling_clip_min=floor,
        beta=0.0,
        scale_rewards=scale_rewards,
        multi_objective_aggregation=multi_objective_aggregation,
        reward_funcs=[None] * functions,
        reward_func_names=[f"f{i}" for i in range(functions)],
        reward_weights=torch.ones(functions) if reward_weights is None else reward_weights,
        log_multimodal=False,
        _generate=lambda prompts: ([[1]] * rows, ids, None, ["x"] * rows, given, {}, None, None),
        _get_per_token_logps_and_entropies=lambda *a, **k: (old, None, None),
        _calculate_rewards=lambda *a: rewards_per_func,
        _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
        _logs=collections.defaultdict(lambda: collections.defaultdict(list)),
        _pending_extra_logs={},
        _pending_metrics={},
    )
    for name in ("prompt", "completion", "advantages"):
        stub._logs[name] = []  # type: ignore[assignment]
    narrow = torch.get_default_dtype()
    torch.set_default_dtype(rewards_per_func.dtype)  # TRL forms a factor of the std in the default precision
    try:
        return trainer._generate_and_score_completions(stub, [{"prompt": "p"}] * rows)
    finally:
        torch.set_default_dtype(narrow)


def freeze(path: str) -> None:
    """Write options, value and gradients of `frozen_case()`."""
    with open(path, "w", encoding="utf-8") as file:
        for seed, (loss_type, level) in enumerate(LOSSES * 4):
            given = random_options(random.Random(seed), loss_type, level)
            if loss_type == "luspo":  # release 1.8 counts padding otherwise
                given |= {"importance_sampling_level": "sequence", "beta": 0.0, "top_entropy_quantile": 1.0}
            leave_out = ["importance_ratio"] if loss_type == "luspo" or seed % 5 < 3 else []
            leave_out += ["old"] * (seed % 3 == 0) + ["sampler"] * (seed % 2)
            sizes = {"gradient_accumulation_steps": 1 + seed % 3, "num_processes": 1 + seed % 2}
            sizes |= {"steps_per_generation": 6, "num_items_in_batch": 31.0}
            case = frozen_case(leave_out)
            x, h = (part.clone().requires_grad_() for part in (case.log_probs, case.entropies))
            arguments = case.keywords() | {"entropies": h} | sizes
            value = loss(LossSpec(**given), x, mask=case.mask, advantages=case.advantages, **arguments)
            grads = torch.autograd.grad(value, (x, h), allow_unused=True)
            found = [None if g is None else (g * 1e11).round().div(1e11).tolist() for g in grads]
            row = {"options": given, "leave_out": leave_out, "sizes": sizes, "loss": value.item()}
            file.write(json.dumps(row | {"by_log_prob": found[0], "by_entropy": found[1]}) + "\n")


if __name__ == "__main__":
    freeze(sys.argv[1])
