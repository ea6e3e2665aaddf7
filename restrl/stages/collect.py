"""Stage 2: value targets from search trees whose rewards are verified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from restrl.config import CollectConfig
from restrl.errors import RestrlError
from restrl.policy import Completion, Policy, Sampling
from restrl.policy.grouped import complete_grouped
from restrl.progress import Progress
from restrl.prompts import PromptFormat
from restrl.records import SCHEMA_VERSION, Problem
from restrl.rows import Appender, Row, write_json
from restrl.sandbox import Verdict, Verifier
from restrl.search import Evaluation, Expansion, Request, Root, SearchParams, search, value_targets


def collect(
    policy: Policy,
    form: PromptFormat,
    problems: Sequence[Problem],
    verifier: Verifier,
    cfg: CollectConfig,
    out: Path,
    *,
    seed: int,
) -> list[Row]:
    """Search every problem in collect mode and write one row per tree to `out`.

    Row: {"schema", "task_id", "targets": [{"program", "ends", "values", "visits"}], "best": program,
    "best_reward", and the counts of restrl.search.TreeStats}. `ends` are character
    offsets into `program`: after each line past the problem's prefix, and its end. The first tree is also
    written whole to `out` with the suffix .tree.json.
    """
    params = SearchParams(
        mode="collect",
        simulations=cfg.simulations,
        k=cfg.k,
        num_decisions=cfg.num_decisions,
        c=cfg.c,
        eps=cfg.eps,
    )
    chunk_size = cfg.trees_in_flight
    with Appender(out, chunk_size) as file:
        with Progress("collect", len(problems), len(file.rows)) as bar:
            for start in range(len(file.rows), len(problems), chunk_size):
                chunk = {p.task_id: p for p in problems[start : start + chunk_size]}

                def evaluate(
                    expansions: list[Expansion], by_id: dict[str, Problem] = chunk
                ) -> list[Evaluation]:
                    return verified(expansions, by_id, verifier)

                results = search(
                    [Root(p.task_id, p.prefix) for p in chunk.values()],
                    params,
                    complete=completer(policy, form, chunk, cfg.temperature, cfg.max_new_tokens, seed),
                    evaluate=evaluate,
                    seed=seed,
                    leaves_in_flight=cfg.leaves_in_flight,
                    trees_in_flight=cfg.trees_in_flight,
                )
                rows = [
                    {
                        "schema": SCHEMA_VERSION,
                        "task_id": result.key,
                        "targets": value_targets(result, cfg.targets),
                        "best": result.best.program,
                        "best_reward": result.best.value,
                        **asdict(result.stats),
                    }
                    for result in results
                ]
                if start == 0 and results:
                    write_json(out.with_suffix(".tree.json"), results[0].to_json())
                file.append(rows)
                bar.update(len(chunk))
        return file.finish()


def verified(
    expansions: list[Expansion], problems: dict[str, Problem], verifier: Verifier
) -> list[Evaluation]:
    """The verified reward of every completion; RestrlError when a program cannot be verified at all."""
    verdicts = iter(
        verifier.verify([(problems[e.key], program) for e in expansions for program in e.programs])
    )
    return [Evaluation([known_reward(next(verdicts), e.key) for _ in e.programs]) for e in expansions]


def known_reward(verdict: Verdict, task_id: str) -> float:
    """The reward of a verdict; an infrastructure error must not look like a wrong program."""
    if verdict.reward is None:
        raise RestrlError(
            f"{task_id}: a program could not be verified ({verdict.detail}); "
            "the same command goes on where this one stopped"
        )
    return verdict.reward


def completer(
    policy: Policy,
    form: PromptFormat,
    problems: dict[str, Problem],
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> Callable[[list[Request]], list[list[Completion]]]:
    """The function that a search draws its completions from: one batch of requests over all trees."""

    sampling = Sampling(temperature, max_new_tokens=max_new_tokens, seed=seed)

    def complete(requests: list[Request]) -> list[list[Completion]]:
        owners = [problems[r.key] for r in requests]
        prompts = [form.prompt(p, r.state, r.seed_key) for p, r in zip(owners, requests, strict=True)]
        return complete_grouped(policy.complete, form, owners, prompts, [r.k for r in requests], sampling)

    return complete
