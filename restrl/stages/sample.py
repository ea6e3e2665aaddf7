"""Stage 1, steps 1 and 2: N completions for every training problem, each verified."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from restrl.config import SamplingConfig
from restrl.policy import Completion, Policy, Sampling
from restrl.policy.grouped import complete_grouped
from restrl.progress import Progress
from restrl.prompts import PromptFormat
from restrl.records import SCHEMA_VERSION, Problem
from restrl.rows import Appender, Row
from restrl.sandbox import Pending, Verifier

CHUNK = 64  # problems decoded and verified together; also the grain of resuming


def sample(
    policy: Policy,
    form: PromptFormat,
    problems: Sequence[Problem],
    verifier: Verifier,
    cfg: SamplingConfig,
    out: Path,
    *,
    seed: int,
) -> list[Row]:
    """Write one row per problem to `out`: its completions, their rewards and why each ended.

    Row: {"schema", "task_id", "completions": [str], "rewards": [float | null], "statuses": [str],
    "tokens": [int], "log_probs": [float | null]} with the summed log-probability of each completion (nats).
    """
    with Appender(out, CHUNK) as file:
        with Progress("sample", len(problems), len(file.rows)) as bar:
            drawn: _Drawn | None = None
            for start in range(len(file.rows), len(problems), CHUNK):
                chunk = problems[start : start + CHUNK]
                groups = draw(policy, form, chunk, cfg, seed=seed)
                # What was drawn last is verified while this was drawn.
                last, drawn = drawn, _Drawn.submit(chunk, groups, verifier)
                if last is not None:
                    _write(last, file, bar)
            if drawn is not None:
                _write(drawn, file, bar)
        return file.finish()


class _Drawn(NamedTuple):
    """A chunk of problems, the completions of each and the verdicts to come."""

    problems: Sequence[Problem]
    groups: list[list[Completion]]
    verdicts: list[list[Pending]]

    @staticmethod
    def submit(problems: Sequence[Problem], groups: list[list[Completion]], verifier: Verifier) -> _Drawn:
        pairs = zip(problems, groups, strict=True)
        return _Drawn(
            problems, groups, [[verifier.submit(p, p.prefix + c.text) for c in group] for p, group in pairs]
        )


def _write(drawn: _Drawn, file: Appender, bar: Progress) -> None:
    rows = []
    for problem, group, verdicts in zip(*drawn, strict=True):
        own = [one.result() for one in verdicts]
        rows.append(
            {
                "schema": SCHEMA_VERSION,
                "task_id": problem.task_id,
                "completions": [c.text for c in group],
                "rewards": [v.reward for v in own],
                "statuses": [v.status for v in own],
                "tokens": [len(c.token_ids) for c in group],
                "log_probs": [_total(c) for c in group],
            }
        )
    file.append(rows)
    rewards = [r for row in file.rows for r in row["rewards"]]
    known = [r for r in rewards if r is not None]
    note = f"reward {np.mean(known):.3f}" if known else ""
    unknown = len(rewards) - len(known)
    bar.update(len(rows), f"{note}, {unknown} not verified" if unknown else note)


def draw(
    policy: Policy, form: PromptFormat, problems: Sequence[Problem], cfg: SamplingConfig, *, seed: int
) -> list[list[Completion]]:
    """`cfg.n` completions of every problem's bare prompt, cut at the domain's stop strings, in order."""
    prompts = [form.prompt(p, p.prefix, p.task_id) for p in problems]
    sampling = Sampling(cfg.temperature, cfg.top_p, cfg.top_k, cfg.max_new_tokens, seed=seed)
    return complete_grouped(policy.complete, form, problems, prompts, [cfg.n] * len(problems), sampling)


def _total(completion: Completion) -> float | None:
    return None if completion.log_probs is None else float(np.sum(completion.log_probs, dtype=np.float64))
