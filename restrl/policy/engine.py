"""What the decode loop asks of a model, and the way through any transformers module.

An engine holds the KV cache of the running rows; rows are addressed by their place in the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from restrl.errors import RestrlError


@dataclass(frozen=True)
class Start:
    """A prompt to be read.

    ids      token ids of the prompt
    copies   rows that continue it
    scored   first token of the prompt whose state and log-probability are wanted; len(ids) for none
    """

    ids: Sequence[int]
    copies: int
    scored: int


@dataclass(frozen=True)
class Read:
    """What reading `P` prompts gave.

    hidden, logits     `[P, H]`, `[P, V]` final-norm state after each prompt, and the float32 logits from it
    scored             per prompt: states before its scored tokens `[n, H]` and their log-probs `[n]` (nats)
    """

    hidden: Tensor
    logits: Tensor
    scored: list[tuple[Tensor, Tensor]]


class Engine(Protocol):
    """The running batch of one model."""

    joins: bool
    """Whether prompts can be read while rows are running."""

    def read(self, starts: Sequence[Start], new_tokens: int) -> Read:
        """Append start.copies rows for each start, in order; none will run for more than `new_tokens`."""
        ...

    def step(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Each row reads its token `[R]`; the states `[R, H]` and float32 logits `[R, V]` after it."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keep these rows `[R']`, in this order (none repeated)."""
        ...


class ModuleEngine:
    """Any causal LM through its own forward: a growing cache, rows padded on the left to one width.

    Rows join a running batch where positions are given and the cache is keys and values of all columns: the
    new prompts are read into a cache of their own, and the narrower of the two is padded.
    """

    def __init__(self, model: Any, context: int | None) -> None:
        """`context` is the number of positions that the model has; None if it has no limit."""
        self.model, self.context = model, context
        self._accepts = set(inspect.signature(model.forward).parameters)
        self._cache: Any = None
        self._mask = torch.zeros(0, 0, dtype=torch.long)
        layers = self._empty().layers
        self.joins = "position_ids" in self._accepts and all(type(x) is DynamicLayer for x in layers)

    def _empty(self) -> DynamicCache:
        return DynamicCache(config=self.model.config.get_text_config())

    def read(self, starts: Sequence[Start], new_tokens: int) -> Read:
        device = self.model.device
        width = max(len(s.ids) for s in starts)
        ids = torch.zeros(len(starts), width, dtype=torch.long)
        mask = torch.zeros(len(starts), width, dtype=torch.long)
        for row, s in enumerate(starts):
            ids[row, width - len(s.ids) :] = torch.as_tensor(s.ids)
            mask[row, width - len(s.ids) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        wanted = (
            width - min(s.scored - len(s.ids) + width for s in starts) + 1
        )  # the state before the first, too
        running, running_mask = self._cache, self._mask
        self._cache = self._empty()
        hidden, logits = self._forward(ids, mask, min(width, wanted))
        scored = []
        for row, s in enumerate(starts):
            n = len(s.ids) - s.scored
            at = slice(hidden.shape[1] - 1 - n, hidden.shape[1] - 1)
            logp = torch.log_softmax(logits[row, at], -1)
            target = ids[row, width - n :, None] if n else ids[row, :0, None]
            scored.append((hidden[row, at], logp.gather(-1, target)[:, 0]))
        copies = torch.tensor([s.copies for s in starts], device=device)
        rows = torch.repeat_interleave(torch.arange(len(starts), device=device), copies)
        if rows.numel() != len(starts) or int(copies.max()) > 1:
            self._cache.batch_select_indices(rows)
        self._mask = mask[rows]
        if len(running_mask):
            self._put_before(running, running_mask)
        return Read(hidden[:, -1], logits[:, -1], scored)

    def step(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        self._mask = torch.cat((self._mask, self._mask.new_ones(len(tokens), 1)), -1)
        hidden, logits = self._forward(tokens[:, None], self._mask, 1)
        return hidden[:, -1], logits[:, -1]

    def select(self, rows: Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask = self._mask[rows]
        empty = int((self._mask.sum(0).cumsum(0) == 0).sum())  # columns in front that no row uses any more
        if self.joins and len(rows) and 4 * empty >= self._mask.shape[1]:
            for layer in self._cache.layers:
                layer.keys, layer.values = layer.keys[:, :, empty:], layer.values[:, :, empty:]
            self._mask = self._mask[:, empty:]

    def _put_before(self, cache: Any, mask: Tensor) -> None:
        """The rows of `cache` in front of the own ones, all padded on the left to one width."""
        width = max(mask.shape[1], self._mask.shape[1])
        for old, new in zip(cache.layers, self._cache.layers, strict=True):
            new.keys = torch.cat([F.pad(x, (0, 0, width - x.shape[2], 0)) for x in (old.keys, new.keys)])
            new.values = torch.cat(
                [F.pad(x, (0, 0, width - x.shape[2], 0)) for x in (old.values, new.values)]
            )
        self._mask = torch.cat([F.pad(m, (width - m.shape[1], 0)) for m in (mask, self._mask)])

    def _forward(self, ids: Tensor, mask: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """States `[B, keep, H]` and logits `[B, keep, V]` (float32) of the last `keep` positions."""
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask,
            "past_key_values": self._cache,
            "use_cache": True,
        }
        if "position_ids" in self._accepts:
            last = None if self.context is None else self.context - 1  # a finished row may run past the end
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(0, last)[:, -ids.shape[1] :]
        if "logits_to_keep" in self._accepts:
            inputs["logits_to_keep"] = keep
        hidden, logits = forward_with_states(self.model, inputs)
        return hidden[:, -keep:], logits[:, -keep:].float()


def forward_with_states(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The states that the model's output layer reads, and the logits. RestrlError if it has no such layer."""
    head = model.get_output_embeddings()
    if head is None:
        raise RestrlError(f"{type(model).__name__} has no output embeddings; give a causal language model")
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        logits = model(**inputs).logits
    finally:
        hook.remove()
    return seen[0], logits
