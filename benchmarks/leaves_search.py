"""Many searches in one native forest, against oracles that answer for a policy and a value model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from restrl._core import Forest, SearchParams


class Oracle(Protocol):
    """Policy, value model and judge of one problem."""

    @property
    def name(self) -> str: ...
    @property
    def root(self) -> str: ...
    def completions(self, tree: int, state: str, k: int) -> list[str]: ...
    def tokens(self, tree: int, state: str, k: int) -> int: ...
    def score(self, state: str) -> float: ...
    def reward(self, program: str) -> float: ...
    def judge(
        self, answer: str, programs: Sequence[str], nodes: Sequence[tuple[str, float]]
    ) -> dict[str, float]: ...


Prepare = Callable[[Sequence[tuple[Oracle, int, str]]], None]
"""Told of all (oracle, tree, state) of a batch before their completions are asked for."""


@dataclass(frozen=True)
class Outcome:
    """One search. Figures, root-parallel trees taken together:

    rounds      calls of the policy that had to follow one another
    samples     completions drawn; `tokens` of them in all
    expanded, collisions, terminal_visits
    mean_depth, max_depth   of the expanded nodes
    entropy     of the visits over the root's children (nats), of the first tree
    and what the oracle's judge says
    """

    answer: str
    figures: dict[str, float]


def grow(
    oracles: Sequence[Oracle],
    params: SearchParams,
    *,
    seed: int = 0,
    trees: int = 1,
    prepare: Prepare | None = None,
) -> list[Outcome]:
    """`trees` independent trees of every problem, each with `params`.

    The answer is the completion of the highest value, on ties the first in pre-order of the first tree.
    """
    forest = Forest(params, seed)
    owner: dict[int, tuple[Oracle, int]] = {}
    for oracle in oracles:
        for tree in range(trees):
            owner[forest.add(f"{oracle.name}/{tree}", oracle.root)] = oracle, tree
    rounds: dict[int, int] = defaultdict(int)
    tokens: dict[int, int] = defaultdict(int)
    while batch := forest.next(1 << 30):
        for tree in {request.tree for request in batch}:
            rounds[tree] += 1
        if prepare is not None:
            prepare([(*owner[request.tree], request.state) for request in batch])
        _answer(forest, batch, owner, tokens)
    ids = iter(owner)
    return [_read(forest, oracle, [next(ids) for _ in range(trees)], rounds, tokens) for oracle in oracles]


def _answer(
    forest: Forest, batch: Sequence[Any], owner: dict[int, tuple[Oracle, int]], tokens: dict[int, int]
) -> None:
    ids, texts, values, children = [], [], [], []
    by_value = forest.params.mode == "value"
    for request in batch:
        oracle, tree = owner[request.tree]
        drawn = oracle.completions(tree, request.state, request.k)
        judge = oracle.score if by_value else oracle.reward
        ids.append(request.id)
        texts.append(drawn)
        values.append([judge(request.state + text.rstrip() + "\n") for text in drawn])
        tokens[request.tree] += oracle.tokens(tree, request.state, request.k)
    forest.fulfil(ids, completions=texts)
    if by_value:
        for request in batch:
            score = owner[request.tree][0].score
            children.append([score(state) for state in forest.expansion(request.id)["children"]])
    forest.fulfil(ids, completion_values=values, child_values=children if by_value else None)


def _read(
    forest: Forest, oracle: Oracle, ids: Sequence[int], rounds: dict[int, int], tokens: dict[int, int]
) -> Outcome:
    best, answer = -math.inf, ""
    programs: list[str] = []
    nodes: list[tuple[str, float]] = []
    depths: list[int] = []
    for tree in ids:
        view = forest.view(tree)
        states: list[str] = []
        for parent, depth, _, _, _, V, _, expanded, _, line in view["nodes"]:
            states.append(line if parent < 0 else states[parent] + line)
            if expanded:
                nodes.append((states[-1], V))
                depths.append(depth)
        for row in view["completions"]:
            programs.append(states[row[0]] + row[3])
            if row[2] > best:
                best, answer = row[2], programs[-1]
    stats = [forest.stats(tree) for tree in ids]
    visits = [row[3] for row in forest.view(ids[0])["nodes"] if row[0] == 0 and row[3]]
    total = sum(visits)
    figures = {
        "rounds": max(rounds[tree] for tree in ids),
        "samples": sum(s["samples"] for s in stats),
        "tokens": sum(tokens[tree] for tree in ids),
        "terminal_visits": sum(s["terminal_visits"] for s in stats),
        "expanded": sum(s["expansions"] for s in stats),
        "collisions": sum(s["collisions"] for s in stats),
        "mean_depth": sum(depths) / len(depths),
        "max_depth": max(depths),
        "entropy": -sum(n / total * math.log(n / total) for n in visits),
    }
    return Outcome(answer, {**figures, **oracle.judge(answer, programs, nodes)})
