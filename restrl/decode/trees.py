"""ORM-MCTS and VM-MCTS: search with scores instead of tests, many problems' trees at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from restrl.config import DecodeConfig
from restrl.decode.answers import Answer, Candidate, answer
from restrl.decode.draws import scored_complete
from restrl.policy import Completion, Policy, Sampling
from restrl.policy.grouped import complete_grouped
from restrl.prompts import PromptFormat
from restrl.records import Problem
from restrl.search import Evaluation, Expansion, Request, Root, SearchParams, TreeResult, search
from restrl.value import FreeValueModel, LineValues, ValueModel

TreeMethod = Literal["orm-mcts", "vm-mcts"]


@dataclass
class _Guide:
    """What the search asks, answered by a policy and a value model; keeps every completion in order."""

    problems: dict[str, Problem]
    policy: Policy
    value: ValueModel
    cfg: DecodeConfig
    form: PromptFormat
    method: TreeMethod
    seed: int
    drawn: dict[str, list[Candidate]]

    def complete(self, requests: list[Request]) -> list[list[Completion]]:
        """`k` completions of every requested state."""
        owners = [self.problems[r.key] for r in requests]
        prompts = [
            self.form.prompt(problem, r.state, r.seed_key)
            for problem, r in zip(owners, requests, strict=True)
        ]
        sampling = Sampling(self.cfg.temperature, max_new_tokens=self.cfg.max_new_tokens, seed=self.seed)
        draw = scored_complete(self.policy, self.value)
        return complete_grouped(draw, self.form, owners, prompts, [r.k for r in requests], sampling)

    def evaluate(self, expansions: list[Expansion]) -> list[Evaluation]:
        """Values of completions and children, from one look at each completion."""
        values = self._line_values(expansions)
        out: list[Evaluation] = []
        for expansion, own in zip(expansions, values, strict=True):
            problem = self.problems[expansion.key]
            self.drawn[expansion.key] += [
                Candidate(
                    program,
                    program[len(problem.prefix) :],
                    score=v.last,
                    tokens=len(completion.token_ids),
                    value_tokens=v.tokens,
                )
                for program, completion, v in zip(expansion.programs, expansion.completions, own, strict=True)
            ]
            children = child_values(expansion, own) if self.method == "vm-mcts" else []
            out.append(Evaluation([v.last for v in own], children))
        return out

    def _line_values(self, expansions: Sequence[Expansion]) -> list[list[LineValues]]:
        if isinstance(self.value, FreeValueModel) and self.value.policy is self.policy:
            free = self.value
            return [
                [
                    free.line_values_from_completion(
                        self.problems[e.key], self.form.prompt(self.problems[e.key], e.state, ""), completion
                    )
                    for completion in e.completions
                ]
                for e in expansions
            ]
        scored = iter(self.value.score([(self.problems[e.key], p) for e in expansions for p in e.programs]))
        return [[next(scored) for _ in e.programs] for e in expansions]


def child_values(expansion: Expansion, values: Sequence[LineValues]) -> list[float]:
    """The value of every child, read at its end in the first completion that leads to it."""
    return [
        values[expansion.child_of.index(number)].at(len(child))
        for number, child in enumerate(expansion.children)
    ]


def search_params(method: TreeMethod, cfg: DecodeConfig, budget: int) -> SearchParams:
    """At most `budget` completions and at most cfg.simulations simulations.

    A simulation that ends in a finished program draws nothing: the budget is used up only if cfg.simulations
    is larger than budget // k, four times that being ample.
    """
    return SearchParams(
        mode="value" if method == "vm-mcts" else "outcome",
        simulations=cfg.simulations,
        max_samples=budget,
        k=min(cfg.k, budget),
        num_decisions=cfg.num_decisions,
        c=cfg.c,
        eps=cfg.eps,
    )


def decode_trees(
    method: TreeMethod,
    problems: Sequence[Problem],
    policy: Policy,
    cfg: DecodeConfig,
    *,
    form: PromptFormat,
    value: ValueModel,
    seed: int,
) -> list[tuple[Answer, TreeResult]]:
    """One tree for every problem, cfg.trees_in_flight of them at a time; its answer and the tree itself.

    The answer is the completion with the highest value in the tree, on ties the first in pre-order. Its
    candidates stand in order of generation.
    """
    params = search_params(method, cfg, cfg.budget)
    out: list[tuple[Answer, TreeResult]] = []
    for start in range(0, len(problems), cfg.trees_in_flight):
        chunk = problems[start : start + cfg.trees_in_flight]
        clock = time.perf_counter()
        guide = _Guide(
            {p.task_id: p for p in chunk},
            policy,
            value,
            cfg,
            form,
            method,
            seed,
            {p.task_id: [] for p in chunk},
        )
        trees = search(
            [Root(p.task_id, p.prefix) for p in chunk],
            params,
            complete=guide.complete,
            evaluate=guide.evaluate,
            seed=seed,
            leaves_in_flight=cfg.leaves_in_flight,
            trees_in_flight=cfg.trees_in_flight,
        )
        seconds = (time.perf_counter() - clock) / len(chunk)
        for problem, tree in zip(chunk, trees, strict=True):
            candidates = in_tree_order(guide.drawn[problem.task_id], tree)
            out.append(
                (answer(problem.task_id, method, candidates, budget=cfg.budget, seconds=seconds), tree)
            )
    return out


def in_tree_order(drawn: Sequence[Candidate], tree: TreeResult) -> list[Candidate]:
    """The candidates with their first place in the tree's pre-order as rank."""
    places: dict[str, int] = {}
    for place, completion in enumerate(tree.completions):
        places.setdefault(completion.program, place)
    return [replace(c, rank=places[c.program]) for c in drawn]
