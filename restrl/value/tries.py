"""Prefixes that texts share, read once: token sequences packed into prefix tries for a causal forward pass.

A token of a causal model sees its text up to itself and nothing else, so equal prefixes have equal states.
The tries are over token ids, not characters: what is shared is what the model would have computed twice.

    texts  a b c d      tries  a - b - c - d      packed  a  b  c  d  e  f
           a b e                    \\- e          depth   0  1  2  3  2  0
           f                   f                  until   5  5  4  4  5  6

The tokens of a row stand in pre-order; the descendants of token j are those at j + 1 .. until[j] - 1, and
token i sees token j exactly if j <= i < until[j]. Positions are depths. A row may hold several tries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from restrl.value.starts import Start, common

LONGEST = 4096
"""Tokens of the longest text that is packed: a mask of `[T, T]` for it is 64 MiB in float32."""

_MODEL_TYPES = ("gemma", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")  # each is compared in the tests
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # others turn by the length of the batch
_ATTENTION = ("sdpa", "eager")
_MASK_ELEMENTS = 1 << 25  # of one batch: 128 MiB in float32

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """One row of packed tokens, `T` of them.

    ids, depth, until, parent  `[T]`; parent is the token before in its text, -1 for a first one
    paths                      text number -> `[tokens]` where its tokens stand in the row
    start                      what the row's texts begin with and is not read again; depths go on from it
    """

    ids: Ints
    depth: Ints
    until: Ints
    parent: Ints
    paths: dict[int, Ints]
    start: Start | None = None

    def __len__(self) -> int:
        return len(self.ids)


def shareable(model: Any) -> bool:
    """Whether the model's backbone reads tries exactly: known to take a mask and positions as they are given,
    in every layer, and to turn positions by themselves alone."""
    config = model.config.get_text_config()
    values = config.to_dict()
    window = values.get("sliding_window") is not None and values.get("use_sliding_window", True)
    rope = values.get("rope_parameters") or {}
    return (
        config.model_type in _MODEL_TYPES
        and config._attn_implementation in _ATTENTION
        and not window
        and set(values.get("layer_types") or ["full_attention"]) == {"full_attention"}
        and rope.get("rope_type", "default") in _ROPE_TYPES
    )


def quadratic_scale(model: Any) -> int:
    """The row length at which attention costs as much as all else: 4 T H flop a token against 24 H^2."""
    return 6 * int(model.config.get_text_config().hidden_size)


def pack(
    texts: Mapping[int, Sequence[int]], scale: int, start: Start | None = None, *, longest: int = LONGEST
) -> list[Row]:
    """Rows that hold every text by its number, of at most `longest` tokens if no text alone is longer.

    Equal texts have one path. Cut into rows where it costs least: a row of T tokens costs T + T^2 / scale,
    and what was shared across a cut is read on both sides. Texts begin behind `start`; none is empty.
    """
    numbers: dict[tuple[int, ...], list[int]] = {}  # of equal texts
    for i, text in texts.items():
        numbers.setdefault(tuple(text), []).append(i)
    distinct = sorted(numbers)
    arrays = [np.asarray(text, np.int64) for text in distinct]
    shared = [0] * len(arrays)
    for i in range(1, len(arrays)):
        shared[i] = common(arrays[i - 1 : i + 1])
    cuts = [*_cuts([len(a) for a in arrays], shared, scale, longest), len(arrays)]
    return [
        _row(
            [(arrays[i], shared[i] if i > first else 0, numbers[distinct[i]]) for i in range(first, last)],
            start,
        )
        for first, last in pairwise(cuts)
    ]


def _cuts(lengths: Sequence[int], shared: Sequence[int], scale: int, longest: int) -> list[int]:
    """First texts of the rows of least cost in all; texts in order, shared[i] tokens with the one before."""
    best, last = [0.0], [0]  # of the first i texts: cost, and where the last row starts
    for stop in range(1, len(lengths) + 1):
        fresh, least, where = 0, float("inf"), stop - 1
        for start in range(stop - 1, -1, -1):
            size = fresh + lengths[start]
            if start < stop - 1 and size > longest:
                break
            cost = best[start] + size + size * size / scale
            if cost < least:
                least, where = cost, start
            fresh += lengths[start] - shared[start]
        best.append(least)
        last.append(where)
    cuts: list[int] = []
    stop = len(lengths)
    while stop > 0:
        stop = last[stop]
        cuts.append(stop)
    return cuts[::-1]


def _row(members: Sequence[tuple[Ints, int, list[int]]], start: Start | None) -> Row:
    """The tries of (text, tokens shared with the one before, its numbers), in lexical order."""
    behind = 0 if start is None else len(start)
    size = sum(len(text) - shared for text, shared, _ in members)
    ids, depth, parent = np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.int64)
    until = np.full(size, size, np.int64)
    paths: dict[int, Ints] = {}
    path, used = np.empty(0, np.int64), 0
    for text, shared, numbers in members:
        until[path[shared:]] = used
        fresh = np.arange(used, used + len(text) - shared)
        path = np.concatenate((path[:shared], fresh))
        ids[fresh], depth[fresh] = text[shared:], behind + np.arange(shared, len(path))
        parent[fresh] = np.concatenate(([-1], path[:-1]))[shared:]
        paths |= dict.fromkeys(numbers, path)
        used += len(fresh)
    return Row(ids, depth, until, parent, paths, start)


def charges(rows: Sequence[Row], count: int) -> list[int]:
    """Tokens read for each of `count` texts: a token of a row counts for the first of its texts."""
    out = [0] * count
    for row in rows:
        free = np.ones(len(row), bool)
        for i in sorted(row.paths):
            out[i] = int(free[row.paths[i]].sum())
            free[row.paths[i]] = False
    return out


def batches(rows: Sequence[Row], *, max_rows: int, max_tokens: int) -> Iterator[list[Row]]:
    """Rows of similar length: at most max_rows, max_tokens padded tokens and what a mask may hold."""
    batch: list[Row] = []
    for row in sorted(rows, key=len, reverse=True):
        if batch:
            width = len(batch[0])
            tokens = (len(batch) + 1) * width
            seen = width + max(0 if r.start is None else len(r.start) for r in [*batch, row])
            full = len(batch) == max_rows or tokens > max_tokens or tokens * seen > _MASK_ELEMENTS
            if full or 2 * len(row) < width:
                yield batch
                batch = []
        batch.append(row)
    if batch:
        yield batch


def inputs(rows: Sequence[Row], model: Any) -> dict[str, Any]:
    """What the model's forward takes for a batch: ids, positions `[B, T]`, additive mask `[B, 1, T, P + T]`.

    P are the columns of the rows' starts, which a cache holds (starts.cache); 0 without any. Every token sees
    its row's start. Padding is on the right; of the row it sees itself alone, and nothing sees it.
    """
    width = max(len(row) for row in rows)
    ids, depth = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    until = np.zeros((len(rows), width), np.int64)
    for b, row in enumerate(rows):
        ids[b, : len(row)], depth[b, : len(row)], until[b, : len(row)] = row.ids, row.depth, row.until
        until[b, len(row) :] = np.arange(len(row), width) + 1
    place = torch.arange(width, device=model.device)
    ends = torch.from_numpy(until).to(model.device)
    seen = (place[None, :] <= place[:, None]) & (place[:, None] < ends[:, None, :])  # [B, T, T]
    behind = [0 if row.start is None else len(row.start) for row in rows]
    if any(behind):
        started = torch.arange(max(behind)) < torch.tensor(behind)[:, None]  # [B, P]
        started = started.to(model.device)[:, None].expand(len(rows), width, max(behind))
        seen = torch.cat((started, seen), -1)
    mask = torch.zeros(seen.shape, dtype=model.dtype, device=model.device)
    mask.masked_fill_(~seen, torch.finfo(model.dtype).min)
    return {
        "input_ids": torch.from_numpy(ids).to(model.device),
        "position_ids": torch.from_numpy(depth).to(model.device),
        "attention_mask": mask[:, None],
    }


def gather(rows: Sequence[Row], positions: Sequence[Sequence[int]]) -> tuple[list[int], Ints, Ints]:
    """(texts of the batch, row `[n]`, column `[n]`): where their own token positions stand, text by text."""
    texts = [i for row in rows for i in row.paths]
    row_of = np.repeat(
        np.asarray([b for b, row in enumerate(rows) for _ in row.paths], np.int64),
        [len(positions[i]) for i in texts],
    )
    columns = [
        row.paths[i][np.asarray(positions[i], np.int64) - (0 if row.start is None else len(row.start))]
        for row in rows
        for i in row.paths
    ]
    return texts, row_of, np.concatenate(columns)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """No gradients and no dropout; the model's mode is put back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
