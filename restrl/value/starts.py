"""What a causal model has computed for the start of a text, kept for the texts that start alike.

A search scores programs of one problem again and again; the problem and its code stand at the start of each.
Their keys and values (after rotation, so that they fit any later text at the same positions) are kept while
the search lasts and the tries of later calls continue them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

BYTES = 1 << 30  # of all starts that are kept, and of the keys and values of one batch


@dataclass(frozen=True)
class Start:
    """The first `n` tokens of texts: ids `[n]`, keys and values of every layer `[kv heads, n, D]`."""

    ids: NDArray[np.int64]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.keys, *self.values))

    def cut(self, n: int) -> Start:
        """Its first n tokens; a causal model computed them without the others."""
        return Start(
            self.ids[:n],
            tuple(k[:, :n].clone() for k in self.keys),
            tuple(v[:, :n].clone() for v in self.values),
        )


class Starts:
    """The starts of one search by a name (of the problem); those used longest ago go first."""

    def __init__(self, limit: int = BYTES) -> None:
        self.limit, self.nbytes = limit, 0
        self._kept: OrderedDict[str, Start] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, name: str, texts: Sequence[Sequence[int]], most: int) -> Start | None:
        """What all `texts` begin with of what is kept, of at most `most` tokens; None if nothing.

        What is kept is cut to it: a first call may have kept more than the problem.
        """
        kept = self._kept.get(name)
        if kept is None:
            return None
        n = min(most, common([kept.ids, *texts]))
        self._drop(name)
        if n == 0:
            return None
        kept = kept if n == len(kept) else kept.cut(n)
        self.keep(name, kept)
        return kept

    def keep(self, name: str, start: Start) -> None:
        """Keep a start, in place of an older one of the name."""
        self._drop(name)
        self._kept[name] = start
        self.nbytes += start.nbytes
        while self.nbytes > self.limit:
            self._drop(next(iter(self._kept)))

    def _drop(self, name: str) -> None:
        old = self._kept.pop(name, None)
        if old is not None:
            self.nbytes -= old.nbytes


def common(texts: Sequence[Sequence[int] | NDArray[np.int64]]) -> int:
    """Length of the prefix that all texts share."""
    first = np.asarray(texts[0])
    n = len(first)
    for text in texts[1:]:
        other = np.asarray(text)[:n]
        differs = first[: len(other)] != other
        n = int(differs.argmax()) if differs.any() else len(other)
    return n


def cache(model: Any, starts: Sequence[Start | None]) -> DynamicCache:
    """A cache whose rows hold the starts `[B, kv heads, P, D]`, zeros to their right; empty without any."""
    filled = DynamicCache(config=model.config.get_text_config())
    width = max((len(s) for s in starts if s is not None), default=0)
    like = next((s for s in starts if s is not None), None)
    if like is None:
        return filled
    for layer in range(len(like.keys)):
        heads, _, size = like.keys[layer].shape
        keys = like.keys[layer].new_zeros(len(starts), heads, width, size)
        values = torch.zeros_like(keys)
        for b, start in enumerate(starts):
            if start is not None:
                keys[b, :, : len(start)], values[b, :, : len(start)] = start.keys[layer], start.values[layer]
        filled.update(keys, values, layer)
    return filled


def read_off(filled: Any, row: int, columns: NDArray[np.int64], ids: NDArray[np.int64]) -> Start:
    """The start whose tokens stood at `columns` of a row when the model filled the cache."""
    at = torch.from_numpy(columns)
    layers = filled.layers
    return Start(
        ids,
        tuple(layer.keys[row, :, at.to(layer.keys.device)] for layer in layers),
        tuple(layer.values[row, :, at.to(layer.values.device)] for layer in layers),
    )


def batch_tokens(model: Any) -> int:
    """Tokens whose keys and values take BYTES at most."""
    config = model.config.get_text_config()
    return BYTES // (2 * config.num_hidden_layers * config.hidden_size * model.dtype.itemsize)
