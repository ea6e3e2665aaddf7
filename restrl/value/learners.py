"""What training needs of each head: examples from targets, the parts of a batch's loss, and an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from restrl.config import ValueConfig
from restrl.policy.local import LocalPolicy
from restrl.records import Problem
from restrl.training.hf import load_weights
from restrl.value.additive import AdditiveValue, Scored, Traced, pairwise_loss, target_loss
from restrl.value.scalar import Encoded, ScalarValue

_CACHE_BYTES = 512 << 20  # of the policy's states; programs past it are read again in every epoch


@dataclass(frozen=True)
class Target:
    """A checked row of value targets: `values[i]` is the target of `program[:ends[i]]`."""

    problem: Problem
    program: str
    ends: tuple[int, ...]
    values: tuple[float, ...]
    visits: tuple[float, ...]


@dataclass(frozen=True)
class Example:
    """A target as a head reads it.

    group      number of its problem
    read       the program as the head reads it, token_ids among it
    positions  scalar: the tokens whose states are read; additive: scored tokens up to each end
    targets, weights  `[ends]` float32
    whole      whether the last end is the program's: then its target ranks programs
    """

    group: int
    read: Encoded | Scored
    positions: tuple[int, ...]
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]
    whole: bool

    @property
    def reward(self) -> float:
        """The target of the whole program."""
        return float(self.targets[-1])

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.read.token_ids

    @property
    def tokens(self) -> int:
        return len(self.token_ids)


class Learner(Protocol):
    """A head in training."""

    @property
    def model(self) -> Any:
        """The value model, with `save`."""
        ...

    @property
    def module(self) -> nn.Module:
        """What is trained."""
        ...

    def prepare(self, targets: Sequence[Target]) -> list[Example]:
        """Examples, in order; targets that are too long or have nothing to score are left out."""
        ...

    def losses(self, batch: Sequence[Example]) -> Iterator[Tensor]:
        """The parts of the batch's loss, which add up to it."""
        ...

    def evaluate(self, batch: Sequence[Example]) -> tuple[float, list[list[float]]]:
        """The batch's loss and the clamped values at every end."""
        ...

    def load(self, folder: Path) -> None:
        """Read back what `model.save` wrote, bit for bit."""
        ...


def _examples(
    targets: Sequence[Target],
    cfg: ValueConfig,
    limit: int,
    read: Sequence[tuple[Encoded | Scored, list[int], list[int]]],
) -> list[Example]:
    """Join targets with (program as read, indices of ends kept, their positions); at most `limit` tokens."""
    numbers: dict[str, int] = {}
    out: list[Example] = []
    for target, (encoded, kept, positions) in zip(targets, read, strict=True):
        group = numbers.setdefault(target.problem.task_id, len(numbers))
        if len(encoded.token_ids) > limit or not kept:
            continue
        values = np.asarray(target.values, np.float32)[kept]
        weights = np.asarray(target.visits if cfg.weight_by_visits else np.ones(len(target.ends)), np.float32)
        whole = target.ends[-1] == len(target.program)
        out.append(Example(group, encoded, tuple(positions), values, weights[kept], whole))
    return out


class ScalarLearner:
    """Mean squared error at all line ends of a program in one pass; all weights are trained."""

    def __init__(self, cfg: ValueConfig, policy: LocalPolicy, seed: int) -> None:
        self.cfg = cfg
        if cfg.backbone is None:
            self.model = ScalarValue.from_policy(policy, max_length=cfg.max_length, seed=seed)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.model = ScalarValue.load(cfg.backbone, policy, max_length=cfg.max_length)

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self.model.model
        return module

    def prepare(self, targets: Sequence[Target]) -> list[Example]:
        encoded = [self.model.encode(t.problem, t.program, t.ends) for t in targets]
        read = [(e, list(range(len(e.ends))), list(e.positions)) for e in encoded]
        return _examples(targets, self.cfg, self.model.max_length, read)

    def losses(self, batch: Sequence[Example]) -> Iterator[Tensor]:
        self.module.train()
        total = float(sum(e.weights.sum() for e in batch))
        for rows in self.model.batches([e.tokens for e in batch]):
            yield self._squares([batch[i] for i in rows])[0] / total

    @torch.no_grad()
    def evaluate(self, batch: Sequence[Example]) -> tuple[float, list[list[float]]]:
        self.module.eval()
        total, values = 0.0, [[0.0]] * len(batch)
        for rows in self.model.batches([e.tokens for e in batch]):
            loss, own = self._squares([batch[i] for i in rows])
            total += float(loss)
            for i, row in zip(rows, own, strict=True):
                values[i] = row.clamp(0, 1).tolist()
        return total / float(sum(e.weights.sum() for e in batch)), values

    def load(self, folder: Path) -> None:
        load_weights(self.model.model, folder)

    def _squares(self, batch: Sequence[Example]) -> tuple[Tensor, list[Tensor]]:
        """Weighted sum of squared errors, and the values `[ends]` of each row."""
        values = [
            v.float() for v in self.model.values([e.read for e in batch if isinstance(e.read, Encoded)])
        ]
        flat = torch.cat(values)
        targets, weights = (
            _joined([e.targets for e in batch], flat),
            _joined([e.weights for e in batch], flat),
        )
        return (weights * (flat - targets) ** 2).sum(), values


class AdditiveLearner:
    """Cross-entropy at the end of every row plus `pairwise` times the ranking loss of whole programs.

    Only the last end of a row is a target: the sum over tokens finds by itself where the loss came from, and
    the reward of a completion is a poor target for its early lines (within-problem AUC .86 without, .77 with
    them). Rows of partial programs (collect.targets = "reference") bring the tree's V at their own ends.
    """

    def __init__(self, cfg: ValueConfig, policy: LocalPolicy, seed: int) -> None:
        self.cfg = cfg
        self.model = AdditiveValue.new(policy, cfg.hidden_size, seed=seed, max_length=cfg.max_length)
        self._cache: dict[tuple[int, ...], Traced] = {}
        self._cached_bytes = 0

    @property
    def module(self) -> nn.Module:
        return self.model.head

    def prepare(self, targets: Sequence[Target]) -> list[Example]:
        read: list[tuple[Encoded | Scored, list[int], list[int]]] = []
        for target in targets:
            e = self.model.encode(target.problem, target.program, target.ends)
            last = len(e.counts) - 1
            kept = [last] if e.counts[last] > 0 else []  # an empty program's value is 1
            read.append((e, kept, [e.counts[i] for i in kept]))
        return _examples(targets, self.cfg, self.model.max_length, read)

    def losses(self, batch: Sequence[Example]) -> Iterator[Tensor]:
        self.module.train()
        yield self._loss(batch)[0]

    @torch.no_grad()
    def evaluate(self, batch: Sequence[Example]) -> tuple[float, list[list[float]]]:
        self.module.eval()
        loss, log_values = self._loss(batch)
        return float(loss), [row.exp().tolist() for row in log_values]

    def load(self, folder: Path) -> None:
        self.model.load_weights(folder)

    def _loss(self, batch: Sequence[Example]) -> tuple[Tensor, list[Tensor]]:
        log_values = self.model.log_values(self._traced(batch), [e.positions for e in batch])
        flat = torch.cat(log_values)
        targets, weights = (
            _joined([e.targets for e in batch], flat),
            _joined([e.weights for e in batch], flat),
        )
        loss = (weights * target_loss(flat, targets)).sum() / weights.sum()
        if self.cfg.pairwise > 0:
            whole = [i for i, e in enumerate(batch) if e.whole]
            if len(whole) > 1:
                last = torch.stack([log_values[i][-1] for i in whole])
                rewards = torch.tensor([batch[i].reward for i in whole], device=flat.device)
                groups = torch.tensor([batch[i].group for i in whole], device=flat.device)
                loss = loss + self.cfg.pairwise * pairwise_loss(last, rewards, groups)
        return loss, log_values

    def _traced(self, batch: Sequence[Example]) -> list[Traced]:
        """The policy's states along each row, from the cache or a pass of the policy."""
        missing = {
            e.token_ids: e.read
            for e in batch
            if isinstance(e.read, Scored) and e.token_ids not in self._cache
        }
        fresh = dict(zip(missing, self.model.trace(list(missing.values())), strict=True))
        rows = [fresh[e.token_ids] if e.token_ids in fresh else self._cache[e.token_ids] for e in batch]
        for ids, traced in fresh.items():
            size = traced.hidden.nbytes
            if self._cached_bytes + size <= _CACHE_BYTES:
                self._cache[ids] = traced
                self._cached_bytes += size
        return rows


def _joined(parts: Sequence[NDArray[np.float32]], like: Tensor) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(like)
