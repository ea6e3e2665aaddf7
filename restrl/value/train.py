"""Training of value models on the targets that `collect` wrote, for both heads."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from restrl.config import ValueConfig
from restrl.errors import RestrlError
from restrl.policy.local import LocalPolicy
from restrl.records import Problem
from restrl.rows import Row, write_json
from restrl.training import checkpoint, loop
from restrl.value.learners import AdditiveLearner, Example, Learner, ScalarLearner, Target
from restrl.value.quality import within_auc, within_spearman

EVALUATION_SHARE = 0.1  # of the problems
_EVALUATIONS = 10  # over the whole training
_EVALUATION_ROWS = 1000  # at most
_TOGETHER = 4  # rows of one problem side by side in a batch, for the ranking loss
LEARNING_RATE = {"scalar": 1e-7, "additive": 4e-3}


def train_value(
    cfg: ValueConfig,
    rows: Sequence[Row],
    problems: Mapping[str, Problem],
    policy: LocalPolicy,
    out: Path,
    *,
    seed: int,
    max_rows: int | None = None,
) -> Path:
    """Train the head that `cfg` names and return out/final, which `load_value` reads.

    rows: {"task_id", "program", "ends", "values", "visits"}; see the stage collect. A tenth of the problems
    is kept for evaluation (of a single problem its own rows are used); the weights of the lowest evaluation
    loss are the result. `max_rows` takes only so many rows, spread over the problems.

    out/value.json  {"head", "eval_loss", "eval_mse", "constant_mse", "eval_auc", "eval_spearman",
                    "best_step", "steps", "rows", "eval_rows", "problems", "eval_problems", "dropped",
                    "tokens"}; auc and spearman are within problems, for the value of the whole program;
                    constant_mse is what the mean of the training targets gets
    out/train/      metrics.jsonl and, until the end, checkpoints of the training loop
    Killed and started again, it ends with the same weights. out/final existing, it returns at once.
    Raises RestrlError for rows that are damaged or all too long, and for no rows.
    """
    final = out / "final"
    if final.exists():
        _remove_checkpoints(out)
        return final
    targets = [_target(row, i, problems) for i, row in enumerate(rows)]
    train, held_out = _split(targets, seed)
    if max_rows is not None:
        train = _spread(train, max_rows, seed)
    held_out = _spread(held_out, _EVALUATION_ROWS, seed)
    learner: Learner = (
        ScalarLearner(cfg, policy, seed) if cfg.head == "scalar" else AdditiveLearner(cfg, policy, seed)
    )
    examples, evaluation = learner.prepare(train), learner.prepare(held_out)
    dropped = len(train) + len(held_out) - len(examples) - len(evaluation)
    if not examples or not evaluation:
        raise RestrlError(
            f"{out}: nothing to train the value model on: {dropped} of {len(train) + len(held_out)} "
            f"programs are longer than value.max_length = {cfg.max_length} tokens or have none of their own"
        )
    training = _Training(cfg, learner, examples, evaluation, out / "train", seed)
    best_step, metrics = training.run()
    summary = {
        "head": cfg.head,
        **metrics,
        "constant_mse": _constant_mse(examples, evaluation),
        "best_step": best_step,
        "steps": training.total,
        "rows": len(examples),
        "eval_rows": len(evaluation),
        "problems": len({t.problem.task_id for t in train}),
        "eval_problems": len({t.problem.task_id for t in held_out}),
        "dropped": dropped,
        "tokens": sum(e.tokens for e in examples),
    }
    write_json(out / "value.json", summary)
    learner.load(training.best_folder(best_step))
    checkpoint.write_folder(final, learner.model.save)
    _remove_checkpoints(out)
    return final


def _remove_checkpoints(out: Path) -> None:
    for folder in (out / "train").glob("*/"):
        shutil.rmtree(folder)


@dataclass
class _Best:
    """The evaluation with the lowest loss so far."""

    step: int = -1
    loss: float = math.inf


class _Training:
    """One run of the loop: which rows a step sees, and when it evaluates."""

    def __init__(
        self,
        cfg: ValueConfig,
        learner: Learner,
        examples: list[Example],
        evaluation: list[Example],
        out: Path,
        seed: int,
    ) -> None:
        self.cfg, self.learner, self.out, self.seed = cfg, learner, out, seed
        self.examples, self.evaluation = examples, evaluation
        self.together = _TOGETHER if cfg.head == "additive" and cfg.pairwise > 0 else 1
        self.per_epoch = len(_batches(examples, cfg.batch_size, self.together, [seed, 0]))
        self.total = self.per_epoch * cfg.epochs
        self.every = max(1, math.ceil(self.total / _EVALUATIONS))
        self.best = _Best()
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def run(self) -> tuple[int, dict[str, Any]]:
        """The best step and its evaluation."""
        cfg = self.cfg
        settings = loop.Settings(
            total_steps=self.total,
            learning_rate=cfg.learning_rate or LEARNING_RATE[cfg.head],
            save_steps=max(20, self.every),
        )
        job = loop.Job(
            parameters=loop.parameter_groups(self.learner.module),
            losses=self._losses,
            save=self.learner.model.save,
            load=self.learner.load,
            state=lambda: {"best_step": self.best.step, "best_loss": self.best.loss},
            restore=self._restore,
            identity={
                "value": cfg.model_dump(),
                "rows": len(self.examples),
                "eval_rows": len(self.evaluation),
                "digest": _digest(self.examples, self.evaluation),
            },
        )
        loop.run(job, settings, self.out, seed=self.seed, name="train-value")
        self.learner.load(self.out / "final")
        self._evaluate(self.total)
        return self._best_on_disk()

    def best_folder(self, step: int) -> Path:
        return self.out / f"best-{step}"

    def _best_on_disk(self) -> tuple[int, dict[str, Any]]:
        """Step and evaluation of the best weights kept, the first of equals; a kill may have left several."""
        steps = sorted(int(path.name.removeprefix("best-")) for path in self.out.glob("best-[0-9]*"))
        if not steps:
            raise RestrlError(f"{self.out}: the evaluation loss was never finite; lower value.learning_rate")
        found: list[tuple[int, dict[str, Any]]] = []
        for step in steps:
            self.learner.load(self.best_folder(step))
            found.append((step, evaluate(self.learner, self.evaluation)))
        return min(found, key=lambda pair: pair[1]["eval_loss"])

    def _restore(self, state: dict[str, Any]) -> None:
        self.best = _Best(state["best_step"], state["best_loss"])

    def _losses(self, step: int, log: loop.Log) -> Iterator[Tensor]:
        if step and step % self.every == 0:
            log.update(self._evaluate(step))
        epoch, position = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            batches = _batches(self.examples, self.cfg.batch_size, self.together, [self.seed, epoch])
            self._epoch = (epoch, batches)
        return self.learner.losses([self.examples[i] for i in self._epoch[1][position]])

    def _evaluate(self, step: int) -> loop.Log:
        """Evaluate the weights after `step` steps and keep them if they are the best."""
        metrics = evaluate(self.learner, self.evaluation)
        loss = metrics["eval_loss"]
        if loss < self.best.loss:
            old, self.best = self.best, _Best(step, loss)
            checkpoint.write_folder(self.best_folder(step), self.learner.model.save)
            if old.step >= 0 and self.best_folder(old.step).exists():
                checkpoint.remove_folder(self.best_folder(old.step))
        return {key: value for key, value in metrics.items() if value is not None}


@torch.no_grad()
def evaluate(learner: Learner, examples: Sequence[Example]) -> dict[str, Any]:
    """Loss and mean squared error over all targets; AUC and Spearman within problems, of whole programs."""
    losses: list[float] = []
    squares: list[float] = []
    groups: dict[int, tuple[list[float], list[float]]] = {}
    for batch in _groups_whole(examples):
        loss, values = learner.evaluate(batch)
        losses += [loss] * len(batch)
        for example, row in zip(batch, values, strict=True):
            squares += [(v - float(y)) ** 2 for v, y in zip(row, example.targets, strict=True)]
            if example.whole:
                scores, rewards = groups.setdefault(example.group, ([], []))
                scores.append(row[-1])
                rewards.append(example.reward)
    return {
        "eval_loss": float(np.mean(losses)),
        "eval_mse": float(np.mean(squares)),
        "eval_auc": within_auc(list(groups.values())),
        "eval_spearman": within_spearman(list(groups.values())),
    }


def _target(row: Row, number: int, problems: Mapping[str, Problem]) -> Target:
    """A checked row. Raises RestrlError naming its number and what is wrong."""
    where = f"value target {number + 1}"
    try:
        problem = problems[row["task_id"]]
        program, ends, values = str(row["program"]), list(row["ends"]), [float(v) for v in row["values"]]
        visits = [float(v) for v in row["visits"]]
    except (KeyError, TypeError, ValueError) as error:
        raise RestrlError(f"{where}: {error!r}: a key, a number or the problem is missing") from None
    start = len(problem.prefix)
    rising = all(a < b for a, b in pairwise(ends))
    if not ends or len(ends) != len(values) or len(ends) != len(visits) or not rising:
        raise RestrlError(
            f"{where} ({problem.task_id}): ends, values and visits must be equally long and ends rising"
        )
    if not program.startswith(problem.prefix) or ends[0] < start or ends[-1] > len(program):
        raise RestrlError(
            f"{where} ({problem.task_id}): an end lies outside the program past the problem's code"
        )
    if not all(0.0 <= v <= 1.0 for v in values):
        raise RestrlError(f"{where} ({problem.task_id}): a target is not in [0, 1]")
    return Target(problem, program, tuple(ends), tuple(values), tuple(visits))


def _split(targets: Sequence[Target], seed: int) -> tuple[list[Target], list[Target]]:
    """Training and evaluation targets: a tenth of the problems, at least one, is for evaluation."""
    names = sorted({t.problem.task_id for t in targets})
    order = np.random.default_rng([seed, 1]).permutation(len(names))
    count = max(1, round(EVALUATION_SHARE * len(names))) if len(names) > 1 else 0
    held_out = {names[i] for i in order[:count]}
    if not held_out:
        return list(targets), list(targets)
    train = [t for t in targets if t.problem.task_id not in held_out]
    return train, [t for t in targets if t.problem.task_id in held_out]


def _spread(targets: list[Target], limit: int, seed: int) -> list[Target]:
    """At most `limit` targets, as equally many of every problem as there are, chosen at random."""
    if len(targets) <= limit:
        return targets
    turn: dict[str, int] = {}
    order = np.random.default_rng([seed, 2]).permutation(len(targets))
    ranked: list[tuple[int, int]] = []
    for i in order:
        name = targets[i].problem.task_id
        ranked.append((turn.get(name, 0), int(i)))
        turn[name] = turn.get(name, 0) + 1
    chosen = sorted(i for _, i in sorted(ranked, key=lambda pair: pair[0])[:limit])
    return [targets[i] for i in chosen]


def _batches(examples: Sequence[Example], size: int, together: int, key: list[int]) -> list[list[int]]:
    """Indices of one epoch in batches of about `size`, rows of one problem in blocks of up to `together`."""
    rng = np.random.default_rng([*key, 3])
    if together == 1:
        order = rng.permutation(len(examples)).tolist()
        return [order[i : i + size] for i in range(0, len(order), size)]
    members: dict[int, list[int]] = {}
    for i in rng.permutation(len(examples)).tolist():
        members.setdefault(examples[i].group, []).append(i)
    blocks = [rows[i : i + together] for rows in members.values() for i in range(0, len(rows), together)]
    per_batch = max(1, size // together)
    order = rng.permutation(len(blocks)).tolist()
    return [
        [i for block in order[start : start + per_batch] for i in blocks[block]]
        for start in range(0, len(order), per_batch)
    ]


def _groups_whole(examples: Sequence[Example], size: int = 64) -> Iterator[list[Example]]:
    """The examples problem by problem, in batches of about `size`; only a larger problem is cut."""
    batch: list[Example] = []
    for example in sorted(examples, key=lambda e: e.group):
        if (len(batch) >= size and batch[-1].group != example.group) or len(batch) >= 4 * size:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def _constant_mse(examples: Sequence[Example], evaluation: Sequence[Example]) -> float:
    mean = float(np.mean(np.concatenate([e.targets for e in examples])))
    return float(np.mean((np.concatenate([e.targets for e in evaluation]) - mean) ** 2))


def _digest(*parts: Sequence[Example]) -> str:
    """A short hash of what is trained and evaluated on, so that a run is not resumed with other rows."""
    import hashlib

    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        for example in part:
            digest.update(np.asarray(example.token_ids, np.int64).tobytes())
            digest.update(example.targets.astype(np.float64).tobytes())
    return digest.hexdigest()
