"""Answers, the candidates they were picked from, and the rule of every method that picks one of several."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from restrl.config import Method


@dataclass(frozen=True)
class Candidate:
    """One completion that a method could answer with.

    score         what the method ranks by; 0 where it does not rank
    rank          decides between equal scores: the smallest wins (draw order; pre-order in a search tree)
    tokens        tokens generated for it
    value_tokens  tokens that a value model read for it alone
    """

    program: str
    completion: str
    score: float = 0.0
    rank: int = 0
    tokens: int = 0
    value_tokens: int = 0


@dataclass(frozen=True)
class Answer:
    """What one method answers to one problem, and what that cost.

    completion        the program without the problem's prefix
    budget            completions the method was allowed to draw
    generated         completions it drew, in `candidates` in order of generation
    value_tokens      tokens read by a value model's own passes (0 for the additive head while it decodes)
    verifier_seconds  time in the judge for picking the answer (oracle only)
    seconds           wall time: this problem's equal share of its batch
    Samples shared with other methods are counted as if drawn for this one alone.
    """

    task_id: str
    program: str
    completion: str
    method: Method
    budget: int
    generated: int
    generated_tokens: int
    value_tokens: int
    verifier_seconds: float
    seconds: float
    candidates: tuple[Candidate, ...] = ()

    def to_row(self) -> dict[str, Any]:
        """Everything but the candidates, as JSON."""
        row = dict(vars(self))
        del row["candidates"]
        return row


def answer(
    task_id: str,
    method: Method,
    candidates: Sequence[Candidate],
    *,
    budget: int,
    seconds: float,
    verifier_seconds: float = 0.0,
) -> Answer:
    """The answer that `method` picks from `candidates`, at their cost."""
    chosen = pick(method, candidates)
    return Answer(
        task_id=task_id,
        program=chosen.program,
        completion=chosen.completion,
        method=method,
        budget=budget,
        generated=len(candidates),
        generated_tokens=sum(c.tokens for c in candidates),
        value_tokens=sum(c.value_tokens for c in candidates),
        verifier_seconds=verifier_seconds,
        seconds=seconds,
        candidates=tuple(candidates),
    )


def answers_at(answers: Sequence[Answer], budgets: Sequence[int]) -> dict[int, list[Answer]]:
    """For every budget, what each method would have answered after that many completions: no new generation.

    Scores do not depend on later completions, so this is the run with the smaller budget, a tree search's
    included, as long as its expansions fit: a budget that ends inside an expansion uses the completions
    drawn up to there.
    Token counts are those of the completions used; seconds are in proportion to generated tokens.
    Raises ValueError for a budget below 1.
    """
    if any(b < 1 for b in budgets):
        raise ValueError(f"budgets must be at least 1: {list(budgets)}")
    return {budget: [_cut(a, budget) for a in answers] for budget in budgets}


def _cut(full: Answer, budget: int) -> Answer:
    if budget >= full.generated:
        return replace(full, budget=budget)
    used = full.candidates[:budget]
    share = sum(c.tokens for c in used) / max(1, full.generated_tokens)
    return answer(
        full.task_id,
        full.method,
        used,
        budget=budget,
        seconds=full.seconds * share,
        verifier_seconds=full.verifier_seconds * len(used) / full.generated,
    )


def pick(method: Method, candidates: Sequence[Candidate]) -> Candidate:
    """The candidate that `method` answers with; between equals the smallest rank.

    vote: the largest class of equal programs (see `normalised`), represented by its first member; of equally
    large classes the one with the smallest rank. All others: the highest score.
    Raises ValueError without candidates.
    """
    if not candidates:
        raise ValueError(f"{method}: no candidates to pick from")
    ordered = sorted(candidates, key=lambda c: c.rank)
    if method != "vote":
        return max(ordered, key=lambda c: c.score)
    classes: dict[str, list[Candidate]] = {}
    for candidate in ordered:
        classes.setdefault(normalised(candidate.program), []).append(candidate)
    return max(classes.values(), key=len)[0]


def normalised(program: str) -> str:
    """The program without comments and in one layout, so that equal syntax trees are equal texts.

    What Python cannot parse is compared as it is, white space at line ends and empty lines left out.
    """
    try:
        return ast.unparse(ast.parse(program))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "\n".join(line.rstrip() for line in program.splitlines() if line.strip())
