"""ORM-MCTS and VM-MCTS: search with scores instead of tests, many problems' trees at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from restrl.config import DecodeConfig
from restrl.decode.answers import Answer, Candidate, answer
from restrl.policy import Policy, Sampling
from restrl.prompts import PromptFormat
from restrl.records import Problem
from restrl.search import Drawer, Evaluation, Expansion, Root, SearchParams, Timing, TreeResult, search
from restrl.value import FreeValueModel, LineValues, ValueModel, remembering
from restrl.value.states import StateScores

TreeMethod = Literal["orm-mcts", "vm-mcts"]


@dataclass
class _Progress:
    """One tree under way: its scores, and by simulation what was drawn."""

    scores: StateScores
    drawn: dict[int, list[Candidate]] = field(default_factory=dict)

    def candidates(self) -> list[Candidate]:
        """In order of generation; what was read for a program counts where it was drawn first."""
        seen: set[str] = set()
        out: list[Candidate] = []
        for candidate in (c for simulation in sorted(self.drawn) for c in self.drawn[simulation]):
            known = candidate.program in seen
            out.append(replace(candidate, value_tokens=0) if known else candidate)
            seen.add(candidate.program)
        return out


@dataclass
class _Guide:
    """A value model as the search's scorer: equal programs of a tree once; keeps what was drawn."""

    problems: dict[str, Problem]
    value: ValueModel
    form: PromptFormat
    method: TreeMethod
    free: FreeValueModel | None
    trees: dict[str, _Progress] = field(default_factory=dict)

    def evaluate(self, expansions: list[Expansion]) -> list[Evaluation]:
        """Values of completions and children, from one look at each completion."""
        for expansion in expansions:
            if expansion.key not in self.trees:
                prefix = self.problems[expansion.key].prefix
                self.trees[expansion.key] = _Progress(StateScores(len(prefix)))
        if self.free is None:
            self._score(expansions)
        else:
            for expansion in expansions:
                self._read(self.free, expansion)
        return [self._evaluation(expansion) for expansion in expansions]

    def _score(self, expansions: Sequence[Expansion]) -> None:
        """One call of the value model for all programs that are new in their trees."""
        wanted: dict[tuple[str, str], None] = {}
        for e in expansions:
            wanted.update(dict.fromkeys((e.key, p) for p in self.trees[e.key].scores.missing(e.programs)))
        if wanted:
            found = self.value.score([(self.problems[key], program) for key, program in wanted])
            for (key, program), values in zip(wanted, found, strict=True):
                self.trees[key].scores.record(program, values)

    def _read(self, free: FreeValueModel, expansion: Expansion) -> None:
        """What the policy's own pass has given already."""
        problem, scores = self.problems[expansion.key], self.trees[expansion.key].scores
        prompt = self.form.prompt(problem, expansion.state, "")
        for program, completion in zip(expansion.programs, expansion.completions, strict=True):
            if scores.of(program) is None:
                scores.record(program, free.line_values_from_completion(problem, prompt, completion))

    def _evaluation(self, expansion: Expansion) -> Evaluation:
        start, tree = len(self.problems[expansion.key].prefix), self.trees[expansion.key]
        values = [known(tree.scores, program) for program in expansion.programs]
        tree.drawn[expansion.simulation] = [
            Candidate(program, program[start:], v.last, tokens=len(sample.token_ids), value_tokens=v.tokens)
            for program, sample, v in zip(expansion.programs, expansion.completions, values, strict=True)
        ]
        children: list[float] = []
        if self.method == "vm-mcts":
            reused = [known(tree.scores, program) for program in expansion.reused]
            children = child_values(expansion, reused + values)
        return Evaluation([v.last for v in values], children)


def known(scores: StateScores, program: str) -> LineValues:
    """The values of a program that has been scored in this tree.

    A completion that ended where the state ends is reused as an empty line: it is the program without it,
    and so is the child that it leads to.
    """
    values = scores.of(program)
    if values is not None:
        return values
    whole = scores.of(program[:-1])
    assert whole is not None, "a completion is scored before it is reused"
    return LineValues((*whole.ends, len(program)), (*whole.values, whole.last), whole.tokens)


def child_values(expansion: Expansion, values: Sequence[LineValues]) -> list[float]:
    """The value of every child, read at its end in the first completion that leads to it.

    values  `[R + k]` of the reused programs and of the new ones
    """
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
        leaves_in_flight=cfg.leaves_in_flight,
        reuse=cfg.reuse,
        virtual_loss=cfg.virtual_loss,
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
    timing: Timing | None = None,
) -> list[tuple[Answer, TreeResult]]:
    """One tree for every problem, cfg.trees_in_flight of them at a time; its answer and the tree itself.

    The answer is the completion with the highest value in the tree, on ties the first in pre-order. Its
    candidates stand in order of generation. The value model scores in a thread of its own, except one that
    reads its scores from the policy's pass: that costs no time. `timing` is added to.
    """
    by_id = {p.task_id: p for p in problems}
    free = value if isinstance(value, FreeValueModel) and value.policy is policy else None
    guide = _Guide(by_id, value, form, method, free)
    sampling = Sampling(cfg.temperature, max_new_tokens=cfg.max_new_tokens, seed=seed)
    drawer = Drawer(policy, form, by_id, sampling, value)
    candidates: dict[str, list[Candidate]] = {}

    def done(tree: TreeResult) -> None:
        candidates[tree.key] = in_tree_order(guide.trees.pop(tree.key).candidates(), tree)

    clock = time.perf_counter()
    with remembering(value):
        trees = search(
            [Root(p.task_id, p.prefix) for p in problems],
            search_params(method, cfg, cfg.budget),
            complete=drawer.complete,
            source=drawer.source(),
            evaluate=guide.evaluate,
            seed=seed,
            trees_in_flight=cfg.trees_in_flight,
            overlap=free is None,
            timing=timing,
            on_done=done,
        )
    seconds = (time.perf_counter() - clock) / max(1, len(problems))
    return [
        (answer(tree.key, method, candidates[tree.key], budget=cfg.budget, seconds=seconds), tree)
        for tree in trees
    ]


def in_tree_order(drawn: Sequence[Candidate], tree: TreeResult) -> list[Candidate]:
    """The candidates with their first place in the tree's pre-order as rank."""
    places: dict[str, int] = {}
    for place, completion in enumerate(tree.completions):
        places.setdefault(completion.program, place)
    return [replace(c, rank=places[c.program]) for c in drawn]
