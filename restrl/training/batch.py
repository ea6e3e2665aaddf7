"""Prompts and completions as padded batches, and a causal model's log-probs of the completion tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from restrl.errors import RestrlError
from restrl.reference import TokenLogProbs, log_probs_from_hidden


@dataclass(frozen=True)
class Row:
    """One prompt and one completion as token ids; the end-of-sequence token belongs to the completion."""

    prompt: Sequence[int]
    completion: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def micro_batches(rows: Sequence[Row], chosen: Sequence[int], size: int) -> list[list[int]]:
    """Split the row numbers `chosen` into batches of at most `size`, rows of like length together."""
    by_length = sorted(chosen, key=lambda i: (len(rows[i]), i))
    return [by_length[start : start + size] for start in range(0, len(by_length), size)]


def completion_mask(rows: Sequence[Row], device: torch.device) -> Tensor:
    """`[B, T]` float mask of completion tokens, T the longest completion (at least 1)."""
    lengths = torch.tensor([len(row.completion) for row in rows], device=device)
    width = max(1, int(lengths.max()))
    return (torch.arange(width, device=device)[None, :] < lengths[:, None]).float()


def completion_log_probs(
    model: PreTrainedModel, rows: Sequence[Row], temperature: float = 1.0, pad_token_id: int = 0
) -> TokenLogProbs:
    """Log-probs and entropies of every completion token under softmax(logits / temperature).

    Rows are padded on the right, positions count from 0, and logits are computed at completion tokens alone.
    Returns `[B, T]` float32 log-probs (differentiable) and entropies (not), 0 past a completion's end.
    """
    device = model.device
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_token_id)
    lengths = torch.tensor([len(row) for row in rows])
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor([*row.prompt, *row.completion])
    seen = (torch.arange(width) < lengths[:, None]).long()
    hidden = model.base_model(
        input_ids=ids.to(device),
        attention_mask=seen.to(device),
        position_ids=torch.arange(width, device=device).expand(len(rows), width),
        use_cache=False,
    ).last_hidden_state  # [B, L, H]
    mask = completion_mask(rows, torch.device("cpu")).bool()
    row_index, token_index = mask.nonzero(as_tuple=True)
    starts = torch.tensor([len(row.prompt) for row in rows])
    position = starts[row_index] + token_index
    targets = ids[row_index, position].to(device)
    picked = hidden[row_index.to(device), position.to(device) - 1]  # [N, H]: the state before each token
    head = output_head(model)
    flat = log_probs_from_hidden(
        picked,
        head.weight,
        targets,
        bias=head.bias,
        temperature=temperature * head.divisor,
        softcap=head.softcap,
    )
    where = (row_index.to(device), token_index.to(device))
    log_probs = flat.log_probs.new_zeros(mask.shape).index_put(where, flat.log_probs)
    entropies = flat.entropies.new_zeros(mask.shape).index_put(where, flat.entropies)
    return TokenLogProbs(log_probs, entropies)


@dataclass(frozen=True)
class OutputHead:
    """logits = cap(W h + b) / divisor, with cap(z) = softcap * tanh(z / softcap) where softcap is set."""

    weight: Tensor
    bias: Tensor | None
    divisor: float
    softcap: float | None


def output_head(model: PreTrainedModel) -> OutputHead:
    """The language-model head with what the architecture does to its logits (Gemma's softcap, Cohere's
    scale, ...).
    """
    linear = model.get_output_embeddings()
    config: dict[str, Any] = model.config.to_dict()
    divisor = float(config.get("logits_scaling") or 1.0) / float(config.get("logit_scale") or 1.0)
    return OutputHead(linear.weight, linear.bias, divisor, config.get("final_logit_softcapping"))


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Compare `completion_log_probs` with the model's own logits on a few tokens.

    Raises RestrlError for an architecture whose logits are made in a way that `output_head` does not know.
    """
    ids = [i % model.config.get_text_config().vocab_size for i in (1, 5, 2, 3, 7, 4)]
    logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
    targets = torch.tensor(ids[1:], device=model.device)[:, None]
    expected = logits[0, :-1].float().log_softmax(-1).gather(-1, targets)[:, 0]
    found = completion_log_probs(model, [Row(ids[:1], ids[1:])]).log_probs[0]
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.2
    if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
        raise RestrlError(
            f"model type {model.config.model_type!r} changes its logits after the language-model head in "
            "a way that restrl does not know; it cannot be trained here"
        )
