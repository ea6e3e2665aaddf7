"""A decode engine for small Qwen2 and Llama models in float32: few calls per layer, one cache per prompt.

What makes it fast for models whose layers are cheap beside the cost of a torch call:
- query, key and value in one product, gate and up in another; norm weights and attention scale folded in;
- rotary pairs laid side by side, so that the rotation is one complex product (a reordering of query and key
  alike leaves their products unchanged);
- the keys of a prompt are stored once for all its samples: attention over the prompt is one matrix product
  per prompt and head, attention over the sampled tokens one per row and head, and the two are merged by
  their log-sum-exps;
- all rows write the same cache column, so that a write is a slice.

Fused weights are made anew whenever a batch starts: the trainer may change the model between two calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM, Qwen2ForCausalLM

from restrl.policy.engine import Read, Start

MAX_PARAMETERS = 64_000_000
"""Above it the products themselves dominate, and a second copy of the weights is worth saving."""

_READ_TOKENS = 4096  # tokens of prompts read at once, padding included


def supports(model: Any) -> bool:
    """Whether the engine computes exactly this model."""
    if type(model) not in (Qwen2ForCausalLM, LlamaForCausalLM) or model.dtype != torch.float32:
        return False
    values = model.config.to_dict()
    return (
        set(values.get("layer_types") or ["full_attention"]) == {"full_attention"}
        and values["rope_parameters"]["rope_type"] in ("default", "linear", "llama3", "yarn")
        and values["hidden_act"] == "silu"
        and sum(p.numel() for p in model.parameters()) <= MAX_PARAMETERS
    )


@dataclass(frozen=True)
class _Layer:
    """`[O, H]` fused weights of one layer."""

    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class FastEngine:
    """See the module's text. Sizes: R rows, P prompts, W columns, D head size."""

    joins = True

    def __init__(self, model: Any) -> None:
        config = model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.size = model.model.layers[0].self_attn.head_dim
        self.group = self.heads // self.kv_heads
        self.hidden, self.eps = config.hidden_size, config.rms_norm_eps
        self.embed, self.norm = model.model.embed_tokens.weight.detach(), model.model.norm.weight.detach()
        self.head, self.head_bias = model.lm_head.weight.detach(), model.lm_head.bias
        self.layers = [self._fuse(layer) for layer in model.model.layers]
        rotary = model.model.rotary_emb
        self._frequencies, self._amplitude = rotary.inv_freq.float(), float(rotary.attention_scaling)
        self._turns = self._rotations(256)
        device = self.embed.device
        shape = (len(self.layers), 2, 0, self.kv_heads, 0, self.size)
        self._prompts = torch.zeros(shape, device=device)  # [layers, 2, P, heads, W, D]
        self._samples = torch.zeros(shape, device=device)  # [layers, 2, R, heads, W, D]
        self._column = 0  # where the next sampled token is written
        self._joined = np.zeros(0, np.int64)  # row -> its first column
        self._of = np.zeros(0, np.int64)  # row -> its prompt
        self._lengths = np.zeros(0, np.int64)  # prompt -> tokens
        self._layout()

    def _fuse(self, layer: Any) -> _Layer:
        a, m = layer.self_attn, layer.mlp
        half = self.size // 2
        pairs = torch.stack((torch.arange(half), torch.arange(half) + half), -1).flatten()

        def paired(x: Tensor, heads: int) -> Tensor:
            return x.view(heads, self.size, *x.shape[1:])[:, pairs.to(x.device)].reshape(x.shape)

        with torch.no_grad():
            first, second = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
            q, k = paired(a.q_proj.weight, self.heads) * a.scaling, paired(a.k_proj.weight, self.kv_heads)
            bias = None
            if a.q_proj.bias is not None:
                q_bias, k_bias = (
                    paired(a.q_proj.bias, self.heads) * a.scaling,
                    paired(a.k_proj.bias, self.kv_heads),
                )
                bias = torch.cat((q_bias, k_bias, a.v_proj.bias))
            gate_up_bias = None
            if m.gate_proj.bias is not None:
                gate_up_bias = torch.cat((m.gate_proj.bias, m.up_proj.bias))
            return _Layer(
                qkv=torch.cat((q, k, a.v_proj.weight)) * first,
                qkv_bias=bias,
                out=a.o_proj.weight,
                out_bias=a.o_proj.bias,
                gate_up=torch.cat((m.gate_proj.weight, m.up_proj.weight)) * second,
                gate_up_bias=gate_up_bias,
                down=m.down_proj.weight,
                down_bias=m.down_proj.bias,
            )

    def _rotations(self, count: int) -> Tensor:
        """`[count, 1, D / 2]` complex factors of the positions."""
        angles = torch.arange(count, device=self._frequencies.device)[:, None] * self._frequencies
        return torch.polar(torch.full_like(angles, self._amplitude), angles)[:, None]

    def read(self, starts: Sequence[Start], new_tokens: int) -> Read:
        width = max(len(s.ids) for s in starts)
        if len(self._turns) < width + new_tokens:
            self._turns = self._rotations(width + new_tokens)
        first, count = len(self._lengths), len(starts)
        self._lengths = np.concatenate((self._lengths, [len(s.ids) for s in starts]))
        self._prompts = _room(self._prompts, first + count, width)
        at_once = max(1, _READ_TOKENS // width)
        finals, scored = [], []
        for begin in range(0, count, at_once):
            part = starts[begin : begin + at_once]
            states = self._read_part(part, first + begin)
            for row, s in enumerate(part):
                finals.append(states[row, len(s.ids) - 1])
                before = states[row, s.scored - 1 : len(s.ids) - 1]
                target = torch.as_tensor(s.ids[s.scored :], dtype=torch.long, device=before.device)
                logs = torch.log_softmax(self._logits(before), -1).gather(-1, target[:, None])[:, 0]
                scored.append((before, logs))
        copies = [s.copies for s in starts]
        self._of = np.concatenate((self._of, first + np.repeat(np.arange(count), copies)))
        self._joined = np.concatenate((self._joined, np.full(sum(copies), self._column)))
        self._layout()
        hidden = torch.stack(finals)
        return Read(hidden, self._logits(hidden), scored)

    def _read_part(self, starts: Sequence[Start], first: int) -> Tensor:
        """Read prompts into the cache at `first`; final-norm states `[P, W, H]`. Padded on the right."""
        width, count = max(len(s.ids) for s in starts), len(starts)
        ids = torch.zeros(count, width, dtype=torch.long)
        for row, s in enumerate(starts):
            ids[row, : len(s.ids)] = torch.as_tensor(s.ids)
        x = F.embedding(ids.to(self.embed.device), self.embed).view(count * width, self.hidden)
        turns = self._turns[:width].repeat(count, 1, 1)
        for index, layer in enumerate(self.layers):
            q, k, v = self._project(layer, x, turns)
            q, k, v = (t.view(count, width, -1, self.size).transpose(1, 2) for t in (q, k, v))
            self._prompts[index, 0, first : first + count, :, :width] = k
            self._prompts[index, 1, first : first + count, :, :width] = v
            mixed = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=1.0, enable_gqa=self.group > 1
            )
            x = self._finish(layer, x, mixed.transpose(1, 2).reshape(count * width, -1))
        return F.rms_norm(x, (self.hidden,), self.norm, self.eps).view(count, width, self.hidden)

    def step(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        rows = len(tokens)
        if self._column == self._samples.shape[4] or rows > self._samples.shape[2]:
            self._make_room(rows)
        x = F.embedding(tokens, self.embed)
        turns = self._turns[
            self._positions.clamp_max(len(self._turns) - 1)
        ]  # a finished row may run past the end
        self._positions += 1
        first, self._column = int(self._joined.min()), self._column + 1
        late = None
        if int(self._joined.max()) > first:
            columns = torch.arange(first, self._column, device=x.device)
            late = (columns < self._joined_device[:, None]) * -1e30
            late = late.repeat_interleave(self.kv_heads, 0)[:, None]
        for index, layer in enumerate(self.layers):
            q, k, v = self._project(layer, x, turns)
            cache = self._samples[index]
            cache[0, :rows, :, self._column - 1] = k
            cache[1, :rows, :, self._column - 1] = v
            own = cache[:, :rows, :, first : self._column].flatten(1, 2)
            here, weight = _attend(
                q.reshape(rows * self.kv_heads, self.group, self.size), own[0], own[1], late
            )
            there, prompt_weight = self._attend_prompts(index, q.reshape(rows, -1))
            here, weight = here.view(rows, -1, self.size), weight.view(rows, -1, 1)
            mixed = torch.lerp(here, there, torch.sigmoid(prompt_weight - weight))
            x = self._finish(layer, x, mixed.view(rows, -1))
        hidden = F.rms_norm(x, (self.hidden,), self.norm, self.eps)
        return hidden, self._logits(hidden)

    def _attend_prompts(self, index: int, q: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of each row over its prompt: `[R, heads, D]` and log-sum-exp `[R, heads, 1]`."""
        prompts, most, width = len(self._lengths), self._most, int(self._lengths.max())
        shape = (prompts, most, self.kv_heads, self.group, self.size)
        grouped = q.new_zeros(prompts * most, q.shape[1])
        grouped[self._slots] = q
        grouped = grouped.view(shape).transpose(1, 2).reshape(-1, most * self.group, self.size)
        cache = self._prompts[index, :, :prompts, :, :width].flatten(1, 2)
        mixed, weight = _attend(grouped, cache[0], cache[1], self._padding)
        back = (prompts, self.kv_heads, most, self.group, -1)
        mixed = mixed.view(back).transpose(1, 2).reshape(prompts * most, self.heads, self.size)
        weight = weight.view(back).transpose(1, 2).reshape(prompts * most, self.heads, 1)
        return mixed[self._slots], weight[self._slots]

    def _project(self, layer: _Layer, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (scaled) and keys, and values: `[N, heads, D]` each."""
        qkv = F.linear(F.rms_norm(x, (self.hidden,), None, self.eps), layer.qkv, layer.qkv_bias)
        qkv = qkv.view(len(x), self.heads + 2 * self.kv_heads, self.size)
        turned = self.heads + self.kv_heads
        pairs = torch.view_as_complex(qkv[:, :turned].unflatten(-1, (-1, 2)))
        qk = torch.view_as_real(pairs * turns).flatten(-2)
        return qk[:, : self.heads], qk[:, self.heads :], qkv[:, turned:]

    def _finish(self, layer: _Layer, x: Tensor, mixed: Tensor) -> Tensor:
        """The layer's output `[N, H]` from its input and its attention `[N, heads * D]`."""
        x = x + F.linear(mixed, layer.out, layer.out_bias)
        normed = F.rms_norm(x, (self.hidden,), None, self.eps)
        gate, up = F.linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, layer.down, layer.down_bias)

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.head, self.head_bias)

    def select(self, rows: Tensor) -> None:
        kept = rows.cpu().numpy()
        # Rows that moved are among the last ones, so that sources and targets do not overlap.
        moved = np.flatnonzero(kept != np.arange(len(kept)))
        if len(moved) and self._column:
            target, source = (torch.as_tensor(i, device=rows.device) for i in (moved, kept[moved]))
            first = int(self._joined[kept].min())
            window = self._samples[:, :, :, :, first : self._column]
            window[:, :, target] = window[:, :, source]
        self._of, self._joined = self._of[kept], self._joined[kept]
        used = np.unique(self._of)
        if len(used) < len(self._lengths):
            # Prompts without rows make place for the others.
            moved = np.flatnonzero(used != np.arange(len(used)))
            if len(moved):
                target, source = (torch.as_tensor(i, device=rows.device) for i in (moved, used[moved]))
                self._prompts[:, :, target] = self._prompts[:, :, source]
            self._of, self._lengths = np.searchsorted(used, self._of), self._lengths[used]
        self._layout()

    def _layout(self) -> None:
        """What follows from rows and prompts: the rows' slots (prompt, rank), positions, masks."""
        device = self.embed.device
        rows = len(self._of)
        order = np.argsort(self._of, kind="stable")
        counts = np.bincount(self._of, minlength=len(self._lengths))
        rank = np.empty(rows, np.int64)
        rank[order] = np.arange(rows) - np.repeat(np.cumsum(counts) - counts, counts)
        self._most = int(counts.max(initial=0))
        self._slots = torch.as_tensor(self._of * self._most + rank, device=device)
        self._joined_device = torch.as_tensor(self._joined, device=device)
        self._positions = torch.as_tensor(
            self._lengths[self._of] + self._column - self._joined, device=device
        )
        self._padding: Tensor | None = None
        if rows and self._lengths.min() < self._lengths.max():
            columns = np.arange(self._lengths.max()) >= self._lengths[:, None]
            padding = np.repeat(columns, self.kv_heads, 0)[:, None] * np.float32(-1e30)
            self._padding = torch.as_tensor(padding, dtype=torch.float32, device=device)

    def _make_room(self, rows: int) -> None:
        """Move the columns in use to the front, and widen the cache if it is still more than half full."""
        first = int(self._joined.min(initial=self._column))
        used = self._column - first
        if first:
            self._samples[:, :, :, :, :used] = self._samples[:, :, :, :, first : self._column].clone()
            self._joined = self._joined - first
            self._joined_device = self._joined_device - first
            self._column = used
        wide = self._samples.shape[4]
        self._samples = _room(self._samples, rows, wide if used * 2 < wide else max(32, 2 * wide))


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """softmax(q k^T + mask) v `[B, G, D]`, log-sum-exp `[B, G, 1]`, of q `[B, G, D]` and k, v `[B, W, D]`."""
    scores = torch.bmm(q, k.transpose(1, 2))
    if mask is not None:
        scores += mask
    top = scores.amax(-1, keepdim=True)
    scores.sub_(top).exp_()
    total = scores.sum(-1, keepdim=True)
    return torch.bmm(scores, v).div_(total), top.add_(total.log())


def _room(cache: Tensor, rows: int, columns: int) -> Tensor:
    """The cache with so many rows and columns at least; new ones are zero (masked values must be finite)."""
    layers, two, old_rows, heads, old_columns, size = cache.shape
    if rows <= old_rows and columns <= old_columns:
        return cache
    rows = old_rows if rows <= old_rows else max(rows, old_rows + old_rows // 2)
    wider = cache.new_zeros(layers, two, rows, heads, max(columns, old_columns), size)
    wider[:, :, :old_rows, :, :old_columns] = cache
    return wider
