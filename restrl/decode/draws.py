"""Independent samples of every problem: drawn once, shared by all methods that pick one of n."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from restrl.config import DecodeConfig, Method
from restrl.decode.answers import Answer, Candidate, answer
from restrl.errors import RestrlError
from restrl.policy import Completion, Policy, Prompt, Sampling
from restrl.policy.grouped import Complete, complete_grouped
from restrl.prompts import PromptFormat
from restrl.records import Problem
from restrl.sandbox import Verifier
from restrl.value import FreeValueModel, LineValues, ValueModel, finished

CHUNK = 64  # problems decoded together: bounds the memory that token ids and log-probabilities take


@dataclass(frozen=True)
class Sample:
    """One completion, without what only decoding needs.

    log_prob  sum over its tokens, the one that ended it included (nats, temperature 1); None if unknown
    values    at its line ends, if a value model has scored it
    """

    program: str
    completion: str
    tokens: int
    log_prob: float | None
    values: LineValues | None = None


@dataclass(frozen=True)
class Draws:
    """The samples of one problem in order; seconds: its equal share of the batches' wall time."""

    problem: Problem
    samples: tuple[Sample, ...]
    seconds: float
    scored_by: ValueModel | None = None


def is_free(value: ValueModel | None, policy: Policy) -> bool:
    """Whether `value` reads its scores from this policy's own pass while it decodes."""
    return isinstance(value, FreeValueModel) and value.policy is policy


def scored_complete(policy: Policy, value: ValueModel | None) -> Complete:
    """`policy.complete`, with the value head's token scores if it is free on this policy."""
    if isinstance(value, FreeValueModel) and value.policy is policy:
        return value.complete
    return policy.complete


def draw(
    problems: Sequence[Problem],
    policy: Policy,
    cfg: DecodeConfig,
    n: int,
    *,
    form: PromptFormat,
    seed: int,
    value: ValueModel | None = None,
    temperature: float | None = None,
) -> list[Draws]:
    """`n` samples of every problem at cfg.temperature (or `temperature`), scored on the way if free."""
    out: list[Draws] = []
    temperature = cfg.temperature if temperature is None else temperature
    for start in range(0, len(problems), CHUNK):
        chunk = problems[start : start + CHUNK]
        clock = time.perf_counter()
        prompts = [form.prompt(p, p.prefix, p.task_id) for p in chunk]
        sampling = Sampling(temperature, max_new_tokens=cfg.max_new_tokens, seed=seed)
        complete = scored_complete(policy, value)
        groups = complete_grouped(complete, form, chunk, prompts, [n] * len(chunk), sampling)
        samples = [
            tuple(_sample(problem, prompt, c, policy, value) for c in group)
            for problem, prompt, group in zip(chunk, prompts, groups, strict=True)
        ]
        seconds = (time.perf_counter() - clock) / len(chunk)
        scored_by = value if is_free(value, policy) else None
        out += [Draws(p, s, seconds, scored_by) for p, s in zip(chunk, samples, strict=True)]
    return out


def _sample(
    problem: Problem, prompt: Prompt, completion: Completion, policy: Policy, value: ValueModel | None
) -> Sample:
    program = finished(prompt.state, completion.text)
    log_probs = completion.log_probs
    values = None
    if isinstance(value, FreeValueModel) and value.policy is policy:
        values = value.line_values_from_completion(problem, prompt, completion)
    return Sample(
        program,
        program[len(problem.prefix) :],
        len(completion.token_ids),
        None if log_probs is None else float(np.sum(log_probs, dtype=np.float64)),
        values,
    )


def score_draws(draws: Sequence[Draws], value: ValueModel) -> list[Draws]:
    """The draws with `value`'s line values; those that it has scored already are taken as they are."""
    out: list[Draws] = []
    for d in draws:
        if d.scored_by is value:
            out.append(d)
            continue
        clock = time.perf_counter()
        values = value.score([(d.problem, s.program) for s in d.samples])
        samples = tuple(replace(s, values=v) for s, v in zip(d.samples, values, strict=True))
        out.append(Draws(d.problem, samples, d.seconds + time.perf_counter() - clock, value))
    return out


def select(
    method: Method,
    draws: Sequence[Draws],
    cfg: DecodeConfig,
    *,
    budget: int,
    value: ValueModel | None = None,
    verifier: Verifier | None = None,
) -> list[Answer]:
    """Pick from the first `budget` samples of every problem.

    sample: the first one. greedy: the first one (of draws at temperature 0). vote: see `pick`. likelihood:
    highest summed log-probability. orm: highest value of the whole program. prm: highest cfg.prm_aggregate
    of the values at its line ends. oracle: highest verified reward.
    Raises RestrlError if the method lacks what it ranks by.
    """
    if method in ("sample", "greedy"):
        budget = 1
    used = [_first(d, budget) for d in draws]
    if method in ("orm", "prm"):
        if value is None:
            raise RestrlError(
                f"decoding method {method!r} needs a value model; train one or leave the method out"
            )
        used = score_draws(used, value)
    if method == "oracle":
        return _oracle(used, budget, verifier)
    return [
        answer(d.problem.task_id, method, _candidates(method, d, cfg), budget=budget, seconds=d.seconds)
        for d in used
    ]


def _first(draws: Draws, n: int) -> Draws:
    """The first `n` samples; of the time, their share of the tokens."""
    samples = draws.samples[:n]
    share = sum(s.tokens for s in samples) / max(1, sum(s.tokens for s in draws.samples))
    return replace(draws, samples=samples, seconds=draws.seconds * share)


def _candidates(method: Method, draws: Draws, cfg: DecodeConfig) -> list[Candidate]:
    return [
        Candidate(
            s.program,
            s.completion,
            score=_score(method, s, cfg, draws.problem.task_id),
            rank=i,
            tokens=s.tokens,
            value_tokens=s.values.tokens if s.values is not None and method in ("orm", "prm") else 0,
        )
        for i, s in enumerate(draws.samples)
    ]


def _score(method: Method, sample: Sample, cfg: DecodeConfig, task_id: str) -> float:
    if method == "likelihood":
        if sample.log_prob is None:
            raise RestrlError(
                f"{task_id}: this policy gives no log-probabilities, which the method 'likelihood' ranks by"
            )
        return sample.log_prob
    if method in ("orm", "prm"):
        assert sample.values is not None
        return sample.values.aggregate("last" if method == "orm" else cfg.prm_aggregate)
    return 0.0


def _oracle(draws: Sequence[Draws], budget: int, verifier: Verifier | None) -> list[Answer]:
    if verifier is None:
        raise RestrlError(
            "decoding method 'oracle' needs a verifier: it is the upper bound that knows the tests"
        )
    answers: list[Answer] = []
    for start in range(0, len(draws), CHUNK):
        chunk = draws[start : start + CHUNK]
        clock = time.perf_counter()
        verdicts = iter(verifier.verify([(d.problem, s.program) for d in chunk for s in d.samples]))
        shared = (time.perf_counter() - clock) / len(chunk)
        for d in chunk:
            candidates: list[Candidate] = []
            spent = 0.0
            for i, s in enumerate(d.samples):
                verdict = next(verdicts)
                if verdict.reward is None:
                    raise RestrlError(
                        f"{d.problem.task_id}: a program could not be verified ({verdict.detail}); "
                        "`restrl doctor` says what the sandbox lacks"
                    )
                spent += verdict.seconds
                candidates.append(Candidate(s.program, s.completion, verdict.reward, i, s.tokens))
            answers.append(
                answer(
                    d.problem.task_id,
                    "oracle",
                    candidates,
                    budget=budget,
                    seconds=d.seconds + shared,
                    verifier_seconds=spent,
                )
            )
    return answers
