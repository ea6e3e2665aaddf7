"""GRPO: step 5 of ReST-GRPO, on bare prompts and partial programs alike."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from restrl.config import TrainConfig
from restrl.errors import RestrlError
from restrl.ops import GrpoOutput, grpo_loss
from restrl.policy.local import LocalPolicy
from restrl.reference import LossSpec, Totals, entropy_mask
from restrl.training.batch import (
    check_model,
    completion_log_probs,
    completion_states,
    micro_batches,
    output_head,
)
from restrl.training.hf import context_length, digest, load_weights, save_model, steps, weights_digest
from restrl.training.loop import Job, Log, Settings, TrainResult, parameter_groups, run
from restrl.training.rollout import Batch, RewardFn, TrainState, roll_out


def train_grpo(
    policy: LocalPolicy,
    states: Sequence[TrainState],
    reward_fn: RewardFn,
    cfg: TrainConfig,
    out: Path,
    *,
    seed: int,
    reference_model: PreTrainedModel | None = None,
    name: str = "grpo",
) -> TrainResult:
    """Train `policy.model` in place; afterwards it holds the weights of out/final.

    reward_fn(states, completions) gives the *raw* reward of every completion, None where it cannot be
    scored; a completion is verified up to its first stop string (`cut_at_stop`). Stop bonus and penalty are
    added here (`shaped_reward`), so that reward_std and frac_reward_zero_std are those of the raw reward. To
    resume exactly, it must give equal rewards for equal completions.

    A step takes `prompts_per_step` states in an order seeded by `data_seed` (epochs laid end to end, nothing
    is dropped) and `num_generations` completions of each; `num_iterations` steps train on one such batch.
    The length is `max_steps` optimiser steps, or as many as `num_train_epochs` needs, rounded up. States
    whose prompt and `max_completion_length` together exceed the model's context are dropped; the metric
    `dropped_states` counts them. Dropout is off: old, new and reference log-probs are those of one
    distribution.

    reference_model  the policy that the KL keeps close to; None: a frozen copy of the policy as it is given.
                     To resume with beta > 0, give the policy the run was started with.

    Raises RestrlError when no state is left, for combinations of options that do not exist, and as
    `loop.run`.
    """
    if cfg.num_generations < 2:
        raise RestrlError("num_generations is 1: a group of one has advantage 0; use at least 2")
    spec = LossSpec.from_config(cfg)
    model = policy.model
    room = context_length(model) - cfg.max_completion_length
    if room <= 0:
        raise RestrlError(
            f"max_completion_length {cfg.max_completion_length} leaves no room for a prompt in the model's "
            f"context of {context_length(model)} tokens; lower it"
        )
    fitting = [s for s in states if len(policy.tokenize_with_offsets(s.prompt)[0]) <= room]
    if not fitting:
        raise RestrlError(
            f"no state to train on: all {len(states)} are longer than the {room} tokens that "
            f"max_completion_length {cfg.max_completion_length} leaves of the model's context"
        )
    check_model(model)
    model.eval()
    if spec.beta > 0 and reference_model is None:
        reference_model = copy.deepcopy(model)
    if reference_model is not None:
        reference_model.eval().requires_grad_(False)
    trainer = _Grpo(policy, fitting, reward_fn, cfg, spec, seed, reference_model, len(states) - len(fitting))
    job = Job(
        parameters=parameter_groups(model, cfg.weight_decay),
        losses=trainer.losses,
        save=lambda folder: save_model(model, policy.tokenizer, folder),
        load=lambda folder: load_weights(model, folder),
        state=trainer.state,
        restore=trainer.restore,
        identity={
            "method": "grpo",
            "states": digest(s.prompt.text for s in states),
            "config": cfg.model_dump(exclude={"save_steps", "save_total_limit", "method"}),
        },
    )
    total = cfg.max_steps if cfg.max_steps > 0 else steps(cfg, len(fitting)) * cfg.num_iterations
    return run(job, Settings.from_config(cfg, total), out, seed=seed, name=name)


class _Grpo:
    """What a step computes, and what must be remembered between steps."""

    def __init__(
        self,
        policy: LocalPolicy,
        states: list[TrainState],
        reward_fn: RewardFn,
        cfg: TrainConfig,
        spec: LossSpec,
        seed: int,
        reference: PreTrainedModel | None,
        dropped: int,
    ) -> None:
        self.policy, self.states, self.reward_fn = policy, states, reward_fn
        self.cfg, self.spec, self.seed, self.dropped = cfg, spec, seed, dropped
        self.reference = reference
        self.start_weights = weights_digest(policy.model if reference is None else reference)
        self.batch: Batch | None = None
        self.num_tokens = 0

    def losses(self, step: int, log: Log) -> Iterator[Tensor]:
        """Parts of step `step`'s loss, one per forward pass."""
        generation, iteration = divmod(step, self.cfg.num_iterations)
        if iteration == 0 or self.batch is None:
            self.batch = roll_out(self.policy, self.states, self.reward_fn, self.cfg, generation, self.seed)
            self.num_tokens += sum(len(row) for row in self.batch.rows)
        batch = self.batch
        log["epoch"] = (generation + 1) * self.cfg.prompts_per_step / len(self.states)
        log |= {**batch.log, "num_tokens": self.num_tokens, "dropped_states": self.dropped}
        live = [i for i in range(len(batch.rows)) if self._matters(batch, i)]
        parts = micro_batches(batch.rows, live, self.cfg.micro_batch_size)
        masks = self._entropy_masks(batch, parts) if self.spec.needs_batch else None
        kept = None if masks is None else float(sum(int(mask.sum()) for mask in masks.values()))
        totals = Totals(len(batch.rows), batch.tokens, kept)
        sums = _Sums()
        for part in parts:
            found = self._loss(batch, part, totals, masks, first=iteration == 0)
            sums.add(found)
            yield found.loss
        log |= sums.means(batch.tokens)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the batch too, in case it serves for further iterations."""
        again = self.cfg.num_iterations > 1 and self.batch is not None
        batch = self.batch.to_state() if self.batch is not None and again else None
        return {"num_tokens": self.num_tokens, "batch": batch, "start_weights": self.start_weights}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave. Raises RestrlError if the KL would be to another policy."""
        if self.spec.beta > 0 and state["start_weights"] != self.start_weights:
            raise RestrlError(
                "the run to be resumed was started from another policy, which beta > 0 keeps close to; "
                "give the model it was started from"
            )
        self.num_tokens = state["num_tokens"]
        self.batch = None if state["batch"] is None else Batch.from_state(state["batch"])

    def _matters(self, batch: Batch, row: int) -> bool:
        """Whether a row counts for the gradient; the others skip the forward pass, but normalisers count
        them.
        """
        if batch.masked[row]:
            return False
        everyone = self.spec.beta > 0 or self.spec.needs_entropies
        return everyone or bool(batch.advantages[row] != 0)

    @torch.no_grad()
    def _entropy_masks(self, batch: Batch, parts: list[list[int]]) -> dict[int, Tensor]:
        """The entropy mask of the whole batch, by row: a forward pass of its own, since no gradient is known
        before all entropies are.
        """
        found: list[Tensor] = []
        for part in parts:
            rows = [batch.rows[i] for i in part]
            found.append(completion_log_probs(self.policy.model, rows, self.cfg.temperature).entropies)
        if not found:
            return {}
        entropies = torch.cat(found)
        mask = entropy_mask(entropies, torch.ones_like(entropies), self.spec.top_entropy_quantile)
        order = [i for part in parts for i in part]
        return dict(zip(order, mask.split([len(batch.rows[i].completion) for i in order]), strict=True))

    def _loss(
        self, batch: Batch, part: list[int], totals: Totals, masks: dict[int, Tensor] | None, first: bool
    ) -> GrpoOutput:
        rows = [batch.rows[i] for i in part]
        if first and self.reference is not None and self.spec.beta > 0:
            with torch.no_grad():
                ref = completion_log_probs(self.reference, rows, self.cfg.temperature).log_probs
            _keep(batch.ref, batch, part, ref)
        packed = completion_states(self.policy.model, rows)
        head = output_head(self.policy.model)
        device = packed.hidden.device
        found = grpo_loss(
            packed.hidden,
            head.weight,
            packed.tokens,
            spec=self.spec,
            advantages=batch.advantages[part].to(device),
            lengths=packed.lengths,
            old=None if first else _packed(batch.old, part).to(device),  # None: the ratio is 1
            ref=_packed(batch.ref, part).to(device) if self.spec.beta > 0 else None,
            entropy_mask=None if masks is None else _packed(masks, part).to(device),
            totals=totals,
            temperature=self.cfg.temperature,
            **head.options,
        )
        if first and self.cfg.num_iterations > 1:
            _keep(batch.old, batch, part, found.log_probs)
        return found


class _Sums:
    """Token sums over the parts of a step, for the metrics."""

    def __init__(self) -> None:
        self.values: Log = {}
        self.seen = 0.0

    def add(self, found: GrpoOutput) -> None:
        columns = {
            "entropy": found.entropies,
            "clip_ratio/low_mean": found.clipped_low,
            "clip_ratio/high_mean": found.clipped_high,
            "clip_ratio/region_mean": found.clipped_low | found.clipped_high,
            "kl": found.kl,
        }
        for key, column in columns.items():
            if column is not None:
                self.values[key] = self.values.get(key, 0.0) + float(column.sum())
        self.seen += found.log_probs.numel()

    def means(self, tokens: int) -> Log:
        """Means over the tokens in the loss mask. Rows without gradient clip nothing; entropy is over the
        others.
        """
        return {
            key: value / max(1, self.seen if key == "entropy" else tokens)
            for key, value in self.values.items()
        }


def _keep(store: dict[int, Tensor], batch: Batch, part: list[int], values: Tensor) -> None:
    """Remember `[N]` packed values by row."""
    lengths = [len(batch.rows[i].completion) for i in part]
    store |= dict(zip(part, values.cpu().split(lengths), strict=True))


def _packed(values: Mapping[int, Tensor], part: list[int]) -> Tensor:
    return torch.cat([values[i] for i in part])
