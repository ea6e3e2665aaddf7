"""The options of a loss of the GRPO family, under TRL's names, and the presets of TRL's releases."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from restrl.errors import RestrlError

if TYPE_CHECKING:
    from restrl.config import TrainConfig

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo"]
Level = Literal["token", "sequence"]

CLIP_FAMILY = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")  # differ in the normaliser only
LOSS_TYPES = (*CLIP_FAMILY, "cispo", "sapo", "vespo")
LEVELS = ("token", "sequence")

_READ_BY = {  # options that only some loss types read
    "epsilon": CLIP_FAMILY,
    "epsilon_high": (*CLIP_FAMILY, "cispo"),
    "delta": CLIP_FAMILY,
    "sapo_temperature_neg": ("sapo",),
    "sapo_temperature_pos": ("sapo",),
    "vespo_k_pos": ("vespo",),
    "vespo_lambda_pos": ("vespo",),
    "vespo_k_neg": ("vespo",),
    "vespo_lambda_neg": ("vespo",),
}


@dataclass(frozen=True)
class LossSpec:
    """The options of the loss. docs/losses.md holds the equations.

    Raises RestrlError for a value outside its range, for an option that the loss type does not read (it must
    keep its default) and for a loss that lacks what it needs.
    """

    loss_type: LossType = "bnpo"
    importance_sampling_level: Level = "token"  # of the ratio r; "sequence": GSPO
    epsilon: float = 0.2  # r is clipped below 1 - epsilon
    epsilon_high: float | None = None  # and above 1 + this (None: epsilon); cispo: above this
    delta: float | None = None  # upper bound of r in the unclipped branch (two-sided clip)
    beta: float = 0.0  # weight of the KL
    use_bias_correction_kl: bool = False  # the KL is multiplied by r, with gradient
    max_completion_length: int | None = None  # dr_grpo's constant
    entropy_coef: float = 0.0  # weight of the mean entropy, which is subtracted from the loss
    top_entropy_quantile: float = 1.0  # rho: share of the tokens, by entropy, that keep their policy term
    off_policy_mask_threshold: float | None = None  # of the mean log-ratio of rows with A < 0
    sapo_temperature_neg: float = 1.05  # tau where A <= 0
    sapo_temperature_pos: float = 1.0  # tau where A > 0
    vespo_k_pos: float = 2.0  # k where A >= 0
    vespo_lambda_pos: float = 3.0  # lambda where A >= 0
    vespo_k_neg: float = 3.0  # k where A < 0
    vespo_lambda_neg: float = 2.0  # lambda where A < 0

    def __post_init__(self) -> None:
        check_choice("loss_type", self.loss_type, LOSS_TYPES)
        check_choice("importance_sampling_level", self.importance_sampling_level, LEVELS)
        self._check_ranges()
        self._check_combinations()

    @property
    def clip_low(self) -> float:
        """Lower bound of the clipped ratio."""
        return 1 - self.epsilon

    @property
    def clip_high(self) -> float:
        """Upper bound of the clipped ratio."""
        if self.loss_type == "cispo":
            assert self.epsilon_high is not None  # checked when made
            return self.epsilon_high
        return 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)

    @property
    def needs_entropies(self) -> bool:
        """The entropy of every token is read."""
        return self.entropy_coef != 0 or self.needs_batch

    @property
    def needs_batch(self) -> bool:
        """No gradient is known before the entropies of the whole batch are."""
        return self.top_entropy_quantile < 1

    @property
    def needs_sequence(self) -> bool:
        """In general, no gradient is known before all log-probs of the row are (see `by_token`)."""
        return (
            self.importance_sampling_level == "sequence"
            or self.loss_type == "vespo"
            or self.off_policy_mask_threshold is not None
        )

    def by_token(
        self, *, old: bool, sampler: bool = False, importance_ratio: Level | None = None
    ) -> LossSpec | None:
        """The spec under which each token can be treated alone, with equal loss and gradients; None: there is
        none, whole rows are needed.

        old, sampler      whether l_old and the sampler's log-probs are given
        importance_ratio  None: not given; "token": `[B, T]`; "sequence": `[B, 1]`

        Without l_old the ratio is 1, whatever the tokens. What remains of a row is then its n_i, A and W,
        and the sequence ratio passes the same gradient to each token as the token ratio does, unless a
        factor of P or the corrected KL differs between the tokens.
        """
        if not self.needs_sequence:
            return self
        if old or (sampler and self.off_policy_mask_threshold is not None):
            return None
        if self.loss_type == "vespo" and importance_ratio is not None:
            return None
        if self.importance_sampling_level == "token":
            return self
        corrected = self.use_bias_correction_kl and self.beta != 0
        if corrected or importance_ratio == "token" or self.needs_batch:
            return None
        return dataclasses.replace(self, importance_sampling_level="token")

    @staticmethod
    def from_config(cfg: TrainConfig) -> LossSpec:
        """The loss that `cfg` asks for.

        Raises RestrlError, naming both options, for what the preset's release does not have.
        """
        preset = PRESETS[cfg.preset]
        preset.check(cfg)
        corrected = cfg.use_bias_correction_kl
        return LossSpec(
            loss_type=cfg.loss_type,
            importance_sampling_level=cfg.importance_sampling_level,
            epsilon=cfg.epsilon,
            epsilon_high=cfg.epsilon_high,
            delta=cfg.delta,
            beta=cfg.beta,
            use_bias_correction_kl=preset.use_bias_correction_kl if corrected is None else corrected,
            max_completion_length=cfg.max_completion_length,
            entropy_coef=cfg.entropy_coef,
            top_entropy_quantile=cfg.top_entropy_quantile,
            off_policy_mask_threshold=cfg.off_policy_mask_threshold,
            sapo_temperature_neg=cfg.sapo_temperature_neg,
            sapo_temperature_pos=cfg.sapo_temperature_pos,
            vespo_k_pos=cfg.vespo_k_pos,
            vespo_lambda_pos=cfg.vespo_lambda_pos,
            vespo_k_neg=cfg.vespo_k_neg,
            vespo_lambda_neg=cfg.vespo_lambda_neg,
        )

    def _check_ranges(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float | int) and not math.isfinite(value):
                raise RestrlError(f"{field.name} is {value}, not a finite number")
        if not 0 <= self.epsilon < 1:
            raise RestrlError(f"epsilon is {self.epsilon}, not in [0, 1)")
        if self.max_completion_length is not None and self.max_completion_length < 1:
            raise RestrlError(f"max_completion_length is {self.max_completion_length}, below 1")
        if self.beta < 0:
            raise RestrlError(f"beta is {self.beta}, below 0")
        if not 0 <= self.top_entropy_quantile <= 1:
            raise RestrlError(f"top_entropy_quantile is {self.top_entropy_quantile}, not in [0, 1]")
        if self.epsilon_high is not None and self.epsilon_high < 0:
            raise RestrlError(f"epsilon_high is {self.epsilon_high}, below 0")
        for name in ("sapo_temperature_neg", "sapo_temperature_pos"):
            if getattr(self, name) <= 0:
                raise RestrlError(f"{name} is {getattr(self, name)}, not above 0")
        for name in ("vespo_lambda_pos", "vespo_lambda_neg"):
            if getattr(self, name) < 1e-4:
                raise RestrlError(f"{name} is {getattr(self, name)}, below 1e-4")

    def _check_combinations(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, readers in _READ_BY.items():
            value = getattr(self, name)
            if self.loss_type not in readers and value != defaults[name]:
                raise RestrlError(
                    f"{name} {value} has no meaning for loss_type {self.loss_type!r}, which does not read it "
                    f"(only {', '.join(readers)}); leave it at {defaults[name]}"
                )
        if self.loss_type == "dr_grpo" and self.max_completion_length is None:
            raise RestrlError("loss_type 'dr_grpo' divides by max_completion_length, which is not set")
        if self.loss_type == "cispo" and not self.epsilon_high:
            raise RestrlError(
                "loss_type 'cispo' needs epsilon_high, the upper bound of the ratio itself (5.0 is usual)"
            )
        if self.loss_type == "vespo" and self.importance_sampling_level == "sequence":
            raise RestrlError(
                "loss_type 'vespo' forms a ratio of sequences itself; importance_sampling_level 'sequence' "
                "has no meaning for it; use 'token'"
            )
        if self.delta is not None and self.delta < self.clip_low:
            raise RestrlError(
                f"delta {self.delta} is below 1 - epsilon {self.epsilon}: every token would be clipped"
            )


@dataclass(frozen=True)
class Preset:
    """What a release of TRL offers and does."""

    loss_types: tuple[str, ...]
    scales: tuple[str, ...]
    levels: tuple[str, ...]
    use_bias_correction_kl: bool  # where the configuration leaves it open
    extensions: bool  # entropy bonus and mask, off-policy mask and the corrected KL exist

    def check(self, cfg: TrainConfig) -> None:
        """Raises RestrlError, naming both options, for what this release does not have."""
        for name, value, known in (
            ("loss_type", cfg.loss_type, self.loss_types),
            ("scale_rewards", cfg.scale_rewards, self.scales),
            ("importance_sampling_level", cfg.importance_sampling_level, self.levels),
        ):
            if value not in known:
                raise RestrlError(
                    f"{name} {value!r} does not exist in preset {cfg.preset!r} (it has {', '.join(known)}); "
                    "use preset '1.16'"
                )
        for name, used in (
            ("use_bias_correction_kl", bool(cfg.use_bias_correction_kl)),
            ("entropy_coef", cfg.entropy_coef != 0),
            ("top_entropy_quantile", cfg.top_entropy_quantile < 1),
            ("off_policy_mask_threshold", cfg.off_policy_mask_threshold is not None),
        ):
            if used and not self.extensions:
                raise RestrlError(f"{name} does not exist in preset {cfg.preset!r}; use preset '1.16'")
        if cfg.preset == "1.8":
            _check_release_1_8(cfg)


PRESETS = {
    "0.18.2": Preset(("grpo", "bnpo", "dr_grpo"), ("group", "none"), ("token",), False, extensions=False),
    "1.8": Preset(LOSS_TYPES, ("group", "batch", "none"), LEVELS, False, extensions=True),
    "1.16": Preset(LOSS_TYPES, ("group", "batch", "none"), LEVELS, True, extensions=True),
}


def _check_release_1_8(cfg: TrainConfig) -> None:
    """Raises RestrlError for what release 1.8 computes in a way that is not reproduced."""
    masked = cfg.top_entropy_quantile < 1
    if cfg.loss_type == "luspo" and (cfg.importance_sampling_level == "token" or cfg.beta > 0 or masked):
        raise RestrlError(
            "loss_type 'luspo' of preset '1.8' counts padding as tokens unless importance_sampling_level is "
            "'sequence', beta is 0 and top_entropy_quantile is 1; use preset '1.16'"
        )
    if cfg.loss_type in ("dapo", "cispo", "vespo") and cfg.entropy_coef != 0 and masked:
        raise RestrlError(
            f"entropy_coef with top_entropy_quantile below 1 divides by all tokens in loss_type "
            f"{cfg.loss_type!r} of preset '1.8'; use preset '1.16'"
        )


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises RestrlError, listing what there is, unless `value` is one of `known`."""
    if value not in known:
        raise RestrlError(f"{name} {value!r} is unknown; there are {', '.join(known)}")
