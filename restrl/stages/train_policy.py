"""Stage 1, step 5: train the policy on the assembled states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from restrl.config import TrainConfig
from restrl.policy import Completion
from restrl.policy.local import LocalPolicy
from restrl.records import Problem
from restrl.rows import Row
from restrl.sandbox import Verifier
from restrl.training.grpo import train_grpo
from restrl.training.loop import TrainResult
from restrl.training.rollout import EagerReward, TrainState, cut_at_stop
from restrl.training.sft import train_sft


def train_policy(
    policy: LocalPolicy,
    states: Sequence[Row],
    samples: Sequence[Row],
    problems: Mapping[str, Problem],
    verifier: Verifier,
    cfg: TrainConfig,
    out: Path,
    *,
    seed: int,
    r0: float,
    name: str = "train-policy",
) -> TrainResult:
    """Train `policy` in place by `cfg.method`; the trained policy stands in out/final.

    grpo  on `states` (rows of assemble), every completion of a state verified as state + completion
    sft   on the best completion of every problem of `samples` (rows of sample) whose reward reaches `r0`
    """
    form = policy.format
    if cfg.method == "sft":
        examples = [
            (form.prompt(problem, problem.prefix, "").text, text)
            for problem, text in _accepted(samples, problems, r0)
        ]
        return train_sft(
            policy.model, policy.tokenizer, examples, cfg, out, seed=seed, name=name,
            add_special_tokens=not form.chat,
        )  # fmt: skip
    starts = []
    for i, row in enumerate(states):
        problem = problems[row["task_id"]]
        prompt = form.prompt(problem, row["state"], f"{row['task_id']}:{i}")
        starts.append(TrainState(problem, prompt, row["kind"], form.stops(problem)))
    return train_grpo(policy, starts, rewards(verifier), cfg, out, seed=seed, name=name)


def rewards(verifier: Verifier) -> EagerReward:
    """The reward function: the share of tests that state + completion passes, up to the first stop string.

    A group is verified while the policy completes others.
    """

    def begin(state: TrainState, group: list[Completion]) -> Callable[[], list[float | None]]:
        start = state.prompt.state
        pending = [
            verifier.submit(state.problem, start + cut_at_stop(c.text, state.stops, start).text)
            for c in group
        ]
        return lambda: [one.result().reward for one in pending]

    return EagerReward(begin)


def _accepted(
    samples: Sequence[Row], problems: Mapping[str, Problem], r0: float
) -> list[tuple[Problem, str]]:
    """(problem, first best completion) where the best reward reaches `r0`."""
    accepted = []
    for row in samples:
        scored = [
            (r, text) for r, text in zip(row["rewards"], row["completions"], strict=True) if r is not None
        ]
        if scored:
            best, text = max(scored, key=lambda pair: pair[0])
            if best >= r0:
                accepted.append((problems[row["task_id"]], text))
    return accepted
