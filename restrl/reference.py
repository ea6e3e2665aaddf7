"""The losses of restrl in plain torch, as the equations are written: the one definition everything else must
match.

Vocabulary: `B` rows (completions), `T` tokens of a completion, `P` prompts, `G` completions per prompt, `N`
flat tokens, `H` hidden size, `V` vocabulary. Log-probabilities are in nats. l is the policy's log-prob of a
token, l_old that of the policy which sampled it, l_ref that of the frozen start policy, m in {0, 1} the loss
mask.

Sources: GRPO (arXiv 2402.03300), Dr. GRPO (2503.20783), DAPO (2503.14476), GSPO's sequence ratio
(2507.18071), the two-sided clip (INTELLECT-2, 2505.07291), and the details of TRL's releases 0.18.2 (used by
ReST-RL) and 1.16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from restrl.config import TrainConfig
from restrl.errors import RestrlError

ADVANTAGE_EPS = 1e-4

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo"]
Scale = Literal["group", "batch", "none"]
Level = Literal["token", "sequence"]


@dataclass(frozen=True)
class Preset:
    """What a release of TRL offers and does."""

    loss_types: tuple[str, ...]
    scales: tuple[str, ...]
    levels: tuple[str, ...]
    bias_correction_kl: bool  # the KL term is multiplied by the ratio, with gradient


PRESETS = {
    "0.18.2": Preset(("grpo", "bnpo", "dr_grpo"), ("group", "none"), ("token",), bias_correction_kl=False),
    "1.16": Preset(
        ("grpo", "bnpo", "dr_grpo", "dapo"),
        ("group", "batch", "none"),
        ("token", "sequence"),
        bias_correction_kl=True,
    ),
}


@dataclass(frozen=True)
class LossSpec:
    """The knobs of the GRPO loss, under TRL's names.

    Raises RestrlError for values outside their range and for a loss that lacks what it needs.
    """

    loss_type: LossType = "bnpo"
    importance_sampling_level: Level = "token"
    epsilon: float = 0.2
    epsilon_high: float | None = None  # None: epsilon
    delta: float | None = None  # upper bound of the ratio in the unclipped branch
    beta: float = 0.0  # weight of the KL
    bias_correction_kl: bool = False
    max_completion_length: int | None = None  # dr_grpo's constant

    def __post_init__(self) -> None:
        _check_choice("loss_type", self.loss_type, ("grpo", "bnpo", "dr_grpo", "dapo"))
        _check_choice("importance_sampling_level", self.importance_sampling_level, ("token", "sequence"))
        if self.loss_type == "dr_grpo" and not self.max_completion_length:
            raise RestrlError("loss_type 'dr_grpo' divides by max_completion_length, which is not set")
        if not 0 <= self.epsilon < 1:
            raise RestrlError(f"epsilon is {self.epsilon}, not in [0, 1)")
        if self.delta is not None and self.delta < 1 - self.epsilon:
            raise RestrlError(
                f"delta {self.delta} is below 1 - epsilon {self.epsilon}: every token would be clipped"
            )

    @staticmethod
    def from_config(cfg: TrainConfig) -> LossSpec:
        """The loss that `cfg` asks for.

        Raises RestrlError, naming both options, for what the preset's release does not have.
        """
        preset = PRESETS[cfg.preset]
        for name, value, known in (
            ("loss_type", cfg.loss_type, preset.loss_types),
            ("scale_rewards", cfg.scale_rewards, preset.scales),
            ("importance_sampling_level", cfg.importance_sampling_level, preset.levels),
        ):
            if value not in known:
                raise RestrlError(
                    f"{name} {value!r} does not exist in preset {cfg.preset!r} (it has {', '.join(known)}); "
                    "use preset '1.16'"
                )
        return LossSpec(
            loss_type=cfg.loss_type,
            importance_sampling_level=cfg.importance_sampling_level,
            epsilon=cfg.epsilon,
            epsilon_high=cfg.epsilon_high,
            delta=cfg.delta,
            beta=cfg.beta,
            bias_correction_kl=preset.bias_correction_kl,
            max_completion_length=cfg.max_completion_length,
        )


class Totals(NamedTuple):
    """Sizes of the batch that a loss is normalised over; it may be larger than the part at hand.

    rows    B, fully masked rows included
    tokens  sum of the mask
    """

    rows: int
    tokens: float


class GrpoLoss(NamedTuple):
    """loss: scalar; the rest, detached: KL (plain k3) and where the ratio was clipped (bool), `[B, T]`."""

    loss: Tensor
    kl: Tensor | None
    clipped_low: Tensor
    clipped_high: Tensor


class TokenLogProbs(NamedTuple):
    """log_probs: of the tokens that stand there, differentiable; entropies: of the whole distribution,
    detached.
    """

    log_probs: Tensor
    entropies: Tensor


def grouped_advantages(rewards: Tensor, scale: Scale = "group") -> Tensor:
    """A = (R - mean of its group) / (std + 1e-4), the std with G - 1 in the denominator.

    rewards  `[P, G]` raw rewards, one group per row; NaN = unscorable: left out of mean and std, its A is 0
    scale    "group": std of the group; "batch": std of all rewards; "none": no division

    Returns `[P, G]`. The group's first reward is subtracted before anything else, so equal rewards give
    exactly 0; so does a group with one scorable reward.
    """
    _check_choice("scale_rewards", scale, ("group", "batch", "none"))
    scored = ~rewards.isnan()
    first = rewards.gather(1, scored.int().argmax(1, keepdim=True))
    shifted = torch.where(scored, rewards - first, 0.0)
    mean = shifted.sum(1, keepdim=True) / scored.sum(1, keepdim=True).clamp(min=1)
    centred = torch.where(scored, shifted - mean, 0.0)
    if scale == "none":
        return centred
    if scale == "group":
        return centred / (_sample_std(centred, scored, dim=1) + ADVANTAGE_EPS)
    over_all = torch.where(scored, rewards, 0.0).sum() / scored.sum().clamp(min=1)
    return centred / (
        _sample_std(torch.where(scored, rewards - over_all, 0.0), scored, dim=None) + ADVANTAGE_EPS
    )


def group_std(rewards: Tensor) -> Tensor:
    """`[P]` sample standard deviation within each group of `[P, G]` rewards; NaN left out, exactly 0 where
    equal.
    """
    scored = ~rewards.isnan()
    return _sample_std(grouped_advantages(rewards, "none"), scored, dim=1)[:, 0]


def log_ratios(log_probs: Tensor, old: Tensor | None, mask: Tensor, level: Level) -> Tensor:
    """log r: token level l - l_old `[B, T]`; sequence level its mean over the row's tokens `[B, 1]`.

    `old` None stands for stopgrad(l): the ratio is 1, its gradient is not 0. Masked positions give 0.
    """
    base = log_probs.detach() if old is None else old
    d = torch.where(mask > 0, log_probs - base, 0.0)
    if level == "token":
        return d
    return d.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)


def policy_term(log_ratio: Tensor, advantages: Tensor, spec: LossSpec) -> Tensor:
    """-min( min(r, delta) A, clip(r, 1 - eps_low, 1 + eps_high) A ), in the shape of `log_ratio`."""
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - spec.epsilon, 1 + _epsilon_high(spec))
    if spec.delta is not None:
        ratio = ratio.clamp(max=spec.delta)
    return -torch.minimum(ratio * advantages[:, None], clipped * advantages[:, None])


def kl_term(log_probs: Tensor, ref: Tensor, mask: Tensor) -> Tensor:
    """k3 estimate of KL(policy || reference) per token, exp(x) - x - 1 with x = l_ref - l; 0 where masked."""
    x = torch.where(mask > 0, ref - log_probs, 0.0)
    return x.exp() - x - 1


def loss_weights(mask: Tensor, spec: LossSpec, totals: Totals) -> Tensor:
    """W, which does not depend on the weights of the model: loss = sum of W m f. Shape broadcasts with `[B,
    T]`.

    grpo     1 / (B n_i)       mean of the rows' token means (n_i tokens of row i, at least 1)
    bnpo     1 / sum m         token mean
    dr_grpo  1 / (B L_max)     constant
    dapo     1 / sum m         token mean of the whole generation batch

    `totals` holds B and sum m of the optimiser's batch, so that parts of it add up to the whole: how it is
    cut into forward passes does not matter. bnpo and dapo are then the same; they differ in TRL, whose bnpo
    takes the mean over each forward pass.
    """
    if spec.loss_type == "grpo":
        return 1 / (totals.rows * mask.sum(1, keepdim=True).clamp(min=1))
    if spec.loss_type == "dr_grpo":
        assert spec.max_completion_length is not None  # checked by LossSpec
        return mask.new_tensor(1 / (totals.rows * spec.max_completion_length))
    return mask.new_tensor(1 / max(1.0, totals.tokens))


def grpo_loss(
    log_probs: Tensor,
    mask: Tensor,
    advantages: Tensor,
    spec: LossSpec,
    *,
    old: Tensor | None = None,
    ref: Tensor | None = None,
    totals: Totals | None = None,
) -> GrpoLoss:
    """The GRPO loss of `B` completions: sum of W m (P + beta K).

    log_probs   `[B, T]` l; what stands at masked positions is never read, not even inf or NaN
    mask        `[B, T]` 1 for completion tokens, the end-of-sequence token included
    advantages  `[B]`
    old, ref    `[B, T]` l_old (None: stopgrad(l)) and l_ref (needed when beta > 0)
    totals      of the optimiser's batch; None: this is the whole batch

    Raises RestrlError when beta > 0 comes without `ref`.
    """
    if spec.beta > 0 and ref is None:
        raise RestrlError(f"beta {spec.beta} needs the reference policy's log-probs, and ref is None")
    totals = totals or Totals(mask.shape[0], float(mask.sum()))
    log_ratio = log_ratios(log_probs, old, mask, spec.importance_sampling_level)
    per_token = policy_term(log_ratio, advantages, spec).expand_as(mask)
    kl = None
    if spec.beta > 0 and ref is not None:
        kl = kl_term(log_probs, ref, mask)
        correction = log_ratio.exp() if spec.bias_correction_kl else 1.0
        per_token = per_token + spec.beta * kl * correction
    loss = torch.where(mask > 0, loss_weights(mask, spec, totals) * per_token, 0.0).sum()
    ratio, live = log_ratio.detach().exp(), mask > 0
    return GrpoLoss(
        loss,
        None if kl is None else kl.detach(),
        (ratio < 1 - spec.epsilon) & (advantages[:, None] < 0) & live,
        (ratio > 1 + _epsilon_high(spec)) & (advantages[:, None] > 0) & live,
    )


def log_probs_from_logits(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> TokenLogProbs:
    """log softmax(logits / temperature) at `tokens`, and entropies.

    logits `[N, V]` (any float; computed in float32, float64 stays), tokens `[N]`; both results are `[N]`.
    """
    z = logits.to(_accumulator(logits)) / temperature
    log_normaliser = z.logsumexp(1)
    with torch.no_grad():
        log_p = z - log_normaliser[:, None]
        entropies = -torch.where(log_p > -torch.inf, log_p.exp() * log_p, 0.0).sum(1)
    return TokenLogProbs(z.gather(1, tokens[:, None])[:, 0] - log_normaliser, entropies)


def log_probs_from_hidden(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk: int = 8192,
) -> TokenLogProbs:
    """`log_probs_from_logits` of the logits hidden W^T + b (capped: softcap tanh(z / softcap)), `chunk` rows
    at a time.

    hidden `[N, H]`, weight `[V, H]`, bias `[V]`, tokens `[N]`. Everything past the inputs is float32
    (float64 inputs stay). With more than one chunk, logits are computed again in the backward pass instead
    of being kept.
    """
    dtype = _accumulator(hidden)
    weight = weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)

    def one(part: Tensor, targets: Tensor) -> TokenLogProbs:
        logits = torch.nn.functional.linear(part.to(dtype), weight, bias)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return log_probs_from_logits(logits, targets, temperature)

    if hidden.shape[0] <= chunk:
        return one(hidden, tokens)
    parts = [
        checkpoint(one, h, t, use_reentrant=False, preserve_rng_state=False)
        for h, t in zip(hidden.split(chunk), tokens.split(chunk), strict=True)
    ]
    return TokenLogProbs(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))


def _epsilon_high(spec: LossSpec) -> float:
    return spec.epsilon if spec.epsilon_high is None else spec.epsilon_high


def _sample_std(centred: Tensor, scored: Tensor, dim: int | None) -> Tensor:
    keep = dim is not None
    count = scored.sum(dim, keepdim=keep)
    return (centred.square().sum(dim, keepdim=keep) / (count - 1).clamp(min=1)).sqrt()


def _accumulator(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RestrlError(f"{name} {value!r} is unknown; there are {', '.join(known)}")
