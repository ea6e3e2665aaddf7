"""Supervised fine-tuning: the mean cross-entropy of completion tokens, the prompt never among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from restrl.config import TrainConfig
from restrl.errors import RestrlError
from restrl.ops import cross_entropy_loss
from restrl.training.batch import Row, check_model, completion_states, micro_batches, output_head
from restrl.training.hf import batch_positions, context_length, digest, load_weights, save_model, steps
from restrl.training.loop import Job, Log, Settings, TrainResult, parameter_groups, run


def train_sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[tuple[str, str]],
    cfg: TrainConfig,
    out: Path,
    *,
    seed: int,
    add_special_tokens: bool = False,
    name: str = "sft",
) -> TrainResult:
    """Train `model` in place on (prompt, completion) pairs; the final model stands in out/final.

    Prompt and completion are tokenised apart, as in decoding, where the completion follows a finished
    prompt, and the end-of-sequence token is appended. A step takes `prompts_per_step` examples, in passes of
    `micro_batch_size`. `max_steps`, or `num_train_epochs` where it is not positive, sets the length.
    Examples longer than the model's context are dropped; every row of the metrics counts them.
    `add_special_tokens` puts the tokenizer's own opening tokens before the prompt (chat templates bring
    theirs as text).

    Raises RestrlError when no example is left.
    """
    rows, dropped = tokenise(model, tokenizer, examples, add_special_tokens)
    if not rows:
        raise RestrlError(f"no example to train on: {dropped} of {len(examples)} are longer than the context")
    check_model(model)
    model.train()
    trainer = _Sft(model, rows, cfg, dropped)
    job = Job(
        parameters=parameter_groups(model, cfg.weight_decay),
        losses=trainer.losses,
        save=lambda folder: save_model(model, tokenizer, folder),
        load=lambda folder: load_weights(model, folder),
        state=lambda: {"num_tokens": trainer.num_tokens},
        restore=trainer.restore,
        identity={
            "method": "sft",
            "examples": digest(text for pair in examples for text in pair),
            "config": cfg.model_dump(exclude={"save_steps", "save_total_limit", "method"}),
        },
    )
    result = run(job, Settings.from_config(cfg, steps(cfg, len(rows))), out, seed=seed, name=name)
    model.eval()
    return result


def tokenise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[tuple[str, str]],
    add_special_tokens: bool,
) -> tuple[list[Row], int]:
    """Rows that fit the model's context, and the number of those that do not."""
    end = tokenizer.eos_token_id
    if end is None:
        raise RestrlError(
            "the tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json"
        )
    if not examples:
        return [], 0
    prompts = tokenizer([p for p, _ in examples], add_special_tokens=add_special_tokens)["input_ids"]
    answers = tokenizer([c for _, c in examples], add_special_tokens=False)["input_ids"]
    if not all(prompts):
        raise RestrlError(f"example {prompts.index([])} of the training data has an empty prompt")
    rows = [Row(p, [*c, end]) for p, c in zip(prompts, answers, strict=True)]
    limit = context_length(model)
    fitting = [row for row in rows if len(row) <= limit]
    return fitting, len(rows) - len(fitting)


class _Sft:
    """What a step computes, and the tokens it has seen."""

    def __init__(self, model: PreTrainedModel, rows: list[Row], cfg: TrainConfig, dropped: int) -> None:
        self.model, self.rows, self.cfg, self.dropped = model, rows, cfg, dropped
        self.num_tokens = 0

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint kept."""
        self.num_tokens = state["num_tokens"]

    def losses(self, step: int, log: Log) -> Iterator[Tensor]:
        """Parts of step `step`'s loss, one per forward pass."""
        cfg = self.cfg
        picked = batch_positions(step, cfg.prompts_per_step, len(self.rows), cfg.data_seed)
        rows = [self.rows[item] for _, _, item in picked]
        tokens = sum(len(row.completion) for row in rows)
        log["epoch"] = (step + 1) * cfg.prompts_per_step / len(self.rows)
        self.num_tokens += sum(len(row) for row in rows)
        log["num_tokens"] = self.num_tokens
        log["dropped"] = self.dropped
        entropy = 0.0
        for batch in micro_batches(rows, range(len(rows)), cfg.micro_batch_size):
            part = [rows[i] for i in batch]
            packed = completion_states(self.model, part)
            head = output_head(self.model)
            weights = torch.full(packed.tokens.shape, 1 / tokens, device=packed.tokens.device)
            found = cross_entropy_loss(packed.hidden, head.weight, packed.tokens, weights, **head.options)
            assert found.entropies is not None
            entropy += float(found.entropies.sum()) / tokens
            yield found.loss
        log["entropy"] = entropy
