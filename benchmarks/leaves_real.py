"""Real problems for bench_leaves.py: the pipelines policy with its token-additive value head.

The completions of a state are drawn once for every (seed, problem, tree, state), scored as they are drawn,
and kept: searches with different parameters share them, so that their differences are paired and the policy
works a fraction of the time. What one search would have drawn by itself is what is counted.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from bench_decode import value_folder
from leaves_search import Oracle, Outcome

from restrl.pipeline import load_policy, model_path, problem_set
from restrl.policy import Completion, Sampling
from restrl.policy.grouped import complete_grouped
from restrl.policy.local import LocalPolicy
from restrl.records import Problem
from restrl.sandbox import Verifier
from restrl.stages.collect import known_reward
from restrl.value import finished, load_value
from restrl.value.additive import AdditiveValue

MAX_ROWS = 512  # completions decoded at once
MAX_LENGTH = 512  # tokens of a text that the head reads


@dataclass
class Real:
    """A problem and what was drawn for it."""

    problem: Problem
    seed: int
    drawn: dict[tuple[int, str], list[Completion]] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.problem.task_id} {self.seed}"

    @property
    def root(self) -> str:
        return self.problem.prefix

    def completions(self, tree: int, state: str, k: int) -> list[str]:
        return [completion.text for completion in self.drawn[tree, state][:k]]

    def tokens(self, tree: int, state: str, k: int) -> int:
        return sum(len(completion.token_ids) for completion in self.drawn[tree, state][:k])

    def score(self, state: str) -> float:
        return self.scores[state]

    def reward(self, program: str) -> float:
        raise NotImplementedError("the real problems are searched in value mode only")

    def judge(
        self, answer: str, programs: Sequence[str], nodes: Sequence[tuple[str, float]]
    ) -> dict[str, float]:
        """Nothing: answers are verified together (`verify`)."""
        return {}


@dataclass
class Bank:
    """Draws what is missing, in batches over all problems."""

    policy: LocalPolicy
    value: AdditiveValue
    k: int
    temperature: float
    max_new_tokens: int

    def oracles(self, problems: Sequence[Problem], seed: int) -> list[Real]:
        return [Real(problem, seed) for problem in problems]

    def prepare(self, batch: Sequence[tuple[Oracle, int, str]]) -> None:
        missing: dict[tuple[str, int, str], Real] = {}
        for oracle, tree, state in batch:
            assert isinstance(oracle, Real)
            if (tree, state) not in oracle.drawn:
                missing[oracle.name, tree, state] = oracle
        problems = [oracle.problem for oracle in missing.values()]
        form = self.policy.format
        prompts = [
            form.prompt(oracle.problem, state, _key(name, tree, state))
            for (name, tree, state), oracle in missing.items()
        ]
        sampling = Sampling(self.temperature, max_new_tokens=self.max_new_tokens)
        counts = [self.k] * len(prompts)
        groups = complete_grouped(self.value.complete, form, problems, prompts, counts, sampling)
        for ((_, tree, state), oracle), prompt, group in zip(missing.items(), prompts, groups, strict=True):
            oracle.drawn[tree, state] = group
            for completion in group:
                program = finished(state, completion.text)
                values = self.value.line_values_from_completion(oracle.problem, prompt, completion)
                for end, value in zip(values.ends, values.values, strict=True):
                    oracle.scores.setdefault(program[:end], value)


def load_banks(args: argparse.Namespace, k: int) -> list[Bank]:
    """One for every temperature, all with the policy and head of `args`."""
    torch.set_num_threads(1)
    policy = load_policy(model_path(args.model), args.device, args.dtype, MAX_ROWS)
    head = load_value(value_folder(args) / "final", policy=policy, max_length=MAX_LENGTH)
    assert isinstance(head, AdditiveValue)
    return [Bank(policy, head, k, temperature, args.max_new_tokens) for temperature in args.temperature]


def load_problems(count: int, difficulty: tuple[int, int]) -> list[Problem]:
    low, high = difficulty
    return problem_set(f"pipelines:test:{count}:{low}-{high}", "auto", 0)


def verify(problems: Sequence[Problem], searches: Sequence[Sequence[Outcome]]) -> None:
    """Adds the figure `right` to all outcomes, `[searches][problems]`: the answer passes every test."""
    with Verifier() as verifier:
        for outcomes in searches:
            verdicts = verifier.verify([(p, o.answer) for p, o in zip(problems, outcomes, strict=True)])
            for problem, outcome, verdict in zip(problems, outcomes, verdicts, strict=True):
                outcome.figures["right"] = float(known_reward(verdict, problem.task_id) == 1.0)


def _key(*parts: object) -> str:
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=12).hexdigest()
