"""Generation and verification overlap, and what comes out is what comes out without."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_tiny_qwen2

from restrl.config import SamplingConfig, TrainConfig
from restrl.policy import Completion, Prompt, Sampling
from restrl.policy.local import LocalPolicy
from restrl.prompts import PromptFormat
from restrl.records import Calls, Problem
from restrl.sandbox import Verifier
from restrl.stages import sample as stage
from restrl.stages.train_policy import rewards
from restrl.training.rollout import TrainState, roll_out

PREFIX = "def f(x):\n"


def problem(name: str) -> Problem:
    return Problem(
        task_id=name, source="t", prompt=PREFIX, mode="complete", prefix=PREFIX,
        tests=Calls(fn_name="f", args=[[1], [2]], expected=[2, 3]),
    )  # fmt: skip


class Scripted:
    """A policy that waits, before each batch but the first, until the batch before it is verified."""

    def __init__(self, verifier: Verifier, fail_at: int = -1) -> None:
        self.verifier, self.batches, self.asked, self.fail_at = verifier, 0, 0, fail_at

    def complete(self, requests: list[Prompt], n: int, sampling: Sampling) -> list[list[Completion]]:
        deadline = time.monotonic() + 20
        while self.verifier.stats.judged < self.asked and time.monotonic() < deadline:
            time.sleep(0.005)
        assert self.verifier.stats.judged == self.asked, "nothing was verified while this was drawn"
        if self.batches == self.fail_at:
            raise KeyboardInterrupt
        self.batches += 1
        self.asked += n * len(requests)
        return [
            [Completion(f"    return x + {i} + 0 * len('{r.key}')\n") for i in range(n)] for r in requests
        ]


def test_verdicts_are_computed_while_the_policy_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "CHUNK", 2)
    problems = [problem(f"p{i}") for i in range(5)]
    cfg, form = SamplingConfig(n=3), PromptFormat(None)

    def run(out: Path, fail_at: int = -1) -> Scripted:
        with Verifier(workers=1) as verifier:
            policy = Scripted(verifier, fail_at)
            stage.sample(policy, form, problems, verifier, cfg, out, seed=0)
        return policy

    run(tmp_path / "whole.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert [row["task_id"] for row in rows] == ["p0", "p1", "p2", "p3", "p4"]
    assert all(row["rewards"] == [0.0, 1.0, 0.0] for row in rows)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut.jsonl", fail_at=2)
    assert run(tmp_path / "cut.jsonl").batches == 2  # one chunk of three was written
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_grpo_begins_with_a_group_as_soon_as_it_is_there(tmp_path: Path) -> None:
    policy = LocalPolicy(make_tiny_qwen2(tmp_path), max_rows=2)
    states = [
        TrainState(problem(f"p{i}"), PromptFormat(None).prompt(problem(f"p{i}"), PREFIX, f"k{i}"))
        for i in range(4)
    ]
    cfg = TrainConfig(num_generations=2, prompts_per_step=4, max_completion_length=12)
    with Verifier(workers=1) as verifier:
        eager = rewards(verifier)
        begun: list[tuple[str, int]] = []

        def begin(state: TrainState, group: list[Completion]) -> Any:
            begun.append((state.problem.task_id, verifier.stats.judged))
            waiting = eager.begin(state, group)
            waiting()
            return waiting

        one = roll_out(policy, states, type(eager)(begin), cfg, 0, 7)
        other = roll_out(policy, states, lambda s, c: eager(s, c), cfg, 0, 7)
    assert sorted(name for name, _ in begun) == ["p0", "p1", "p2", "p3"]
    assert [judged > 0 for _, judged in begun] == [False, True, True, True]
    assert [row.completion for row in one.rows] == [row.completion for row in other.rows]
    assert one.advantages.tolist() == other.advantages.tolist()
    same = {key: value for key, value in one.log.items() if not key.endswith("_time")}
    assert same == {key: value for key, value in other.log.items() if not key.endswith("_time")}
