"""Prompts and completions as padded batches, and a causal model's log-probs of the completion tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from restrl.errors import RestrlError
from restrl.ops import token_log_probs
from restrl.reference import TokenLogProbs


@dataclass(frozen=True)
class Row:
    """One prompt and one completion as token ids; the end-of-sequence token belongs to the completion."""

    prompt: Sequence[int]
    completion: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def micro_batches(rows: Sequence[Row], chosen: Sequence[int], size: int) -> list[list[int]]:
    """Split the row numbers `chosen` into batches of at most `size`: first by prompt, then by length."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in sorted(chosen, key=lambda i: (len(rows[i]), i)):
        groups.setdefault(tuple(rows[i].prompt), []).append(i)
    by_longest = sorted(groups.values(), key=lambda group: len(rows[group[-1]]))
    order = [i for group in by_longest for i in group]
    return [order[start : start + size] for start in range(0, len(order), size)]


class Packed(NamedTuple):
    """The completion tokens of `B` rows, one row after the other.

    hidden   `[N, H]` final hidden state before each token, differentiable
    tokens   `[N]` ids
    lengths  `[B]` tokens of each row, on the CPU
    """

    hidden: Tensor
    tokens: Tensor
    lengths: Tensor


def completion_states(model: PreTrainedModel, rows: Sequence[Row], *, share_prompts: bool = True) -> Packed:
    """The states from which `rows`' completions are predicted.

    Rows are padded on the right and positions count from 0. Rows with equal prompts (a group) share one
    forward pass over the prompt where the architecture allows it.
    """
    prompts = list(dict.fromkeys(tuple(r.prompt) for r in rows))
    if share_prompts and len(prompts) < len(rows) and caches_plainly(model):
        states = _states_sharing_prompts(model, rows, prompts)
    else:
        states = _states(model, rows)
    completions, seen = _pad([r.completion for r in rows])
    row, token = (at.to(states.device) for at in seen.nonzero(as_tuple=True))
    return Packed(states[row, token], completions.to(states.device)[row, token], seen.sum(1))


def completion_log_probs(
    model: PreTrainedModel, rows: Sequence[Row], temperature: float = 1.0, *, share_prompts: bool = True
) -> TokenLogProbs:
    """`[N]` log-probs and entropies of every completion token under softmax(logits / temperature), float32,
    row after row; differentiable.
    """
    packed = completion_states(model, rows, share_prompts=share_prompts)
    head = output_head(model)
    return token_log_probs(packed.hidden, head.weight, packed.tokens, temperature=temperature, **head.options)


def caches_plainly(model: PreTrainedModel) -> bool:
    """Whether every layer keeps keys and values of all tokens (no sliding window, no recurrent state)."""
    cache = DynamicCache(config=model.config)
    kinds = model.config.get_text_config().to_dict().get("layer_types") or ["full_attention"]
    return set(kinds) == {"full_attention"} and all(type(layer) is DynamicLayer for layer in cache.layers)


def _states(model: PreTrainedModel, rows: Sequence[Row]) -> Tensor:
    """`[B, T, H]` final hidden state before each completion token; anything past a completion's end."""
    ids, seen = _pad([[*row.prompt, *row.completion] for row in rows])
    hidden = _forward(model, ids, seen, torch.zeros(len(rows), 1, dtype=torch.long))[0]
    before = torch.tensor([len(row.prompt) - 1 for row in rows])
    width = max(1, *(len(row.completion) for row in rows))
    position = (before[:, None] + torch.arange(width)).clamp(max=ids.shape[1] - 1).to(hidden.device)
    return hidden.gather(1, position[:, :, None].expand(-1, -1, hidden.shape[2]))


def _states_sharing_prompts(
    model: PreTrainedModel, rows: Sequence[Row], prompts: list[tuple[int, ...]]
) -> Tensor:
    """`_states` with one pass over the distinct `prompts`, whose keys and values the completions then attend
    to.
    """
    number = {prompt: i for i, prompt in enumerate(prompts)}
    own = torch.tensor([number[tuple(row.prompt)] for row in rows])  # [B]
    prompt_ids, prompt_seen = _pad(prompts)
    prompt_hidden, cache = _forward(
        model, prompt_ids, prompt_seen, torch.zeros(len(prompts), 1, dtype=torch.long), use_cache=True
    )
    lengths = torch.tensor([len(prompt) for prompt in prompts])[own]  # [B]
    device = prompt_hidden.device
    first = prompt_hidden[own.to(device), (lengths - 1).to(device)][:, None]  # [B, 1, H]
    ids, seen = _pad([row.completion[:-1] for row in rows])
    if ids.shape[1] == 0:
        return first
    cache.batch_select_indices(own.to(device))
    rest, _ = _forward(model, ids, torch.cat([prompt_seen[own], seen], 1), lengths[:, None], cache=cache)
    return torch.cat([first, rest], 1)


def _forward(
    model: PreTrainedModel,
    ids: Tensor,
    seen: Tensor,
    start: Tensor,
    cache: DynamicCache | None = None,
    use_cache: bool = False,
) -> tuple[Tensor, DynamicCache]:
    """Final hidden states of `ids` `[B, L]` at positions `start` `[B, 1]`, start + 1, ...; and the cache."""
    device = model.device
    output = model.base_model(
        input_ids=ids.to(device),
        attention_mask=seen.to(device),
        position_ids=(start + torch.arange(ids.shape[1])).to(device),
        past_key_values=cache,
        use_cache=use_cache or cache is not None,
    )
    return output.last_hidden_state, output.past_key_values


def _pad(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids `[B, L]` padded on the right with 0, and 1 where a token stands."""
    width = max(len(s) for s in sequences)
    ids = torch.tensor([[*s, *[0] * (width - len(s))] for s in sequences], dtype=torch.long)
    lengths = torch.tensor([len(s) for s in sequences])
    return ids.reshape(len(sequences), width), (torch.arange(width) < lengths[:, None]).long()


class HeadOptions(TypedDict):
    """Arguments of the operations of `restrl.ops` that describe a head."""

    bias: Tensor | None
    logit_scale: float
    softcap: float | None


class OutputHead(NamedTuple):
    """weight `[V, H]`, and what the architecture does to its logits."""

    weight: Tensor
    options: HeadOptions


def output_head(model: PreTrainedModel) -> OutputHead:
    """The language-model head, with Gemma's softcap, Cohere's and Granite's scale of the logits."""
    linear = model.get_output_embeddings()
    config: dict[str, Any] = model.config.to_dict()
    scale = float(config.get("logit_scale") or 1.0) / float(config.get("logits_scaling") or 1.0)
    return OutputHead(
        linear.weight,
        HeadOptions(bias=linear.bias, logit_scale=scale, softcap=config.get("final_logit_softcapping")),
    )


@torch.no_grad()
def check_model(model: PreTrainedModel) -> None:
    """Compare `completion_log_probs` with the model's own logits on a few tokens, shared prompt and all.

    Raises RestrlError for an architecture that computes its logits in a way that is not known here.
    """
    size = model.config.get_text_config().vocab_size
    rows = [Row([1 % size, 5 % size], [2 % size, 3 % size, 7 % size]), Row([1 % size, 5 % size], [4 % size])]
    found = completion_log_probs(model, rows).log_probs
    tolerance = 1e-3 if model.dtype.itemsize >= 4 else 0.2
    for row, own in zip(rows, found.split([len(row.completion) for row in rows]), strict=True):
        ids = torch.tensor([[*row.prompt, *row.completion]], device=model.device)
        log_p = model(input_ids=ids, use_cache=False).logits[0].to(found.dtype).log_softmax(-1)
        targets = ids[0, len(row.prompt) :, None]
        expected = log_p[len(row.prompt) - 1 : -1].gather(1, targets)[:, 0]
        if not torch.allclose(own, expected, rtol=tolerance, atol=tolerance):
            raise RestrlError(
                f"model type {model.config.model_type!r} makes its logits in a way that restrl does not know "
                "(cache, language-model head or scaling); it cannot be trained here"
            )
