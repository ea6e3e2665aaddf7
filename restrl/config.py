"""The configuration of a run: TOML in, frozen typed sections out. Defaults are the paper's where it has one.

A key that does not exist is an error; a value can be overridden as `section.key=value`. Names equal TRL's
where the meaning is equal.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from restrl.errors import RestrlError

Method = Literal[
    "sample", "greedy", "vote", "likelihood", "orm", "prm", "orm-mcts", "vm-mcts", "oracle"
]  # fmt: skip
METHODS: tuple[str, ...] = get_args(Method)
VALUE_METHODS: tuple[str, ...] = ("orm", "prm", "orm-mcts", "vm-mcts")
MOST_IN_FLIGHT = 65535  # completions of one tree under way at once (csrc/search/params.h)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(_Section):
    """The policy to start from."""

    path: str  # Hugging Face directory or hub id; "pipelines-base" is the small policy shipped with restrl
    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_rows: int = Field(256, ge=1)  # rows decoded at once


class ProblemsConfig(_Section):
    """Problem files; `pipelines:SPLIT:N:LO-HI` generates N problems of LO to HI lines instead."""

    train: str
    test: str | None = None  # decode and evaluate are skipped without it
    format: str = "auto"
    limit: int | None = Field(None, ge=1)  # first problems of each file only


class SamplingConfig(_Section):
    """Step 1 of ReST-GRPO: N completions per training problem."""

    n: int = Field(5, ge=1)
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    max_new_tokens: int = Field(1024, ge=1)


class AssembleConfig(_Section):
    """Steps 3 and 4: which states to train on.

    mode "rest" keeps prompts whose rewards vary and adds partial programs; "filter" keeps only the former;
    "naive" takes every bare prompt.
    """

    mode: Literal["rest", "filter", "naive"] = "rest"
    sigma0: float = Field(0.05, ge=0)  # least population std of a prompt's rewards
    r0: float = Field(0.9)  # least best reward from which partial states are cut
    alpha: float = Field(0.95, gt=0, le=1)  # weight alpha^i of the prefix with i + 1 lines
    partial_ratio: float = Field(0.5, ge=0)  # draws per line of the best program (with replacement)
    partial_count: Annotated[int, Field(ge=0)] | Literal["all"] | None = None  # draws, instead of a ratio
    keep_duplicates: bool = False  # reference mode keeps equal draws


class TrainConfig(_Section):
    """GRPO (step 5) or SFT. The defaults are ReST-GRPO's own: TRL 0.18.2's loss and schedule."""

    method: Literal["grpo", "sft"] = "grpo"
    preset: Literal["0.18.2", "1.8", "1.16"] = "0.18.2"  # TRL version whose loss is reproduced
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo"] = "bnpo"
    num_generations: int = Field(8, ge=1)  # G
    temperature: float = Field(0.7, gt=0)
    max_completion_length: int = Field(1024, ge=1)  # new tokens
    prompts_per_step: int = Field(8, ge=1)
    micro_batch_size: int = Field(64, ge=1)  # completions per forward pass
    num_train_epochs: float = Field(1.0, gt=0)
    max_steps: int = -1  # optimiser steps; overrides the epochs when positive
    learning_rate: float = Field(1e-7, gt=0)
    lr_scheduler_type: Literal["linear", "constant", "cosine"] = "linear"
    warmup_steps: int = Field(0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    beta: float = Field(0.04, ge=0)  # weight of the KL to the start policy
    epsilon: float = Field(0.2, ge=0)
    epsilon_high: float | None = None
    delta: float | None = None
    use_bias_correction_kl: bool | None = None  # None: what the preset does
    entropy_coef: float = 0.0  # weight of the mean entropy, which is subtracted from the loss
    top_entropy_quantile: float = Field(1.0, ge=0, le=1)  # share of tokens, by entropy, that train the policy
    off_policy_mask_threshold: float | None = None
    sapo_temperature_neg: float = Field(1.05, gt=0)
    sapo_temperature_pos: float = Field(1.0, gt=0)
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = Field(3.0, ge=1e-4)
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = Field(2.0, ge=1e-4)
    num_iterations: int = Field(1, ge=1)  # optimiser steps per batch of completions
    importance_sampling_level: Literal["token", "sequence"] = "token"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    mask_truncated_completions: bool = False
    stop_bonus: float = 1e-3  # added when a completion produced a stop string
    after_stop_penalty: float = 1e-6  # per character after the stop string
    data_seed: int = 42
    save_steps: int = Field(20, ge=1)
    save_total_limit: int = Field(1, ge=1)


class SearchConfig(_Section):
    """Monte-Carlo tree search: `collect` uses it with true rewards, `decode` with a value model."""

    simulations: int = Field(100, ge=1)
    k: int = Field(5, ge=1)  # completions per expansion
    num_decisions: int = Field(3, ge=1)  # visible children
    c: float = Field(0.2, ge=0)  # exploration weight
    eps: float = Field(0.1, gt=0)
    temperature: float = Field(0.7, gt=0)
    max_new_tokens: int = Field(1024, ge=1)
    leaves_in_flight: int = Field(1, ge=1)  # per tree
    virtual_loss: Literal["loss", "unobserved"] = "unobserved"  # what a leaf in flight counts as
    reuse: bool = False  # the rest of a completion serves as one of the k where its first line leads
    trees_in_flight: int = Field(64, ge=1)

    @model_validator(mode="after")
    def _leaves_fit(self) -> SearchConfig:
        if self.leaves_in_flight * self.k > MOST_IN_FLIGHT:
            raise ValueError(
                f"leaves_in_flight = {self.leaves_in_flight} times k = {self.k} is more than {MOST_IN_FLIGHT}"
            )
        return self


class CollectConfig(SearchConfig):
    """Value targets from trees with true rewards."""

    problems: int | None = Field(None, ge=1)  # first training problems only
    targets: Literal["dense", "reference"] = "dense"


class ValueConfig(_Section):
    """`scalar` is AutoModelForSequenceClassification, `additive` reads the policy's own states."""

    head: Literal["scalar", "additive"] = "additive"
    backbone: str | None = None  # scalar only: start from this model instead of the trained policy
    learning_rate: float | None = Field(None, gt=0)  # None: 1e-7 scalar (the paper's), 4e-3 additive
    epochs: int = Field(2, ge=1)
    batch_size: int = Field(16, ge=1)
    max_length: int = Field(2048, ge=1)  # tokens; longer texts are dropped and counted
    weight_by_visits: bool = False
    pairwise: float = Field(0.3, ge=0)  # additive only: weight of the within-problem ranking loss
    hidden_size: int = Field(128, ge=1)  # additive only: width of the head


class DecodeConfig(SearchConfig):
    """Answers for the test problems, every method at the same number of generated completions."""

    methods: list[Method] = ["sample", "greedy", "vote", "likelihood", "orm", "prm", "orm-mcts", "vm-mcts"]
    budget: int = Field(100, ge=1)  # completions per problem
    simulations: int = Field(20, ge=1)
    num_decisions: int = Field(5, ge=1)
    c: float = Field(0.1, ge=0)
    prm_aggregate: Literal["min", "last", "product"] = "min"

    @model_validator(mode="after")
    def _methods_once(self) -> DecodeConfig:
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise ValueError("methods must name at least one method, and none twice")
        return self


class VerifierConfig(_Section):
    """How programs are run."""

    workers: int = Field(2, ge=1)
    timeout: float = Field(6.0, gt=0)  # seconds per test
    allow_unsafe: bool = False  # run with less isolation than tier 2


class RunConfig(_Section):
    """A whole run."""

    out: str = Field(min_length=1)  # run folder
    seed: int = 0
    iterations: int = Field(1, ge=1)  # of ReST-GRPO, each from the last one's policy
    model: ModelConfig
    problems: ProblemsConfig
    sample: SamplingConfig = SamplingConfig()
    assemble: AssembleConfig = AssembleConfig()
    train: TrainConfig = TrainConfig()
    collect: CollectConfig = CollectConfig()
    value: ValueConfig = ValueConfig()
    decode: DecodeConfig = DecodeConfig()
    verifier: VerifierConfig = VerifierConfig()

    @model_validator(mode="after")
    def _budget_fits(self) -> RunConfig:
        if self.decode.budget < self.decode.k:
            raise ValueError(f"decode.budget = {self.decode.budget} is less than decode.k = {self.decode.k}")
        if self.train.method == "grpo" and self.train.num_generations < 2:
            raise ValueError("train.num_generations = 1: a group of one has advantage 0; use at least 2")
        return self


def load(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a TOML file and apply `section.key=value` overrides (values are TOML; bare words are strings).

    Raises RestrlError naming file and key.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RestrlError(f"{path}: no such config file") from None
    except OSError as error:
        raise RestrlError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RestrlError(f"{path}: not valid TOML: {error}") from None
    for override in overrides or []:
        _apply(data, override)
    return parse(data, where=str(path))


def parse(data: dict[str, Any], where: str = "config") -> RunConfig:
    """Check a nested dictionary against the schema. Raises RestrlError naming the key and what is allowed."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = "".join(f"{part}." for part in first["loc"]).rstrip(".")
        if first["type"] == "extra_forbidden":
            section = _section(first["loc"][:-1])
            raise RestrlError(
                f"{where}: unknown key {key}; known here: {', '.join(section.model_fields)}"
            ) from None
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        text = first["msg"].removeprefix("Value error, ")
        raise RestrlError(": ".join(filter(None, (where, key, text))) + more) from None


def dump(config: RunConfig) -> str:
    """The resolved config as JSON, in the order of the schema."""
    return json.dumps(config.model_dump(), indent=2) + "\n"


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines `key: old -> new` for every value that differs."""
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines


def _apply(data: dict[str, Any], override: str) -> None:
    name, sign, text = override.partition("=")
    if not sign:
        raise RestrlError(f"override {override!r} is not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if name.strip() == "train.preset":  # 1.16 is a release, not a number
        value = str(text).strip("\"' ")
    *sections, key = name.strip().split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise RestrlError(f"override {override!r}: {section} is not a section")
    data[key] = value


def _section(path: tuple[int | str, ...]) -> type[BaseModel]:
    section: type[BaseModel] = RunConfig
    for part in path:
        annotation = section.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        section = annotation
    return section
