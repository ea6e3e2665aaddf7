"""The jobs of the demo. Every job is a function of the demo folder and the settings, over the stages.

problems ─► sample ─► train-grpo, train-filter-grpo, train-rest-grpo      (base policy, three arms)
per policy: collect ─► value-additive, value-scalar ─► search; pool       (search: the tree methods)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from restrl.config import (
    AssembleConfig,
    CollectConfig,
    DecodeConfig,
    Method,
    SamplingConfig,
    TrainConfig,
    ValueConfig,
)
from restrl.pipeline import load_policy, model_path
from restrl.policy.local import LocalPolicy
from restrl.problems import load_problems, pipelines
from restrl.records import Problem
from restrl.rows import read_rows
from restrl.sandbox import Verifier
from restrl.seeds import derive
from restrl.stages.assemble import assemble
from restrl.stages.collect import collect
from restrl.stages.decode import decode_problems
from restrl.stages.evaluate import evaluate
from restrl.stages.sample import sample
from restrl.stages.train_policy import train_policy
from restrl.value import load_value
from restrl.value.train import train_value

ARMS = {"grpo": "naive", "filter-grpo": "filter", "rest-grpo": "rest"}  # policy -> assemble.mode
SEARCHED = ("base", "rest-grpo")  # policies that get value models and every decoding
HEADS = ("additive", "scalar")


@dataclass(frozen=True)
class Settings:
    """What a demo computes. All arms get the same optimiser steps, all decodings the same budget."""

    seed: int
    short: bool
    train_problems: int = 320
    test_problems: int = 160
    difficulty: tuple[int, int] = (2, 6)
    samples: int = 8  # per training problem, for the filter and the partial states
    steps: int = 60
    prompts_per_step: int = 16
    learning_rate: float = 3e-4
    collect_problems: int = 240
    collect_simulations: int = 4
    budget: int = 16
    max_new_tokens: int = 160

    @staticmethod
    def of(seed: int, short: bool) -> Settings:
        """The demo's own sizes, and the smaller ones of --short."""
        if not short:
            return Settings(seed, short)
        return Settings(
            seed, short, train_problems=64, test_problems=40, steps=6, collect_problems=48, budget=8
        )


@dataclass(frozen=True)
class Job:
    """weight: rough seconds, for the time left."""

    name: str
    needs: tuple[str, ...]
    weight: float
    run: Callable[[Path, Settings], None]


def jobs(settings: Settings) -> list[Job]:
    """All jobs, the most urgent first."""
    out = [Job("sample", (), 25, _sample)]
    for arm in reversed(ARMS):
        out.append(Job(f"train {arm}", ("sample",), 100, functools.partial(_train, arm=arm)))
    for policy in SEARCHED:
        trained = (f"train {policy}",) if policy in ARMS else ()
        heads = tuple(f"value {policy} {head}" for head in HEADS)
        out.append(Job(f"collect {policy}", trained, 40, functools.partial(_collect, policy=policy)))
        out += [
            Job(
                name,
                (f"collect {policy}",),
                20 if head == "additive" else 60,
                functools.partial(_value, policy=policy, head=head),
            )
            for name, head in zip(heads, HEADS, strict=True)
        ]
        for part, weight in (("search", 80), ("pool", 40)):
            run = functools.partial(_decode, policy=policy, part=part)
            out.append(Job(f"decode {policy} {part}", heads, weight, run))
    for arm in ARMS:
        if arm not in SEARCHED:
            run = functools.partial(_decode, policy=arm, part="plain")
            out.append(Job(f"decode {arm} plain", (f"train {arm}",), 30, run))
    order = {name: i for i, name in enumerate(_urgent(out))}
    return sorted(out, key=lambda job: order[job.name])


def decode_parts() -> list[tuple[str, str]]:
    """(policy, part) of every decode job."""
    searched = [(policy, part) for policy in SEARCHED for part in ("pool", "search")]
    return searched + [(arm, "plain") for arm in ARMS if arm not in SEARCHED]


def _urgent(all_jobs: list[Job]) -> list[str]:
    """Names by the length of the chain of work that waits for a job, longest first."""
    by_name = {job.name: job for job in all_jobs}

    @functools.cache
    def chain(name: str) -> float:
        after = [chain(job.name) for job in all_jobs if name in job.needs]
        return by_name[name].weight + max(after, default=0.0)

    return sorted(by_name, key=chain, reverse=True)


def write_problems(folder: Path, settings: Settings) -> None:
    """Both problem sets; a composition of one split never occurs in another."""
    counts: dict[pipelines.Split, int] = {
        "train": settings.train_problems,
        "test": settings.test_problems,
    }
    for split, count in counts.items():
        path = folder / f"{split}.jsonl"
        if not path.exists():
            temporary = path.with_suffix(".tmp")
            pipelines.write(temporary, split, count, seed=settings.seed, difficulty=settings.difficulty)
            temporary.rename(path)


def _problems(folder: Path, split: str) -> list[Problem]:
    return load_problems(folder / f"{split}.jsonl", "restrl")


def _policy(folder: Path, name: str) -> LocalPolicy:
    path = model_path("pipelines-base") if name == "base" else str(folder / name / "policy" / "final")
    return load_policy(path, "cpu", "float32", max_rows=512)


def _sample(folder: Path, settings: Settings) -> None:
    cfg = SamplingConfig(n=settings.samples, temperature=1.0, max_new_tokens=settings.max_new_tokens)
    policy = _policy(folder, "base")
    with Verifier(workers=1) as verifier:
        seed = derive(settings.seed, "sample")
        out = folder / "samples.jsonl"
        sample(policy, policy.format, _problems(folder, "train"), verifier, cfg, out, seed=seed)


def _train(folder: Path, settings: Settings, *, arm: str) -> None:
    problems = {p.task_id: p for p in _problems(folder, "train")}
    samples = read_rows(folder / "samples.jsonl")
    seed = derive(settings.seed, "train")
    mode = AssembleConfig.model_validate({"mode": ARMS[arm]})
    states = assemble(samples, problems, mode, folder / arm / "states.jsonl", seed=seed)
    cfg = TrainConfig(
        max_steps=settings.steps,
        prompts_per_step=settings.prompts_per_step,
        micro_batch_size=32,
        learning_rate=settings.learning_rate,
        temperature=1.0,
        max_completion_length=settings.max_new_tokens,
        beta=0.0,
        data_seed=settings.seed,
    )
    with Verifier(workers=1) as verifier:
        train_policy(
            _policy(folder, "base"), states, samples, problems, verifier, cfg, folder / arm / "policy",
            seed=seed, r0=mode.r0, name=arm,
        )  # fmt: skip


def _collect(folder: Path, settings: Settings, *, policy: str) -> None:
    cfg = CollectConfig(
        simulations=settings.collect_simulations,
        k=4,
        temperature=1.0,
        max_new_tokens=settings.max_new_tokens,
        trees_in_flight=120,
    )
    model = _policy(folder, policy)
    problems = _problems(folder, "train")[: settings.collect_problems]
    out = folder / policy / "targets.jsonl"
    with Verifier(workers=1) as verifier:
        collect(
            model, model.format, problems, verifier, cfg, out, seed=derive(settings.seed, "collect", policy)
        )


def _value(folder: Path, settings: Settings, *, policy: str, head: str) -> None:
    problems = {p.task_id: p for p in _problems(folder, "train")}
    rows = [t for tree in read_rows(folder / policy / "targets.jsonl") for t in tree["targets"]]
    own: dict[str, dict[str, float]] = {
        "additive": {"epochs": 8, "batch_size": 16},
        "scalar": {"epochs": 2, "batch_size": 32, "learning_rate": 1e-3},
    }
    cfg = ValueConfig.model_validate({"head": head, "max_length": 512, **own[head]})
    train_value(
        cfg, rows, problems, _policy(folder, policy), folder / policy / f"value-{head}",
        seed=derive(settings.seed, "value", policy),
    )  # fmt: skip


def _decode(folder: Path, settings: Settings, *, policy: str, part: str) -> None:
    methods: dict[str, list[Method]] = {
        "plain": ["sample", "greedy"],
        "pool": ["sample", "greedy", "vote", "likelihood", "orm", "prm", "oracle"],
        "search": ["orm-mcts", "vm-mcts"],
    }
    k = 4
    cfg = DecodeConfig(
        methods=methods[part],
        budget=settings.budget,
        k=k,
        simulations=max(20, 2 * settings.budget // k),
        max_new_tokens=settings.max_new_tokens,
        trees_in_flight=128,
    )
    model = _policy(folder, policy)
    heads = HEADS if part != "plain" else ()
    values = {
        head: load_value(folder / policy / f"value-{head}" / "final", policy=model, max_length=512)
        for head in heads
    }
    problems = _problems(folder, "test")
    out = folder / policy / part
    with Verifier(workers=1) as verifier:
        rows = decode_problems(
            model, model.format, problems, cfg, out / "answers.jsonl",
            seed=derive(settings.seed, "decode"), values=values, verifier=verifier,
        )  # fmt: skip
        by_id = {p.task_id: p for p in problems}
        evaluate(rows, by_id, verifier, out, seed=settings.seed)
