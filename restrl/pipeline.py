"""The loop: a run folder, and the stages chained over it.

    problems ─► sample ─► assemble ─► train-policy ─┐   x iterations      (stage 1: ReST-GRPO)
                   ▲                                 │
                   └──────────── policy ◄────────────┘
    problems ─► collect ─► train-value ─► decode ─► evaluate              (stage 2: VM-MCTS)

Layout of a run folder:

    config.json run.json        resolved config; seed, versions, commit, overlap of the problem sets
    iter-<i>/samples.jsonl      completions and rewards         iter-<i>/states.jsonl   what was trained on
    iter-<i>/policy/            metrics.jsonl, checkpoint-*/, final/ (Hugging Face format)
    value/targets.jsonl         value/model/final/
    decode/answers.jsonl        results/samples.jsonl, results/results.json
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, cast

from restrl import __version__
from restrl import config as configuration
from restrl.config import RunConfig
from restrl.errors import RestrlError
from restrl.problems import load_problems
from restrl.records import Problem
from restrl.rows import Row, lock, read_rows, remove_torn, write_json, write_text
from restrl.sandbox import Verifier
from restrl.sandbox.native import core
from restrl.seeds import derive

if TYPE_CHECKING:
    from restrl.policy.local import LocalPolicy
    from restrl.value import ValueModel

STAGES = ("sample", "assemble", "train-policy", "collect", "train-value", "decode", "evaluate")
PER_ITERATION = STAGES[:3]


class Run:
    """One run folder, held for this process. Use `Run.open(config)`."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.folder = Path(config.out)
        self._policy: tuple[str, LocalPolicy] | None = None
        self._verifier: Verifier | None = None

    @classmethod
    @contextmanager
    def open(cls, config: RunConfig) -> Iterator[Run]:
        """Lock the folder, check that its config is this one, and free everything at the end.

        Raises RestrlError if another process works there or the folder holds a run of another config.
        """
        from restrl.reference import LossSpec

        LossSpec.from_config(config.train)  # refuses combinations that do not exist, before sampling
        run = cls(config)
        with lock(run.folder):
            run._check_config()
            remove_torn(run.folder)
            run._write_facts()  # reads the problems: a damaged file must not claim the folder
            try:
                yield run
            finally:
                if run._verifier is not None:
                    run._verifier.close()

    def all(self) -> None:
        """Every stage in order; what is there already is not done again."""
        for name in STAGES:
            if name == PER_ITERATION[0]:
                for iteration in range(1, self.config.iterations + 1):
                    for stage in PER_ITERATION:
                        self.stage(stage, iteration)
            elif name not in PER_ITERATION and (
                self.config.problems.test or name in ("collect", "train-value")
            ):
                self.stage(name)

    def stage(self, name: str, iteration: int | None = None) -> None:
        """One stage; its inputs are the outputs of the stages before it."""
        last = self.config.iterations
        iteration = last if iteration is None else iteration
        if name not in PER_ITERATION and iteration != last:
            raise RestrlError(
                f"{name} works on the policy of the last iteration, {last}, not of iteration {iteration}: "
                "its files belong to the whole run; for another policy use another folder"
            )
        seed = derive(self.config.seed, name, iteration if name in PER_ITERATION else 0)
        {
            "sample": self._sample,
            "assemble": self._assemble,
            "train-policy": self._train_policy,
            "collect": self._collect,
            "train-value": self._train_value,
            "decode": self._decode,
            "evaluate": self._evaluate,
        }[name](iteration, seed)

    def results(self) -> str:
        """The table of accuracies that the stage evaluate left."""
        from restrl.stages.evaluate import table

        path = self.folder / "results" / "results.json"
        return table(json.loads(path.read_text(encoding="utf-8"))["rows"])

    # The stages, with the paths they read and write.

    def _sample(self, iteration: int, seed: int) -> None:
        from restrl.stages.sample import sample

        out = self._iteration(iteration) / "samples.jsonl"
        if not out.exists():
            policy = self.policy(iteration - 1)
            sample(policy, policy.format, self.train, self.verifier, self.config.sample, out, seed=seed)

    def _assemble(self, iteration: int, seed: int) -> None:
        from restrl.stages.assemble import assemble

        folder = self._iteration(iteration)
        if not (folder / "states.jsonl").exists():
            samples = self._rows(folder / "samples.jsonl", "sample")
            assemble(samples, self.train_by_id, self.config.assemble, folder / "states.jsonl", seed=seed)

    def _train_policy(self, iteration: int, seed: int) -> None:
        from restrl.stages.train_policy import train_policy

        folder = self._iteration(iteration)
        if not (folder / "policy" / "final").exists():
            states = self._rows(folder / "states.jsonl", "assemble")
            samples = self._rows(folder / "samples.jsonl", "sample")
            policy = self.policy(iteration - 1)
            train_policy(
                policy, states, samples, self.train_by_id, self.verifier, self.config.train,
                folder / "policy", seed=seed, r0=self.config.assemble.r0,
            )  # fmt: skip
            self._policy = None  # its weights were trained in place

    def _collect(self, iteration: int, seed: int) -> None:
        from restrl.stages.collect import collect

        out = self.folder / "value" / "targets.jsonl"
        if not out.exists():
            policy = self.policy(iteration)
            problems = self.train[: self.config.collect.problems]
            collect(policy, policy.format, problems, self.verifier, self.config.collect, out, seed=seed)

    def _train_value(self, iteration: int, seed: int) -> None:
        from restrl.value.train import train_value

        out = self.folder / "value" / "model"
        if not (out / "final").exists():
            trees = self._rows(self.folder / "value" / "targets.jsonl", "collect")
            targets = [target for tree in trees for target in tree["targets"]]
            train_value(self.config.value, targets, self.train_by_id, self.policy(iteration), out, seed=seed)

    def _decode(self, iteration: int, seed: int) -> None:
        from restrl.stages.decode import decode_problems

        out = self.folder / "decode" / "answers.jsonl"
        if not out.exists():
            policy = self.policy(iteration)
            decode_problems(
                policy, policy.format, self.test, self.config.decode, out, seed=seed,
                values=self._values(policy), verifier=self.verifier,
            )  # fmt: skip

    def _evaluate(self, iteration: int, seed: int) -> None:
        from restrl.stages.evaluate import evaluate

        out = self.folder / "results"
        if not (out / "results.json").exists():
            answers = self._rows(self.folder / "decode" / "answers.jsonl", "decode")
            by_id = {p.task_id: p for p in self.test}
            evaluate(answers, by_id, self.verifier, out, seed=self.config.seed)

    # What the stages share.

    @cached_property
    def train(self) -> list[Problem]:
        spec = self.config.problems
        return problem_set(spec.train, spec.format, self.config.seed)[: spec.limit]

    @cached_property
    def test(self) -> list[Problem]:
        spec = self.config.problems
        if spec.test is None:
            raise RestrlError("this stage needs problems.test, which the config does not name")
        return problem_set(spec.test, spec.format, self.config.seed)[: spec.limit]

    @cached_property
    def train_by_id(self) -> dict[str, Problem]:
        return {p.task_id: p for p in self.train}

    @property
    def verifier(self) -> Verifier:
        if self._verifier is None:
            cfg = self.config.verifier
            self._verifier = Verifier(workers=cfg.workers, timeout=cfg.timeout, allow_unsafe=cfg.allow_unsafe)
        return self._verifier

    def _values(self, policy: LocalPolicy) -> dict[str, ValueModel]:
        from restrl.value import load_value

        cfg, folder = self.config.value, self.folder / "value" / "model" / "final"
        if not folder.exists():
            return {}
        # A program may be longer than those trained on: decoding reads what fits the context.
        length = max(cfg.max_length, policy.context or 0)
        return {cfg.head: load_value(folder, policy=policy, max_length=length)}

    def policy(self, iteration: int) -> LocalPolicy:
        """The policy after `iteration` iterations; 0 is the one the run starts from."""
        cfg = self.config.model
        path = str(self._iteration(iteration) / "policy" / "final") if iteration else model_path(cfg.path)
        if iteration and not Path(path).exists():
            raise RestrlError(f"{path} is missing: run the stage train-policy first")
        if self._policy is None or self._policy[0] != path:
            self._policy = None  # free the old one first
            self._policy = (path, load_policy(path, cfg.device, cfg.dtype, cfg.max_rows))
        return self._policy[1]

    def _iteration(self, iteration: int) -> Path:
        return self.folder / f"iter-{iteration}"

    def _rows(self, path: Path, stage: str) -> list[Row]:
        if not path.exists():
            raise RestrlError(f"{path} is missing: run the stage {stage} first")
        return read_rows(path)

    def _check_config(self) -> None:
        path = self.folder / "config.json"
        if path.exists():
            try:
                old = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise RestrlError(f"{path}: not valid JSON: {error}") from None
            new = json.loads(configuration.dump(self.config))
            old.pop("out", None)  # a moved folder is still the same run
            new.pop("out")
            lines = configuration.difference(old, new)
            if lines:
                raise RestrlError(
                    f"{self.folder} holds a run of another config ({'; '.join(lines)}); "
                    "choose another folder or restore these values"
                )

    def _write_facts(self) -> None:
        path = self.folder / "run.json"
        if path.exists() and (self.folder / "config.json").exists():
            self._check_problems(path)
            return
        facts = {"seed": self.config.seed, "versions": versions(), "git_commit": _commit()}
        facts["train_problems"] = len(self.train)
        facts["train_digest"] = digest(self.train)
        if self.config.problems.test is not None:
            facts["test_problems"] = len(self.test)
            facts["test_digest"] = digest(self.test)
            facts["overlap"] = overlap(self.train, self.test)
        write_json(path, facts)
        write_text(self.folder / "config.json", configuration.dump(self.config))

    def _check_problems(self, path: Path) -> None:
        """Rows of a run name problems: another file under the same name must not be mixed in."""
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RestrlError(f"{path}: not valid JSON: {error}") from None
        spec = self.config.problems
        for name, key in ((spec.train, "train_digest"), (spec.test, "test_digest")):
            if name is None or key not in facts:
                continue
            if facts[key] != digest(self.train if key == "train_digest" else self.test):
                raise RestrlError(
                    f"{name}: these are not the problems that the run in {self.folder} began with; "
                    "restore the file or choose another folder"
                )


def load_policy(path: str, device: str = "auto", dtype: str = "auto", max_rows: int = 256) -> LocalPolicy:
    """A policy from a Hugging Face directory or hub id. Raises RestrlError for what is not one."""
    from transformers.utils import logging

    from restrl.policy.local import LocalPolicy

    logging.disable_progress_bar()  # of loading: ours show the work
    return LocalPolicy(path, device=device, dtype=dtype, max_rows=max_rows)


def model_path(path: str) -> str:
    """`pipelines-base` is the policy that comes with restrl; everything else is taken as it is."""
    return str(files("restrl") / "assets" / "pipelines-base") if path == "pipelines-base" else path


def problem_set(spec: str, form: str, seed: int) -> list[Problem]:
    """A problem file, or `pipelines:SPLIT:N[:LO-HI]` for generated ones. Raises RestrlError."""
    if not spec.startswith("pipelines:"):
        return load_problems(spec, form)
    from restrl.problems import pipelines

    parts = spec.split(":")
    try:
        if len(parts) > 4:
            raise ValueError
        split, count = parts[1], int(parts[2])
        low, high = (int(x) for x in parts[3].split("-")) if len(parts) > 3 else (1, 12)
    except (IndexError, ValueError):
        raise RestrlError(
            f"{spec!r} is not of the form pipelines:SPLIT:N:LO-HI, e.g. pipelines:train:200:2-6"
        ) from None
    return pipelines.generate(cast(pipelines.Split, split), count, seed=seed, difficulty=(low, high))


def digest(problems: list[Problem]) -> str:
    """A short hash of the problems with their tests, in order."""
    found = hashlib.blake2b(digest_size=8)
    for problem in problems:
        found.update(core.encode(problem.model_dump()))
    return found.hexdigest()


def overlap(train: list[Problem], test: list[Problem]) -> int:
    """Test problems whose prompt is also a training prompt."""
    prompts = {p.prompt for p in train}
    return sum(p.prompt in prompts for p in test)


def versions() -> dict[str, str]:
    """Of restrl, Python and what decides about numbers."""
    others = {name: version(name) for name in ("torch", "transformers", "numpy")}
    return {"restrl": __version__, "python": platform.python_version(), **others}


def _commit() -> str | None:
    """The commit of the checkout this runs from; None for an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    done = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
