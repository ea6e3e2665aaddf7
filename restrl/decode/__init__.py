"""All decoders behind one interface, at equal budgets, with what each one costs.

    draws = draw(problems, policy, cfg, cfg.budget, form=policy.format, seed=0, value=additive)
    for method in cfg.methods:
        answers = decode(method, problems, policy, cfg, form=policy.format, value=additive, seed=0,
        draws=draws) curve = answers_at(answers, [1, 2, 5, 10, 25])

No method draws more than cfg.budget completions of a problem; sample and greedy draw one.
"""

from __future__ import annotations

from collections.abc import Sequence

from restrl.config import METHODS, DecodeConfig, Method
from restrl.decode.answers import Answer, Candidate, answers_at, normalised, pick
from restrl.decode.draws import Draws, Sample, draw, score_draws, select
from restrl.decode.trees import decode_trees
from restrl.errors import RestrlError
from restrl.policy import Policy
from restrl.prompts import PromptFormat
from restrl.records import Problem
from restrl.sandbox import Verifier
from restrl.value import ValueModel

__all__ = [
    "Answer",
    "Candidate",
    "Draws",
    "Sample",
    "answers_at",
    "decode",
    "decode_trees",
    "draw",
    "normalised",
    "pick",
    "score_draws",
    "select",
]


def decode(
    method: Method,
    problems: Sequence[Problem],
    policy: Policy,
    cfg: DecodeConfig,
    *,
    form: PromptFormat,
    seed: int,
    value: ValueModel | None = None,
    verifier: Verifier | None = None,
    draws: Sequence[Draws] | None = None,
) -> list[Answer]:
    """One answer per problem, in order.

    value     the value model of orm, prm, orm-mcts and vm-mcts
    verifier  only oracle asks it
    draws     at least cfg.budget samples per problem from `draw`, shared by all methods that pick one of n;
              drawn here if None. The searches and greedy draw their own.
    Raises RestrlError for an unknown method and for one whose value model, verifier or log-probabilities are
    missing.
    """
    if method not in METHODS:
        raise RestrlError(f"unknown decoding method {method!r}; there are {', '.join(METHODS)}")
    if method == "orm-mcts" or method == "vm-mcts":
        if value is None:
            raise RestrlError(
                f"decoding method {method!r} needs a value model; train one or leave the method out"
            )
        found = decode_trees(method, problems, policy, cfg, form=form, value=value, seed=seed)
        return [a for a, _ in found]
    if method == "greedy":
        draws = draw(problems, policy, cfg, 1, form=form, seed=seed, temperature=0.0)
    elif draws is None:
        n = 1 if method == "sample" else cfg.budget
        draws = draw(problems, policy, cfg, n, form=form, seed=seed, value=value)
    _check(draws, problems, 1 if method in ("sample", "greedy") else cfg.budget)
    return select(method, draws, cfg, budget=cfg.budget, value=value, verifier=verifier)


def _check(draws: Sequence[Draws], problems: Sequence[Problem], n: int) -> None:
    if [d.problem.task_id for d in draws] != [p.task_id for p in problems]:
        raise ValueError("draws do not belong to these problems, in this order")
    few = [d.problem.task_id for d in draws if len(d.samples) < n]
    if few:
        raise ValueError(f"{few[0]}: fewer than {n} samples were drawn")
