"""Stage 2: value targets from search trees whose rewards are verified."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from restrl.config import CollectConfig
from restrl.errors import RestrlError
from restrl.policy import Policy, Sampling
from restrl.progress import Progress
from restrl.prompts import PromptFormat
from restrl.records import SCHEMA_VERSION, Problem
from restrl.rows import Appender, Row, write_json
from restrl.sandbox import Verdict, Verifier
from restrl.search import Drawer, Evaluation, Expansion, Root, SearchParams, search, value_targets

LEAST_WAVE = 256


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
        leaves_in_flight=cfg.leaves_in_flight,
        reuse=cfg.reuse,
        virtual_loss=cfg.virtual_loss,
    )
    size = wave(cfg.trees_in_flight)
    sampling = Sampling(cfg.temperature, max_new_tokens=cfg.max_new_tokens, seed=seed)
    with Appender(out, size) as file:
        with Progress("collect", len(problems), len(file.rows)) as bar:
            for start in range(len(file.rows), len(problems), size):
                chunk = {p.task_id: p for p in problems[start : start + size]}
                drawer = Drawer(policy, form, chunk, sampling)
                trees = search(
                    [Root(p.task_id, p.prefix) for p in chunk.values()],
                    params,
                    complete=drawer.complete,
                    source=drawer.source(),
                    evaluate=functools.partial(verified, problems=chunk, verifier=verifier),
                    seed=seed,
                    trees_in_flight=cfg.trees_in_flight,
                    on_done=lambda tree: bar.update(1),
                )
                rows = [
                    {
                        "schema": SCHEMA_VERSION,
                        "task_id": tree.key,
                        "targets": value_targets(tree, cfg.targets),
                        "best": tree.best.program,
                        "best_reward": tree.best.value,
                        **asdict(tree.stats),
                    }
                    for tree in trees
                ]
                if start == 0 and trees:
                    write_json(out.with_suffix(".tree.json"), trees[0].to_json())
                file.append(rows)
        return file.finish()


def wave(trees_in_flight: int) -> int:
    """Problems searched in one go, and the grain of resuming.

    Which requests share a batch follows from where a search began, and results must not depend on where a
    run was killed: so it goes on at the border of a wave. A wave is several times trees_in_flight, so that
    its last trees, which leave places empty, are few.
    """
    return max(LEAST_WAVE, 4 * trees_in_flight)


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
