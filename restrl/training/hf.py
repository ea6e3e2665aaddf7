"""What GRPO and SFT share: model files in Hugging Face format, data order, the length of a run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from restrl.config import TrainConfig
from restrl.seeds import derive


@contextmanager
def _without_bars() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model and tokenizer with `save_pretrained`."""
    with _without_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Read the weights of `folder` into the live `model`, in place."""
    with _without_bars():
        saved = type(model).from_pretrained(folder, dtype=model.dtype, local_files_only=True)
    model.load_state_dict(saved.state_dict())


def batch_positions(step: int, size: int, count: int, seed: int) -> list[tuple[int, int, int]]:
    """(epoch, position in the epoch, item) of each of the `size` items of step `step` (0-based) out of
    `count`.

    Epochs are seeded permutations laid end to end, and a step takes the next `size` entries: nothing is
    dropped, and a step may reach over the border of two epochs.
    """
    order: dict[int, list[int]] = {}
    positions = []
    for n in range(step * size, (step + 1) * size):
        epoch, position = divmod(n, count)
        if epoch not in order:
            generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
            order[epoch] = torch.randperm(count, generator=generator).tolist()
        positions.append((epoch, position, order[epoch][position]))
    return positions


def steps(cfg: TrainConfig, count: int) -> int:
    """Optimiser steps for `count` items at `prompts_per_step` each: `max_steps`, or the epochs rounded up."""
    if cfg.max_steps > 0:
        return cfg.max_steps
    return math.ceil(cfg.num_train_epochs * count / cfg.prompts_per_step)


def context_length(model: PreTrainedModel) -> int:
    """Positions the model was made for; a very large number where its config names none."""
    limit = model.config.get_text_config().to_dict().get("max_position_embeddings")
    return int(limit) if limit else 1 << 30


def digest(texts: Iterable[str]) -> str:
    """A short fingerprint of training data."""
    total = hashlib.blake2b(digest_size=16)
    for text in texts:
        total.update(f"{len(text)}:{text}".encode())
    return total.hexdigest()


def weights_digest(model: PreTrainedModel) -> str:
    """A fingerprint of a model's weights that does not depend on the order of summation."""
    integers = {4: torch.int32, 2: torch.int16, 8: torch.int64}
    sums = [
        f"{name} {int(p.detach().contiguous().view(integers[p.dtype.itemsize]).sum(dtype=torch.int64))}"
        for name, p in model.named_parameters()
    ]
    return digest(sums)
