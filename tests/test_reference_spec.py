"""Options of the loss: ranges, what goes together, presets."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from reference_cases import LOSSES, batch, frozen_case

from restrl.errors import RestrlError
from restrl.reference import PRESETS, LossSpec, Totals, entropy_weights, grpo_loss, sampler_ratio


def config(**options: Any) -> Any:
    pytest.importorskip("pydantic")
    from restrl.config import TrainConfig

    return TrainConfig(**options)


NEEDED = {"cispo": {"epsilon_high": 5.0}, "dr_grpo": {"max_completion_length": 10}}


@pytest.mark.parametrize("loss", LOSSES, ids="-".join)
def test_every_loss_can_be_configured(loss: tuple[str, str]) -> None:
    options = {"loss_type": loss[0], "importance_sampling_level": loss[1], **NEEDED.get(loss[0], {})}
    for preset in ("1.8", "1.16"):
        if preset == "1.8" and loss == ("luspo", "token"):
            continue
        spec = LossSpec.from_config(config(preset=preset, beta=0.0, **options))
        assert (spec.loss_type, spec.importance_sampling_level) == loss
        assert spec.use_bias_correction_kl == (preset == "1.16")


def test_every_option_reaches_the_loss() -> None:
    values: dict[str, Any] = {
        "importance_sampling_level": "sequence",
        "epsilon": 0.11,
        "epsilon_high": 0.33,
        "delta": 3.0,
        "beta": 0.01,
        "use_bias_correction_kl": False,
        "max_completion_length": 77,
        "entropy_coef": -0.001,
        "top_entropy_quantile": 0.2,
        "off_policy_mask_threshold": 0.3,
    }
    spec = LossSpec.from_config(config(preset="1.16", loss_type="dapo", **values))
    assert {name: getattr(spec, name) for name in values} == values
    values = {"sapo_temperature_neg": 2.0, "sapo_temperature_pos": 3.0}
    spec = LossSpec.from_config(config(preset="1.16", loss_type="sapo", **values))
    assert {name: getattr(spec, name) for name in values} == values
    values = {"vespo_k_pos": 1.0, "vespo_lambda_pos": 1.5, "vespo_k_neg": 2.5, "vespo_lambda_neg": 1.7}
    spec = LossSpec.from_config(config(preset="1.16", loss_type="vespo", **values))
    assert {name: getattr(spec, name) for name in values} == values


def test_defaults_are_the_paper_s() -> None:
    spec = LossSpec.from_config(config())
    assert (spec.loss_type, spec.beta, spec.epsilon, spec.delta) == ("bnpo", 0.04, 0.2, None)
    assert (spec.importance_sampling_level, spec.use_bias_correction_kl) == ("token", False)
    assert not spec.needs_entropies
    assert spec.off_policy_mask_threshold is None
    assert LossSpec.from_config(config(preset="1.16")).use_bias_correction_kl
    assert not LossSpec.from_config(
        config(preset="1.16", use_bias_correction_kl=False)
    ).use_bias_correction_kl
    assert LossSpec.from_config(config(preset="1.8", use_bias_correction_kl=True)).use_bias_correction_kl
    assert set(PRESETS) == {"0.18.2", "1.8", "1.16"}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"loss_type": "dapo"}, ("dapo", "0.18.2")),
        ({"loss_type": "luspo"}, ("luspo", "0.18.2")),
        ({"importance_sampling_level": "sequence"}, ("sequence", "0.18.2")),
        ({"scale_rewards": "batch"}, ("batch", "0.18.2")),
        ({"use_bias_correction_kl": True}, ("use_bias_correction_kl", "0.18.2")),
        ({"entropy_coef": 0.1}, ("entropy_coef", "0.18.2")),
        ({"top_entropy_quantile": 0.2}, ("top_entropy_quantile", "0.18.2")),
        ({"off_policy_mask_threshold": 0.0}, ("off_policy_mask_threshold", "0.18.2")),
        ({"preset": "1.8", "loss_type": "luspo"}, ("luspo", "1.8", "importance_sampling_level")),
        (
            {"preset": "1.8", "loss_type": "dapo", "entropy_coef": 0.1, "top_entropy_quantile": 0.5},
            ("entropy_coef", "top_entropy_quantile", "dapo", "1.8"),
        ),
        ({"epsilon": 0.3, "delta": 0.5}, ("delta", "epsilon")),
        ({"epsilon": 1.5}, ("epsilon",)),
    ],
)
def test_what_a_preset_does_not_have_names_both_options(
    options: dict[str, Any], names: tuple[str, ...]
) -> None:
    with pytest.raises(RestrlError) as error:
        LossSpec.from_config(config(**options))
    assert all(name in str(error.value) for name in names), error.value


@pytest.mark.parametrize("loss_type", sorted({loss for loss, _ in LOSSES}))
def test_an_option_that_a_loss_does_not_read_is_refused(loss_type: str) -> None:
    clip = loss_type not in ("cispo", "sapo", "vespo")
    readers = {
        "epsilon": (0.1, clip),
        "epsilon_high": (0.3, clip or loss_type == "cispo"),
        "delta": (4.0, clip),
        "sapo_temperature_neg": (1.3, loss_type == "sapo"),
        "sapo_temperature_pos": (1.3, loss_type == "sapo"),
        "vespo_k_pos": (1.3, loss_type == "vespo"),
        "vespo_lambda_pos": (1.3, loss_type == "vespo"),
        "vespo_k_neg": (1.3, loss_type == "vespo"),
        "vespo_lambda_neg": (1.3, loss_type == "vespo"),
    }
    for name, (value, read) in readers.items():
        options: Any = {"loss_type": loss_type, **NEEDED.get(loss_type, {}), name: value}
        if read:
            assert getattr(LossSpec(**options), name) == value
            continue
        with pytest.raises(RestrlError, match=f"^{name} .* loss_type '{loss_type}'"):
            LossSpec(**options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"loss_type": "x"}, "loss_type 'x'"),
        ({"importance_sampling_level": "x"}, "importance_sampling_level 'x'"),
        ({"loss_type": "dr_grpo"}, "dr_grpo.*max_completion_length"),
        ({"loss_type": "cispo"}, "cispo.*epsilon_high"),
        ({"loss_type": "vespo", "importance_sampling_level": "sequence"}, "vespo.*importance_sampling_level"),
        ({"epsilon": 1.0}, "epsilon is 1.0"),
        ({"epsilon_high": -0.1}, "epsilon_high is -0.1"),
        ({"delta": 0.7}, "delta 0.7 .* epsilon 0.2"),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"entropy_coef": float("inf")}, "entropy_coef is inf"),
        ({"top_entropy_quantile": 1.1}, "top_entropy_quantile is 1.1"),
        ({"loss_type": "sapo", "sapo_temperature_neg": 0.0}, "sapo_temperature_neg is 0.0"),
        ({"loss_type": "vespo", "vespo_lambda_pos": 0.0}, "vespo_lambda_pos is 0.0"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(RestrlError, match=text):
        LossSpec(**options)


@pytest.mark.parametrize(
    ("options", "left_out", "text"),
    [
        ({"beta": 0.1}, "ref", r"beta 0\.1 .* ref"),
        ({"entropy_coef": 0.1}, "entropies", r"entropy_coef 0\.1 .* entropies"),
        ({"top_entropy_quantile": 0.3}, "entropies", r"top_entropy_quantile 0\.3 .* entropies"),
    ],
)
def test_a_loss_says_what_it_lacks(options: dict[str, Any], left_out: str, text: str) -> None:
    case = frozen_case(["importance_ratio"])
    given = case.keywords() | {left_out: None}
    with pytest.raises(RestrlError, match=text):
        grpo_loss(case.log_probs, case.mask, case.advantages, LossSpec(**options), **given)


def test_a_row_s_sampler_ratio_is_nothing_for_vespo() -> None:
    log_probs, _, _, mask, advantages = batch()
    ratio = torch.ones(4, 1)
    with pytest.raises(RestrlError, match=re.compile("vespo.*vllm_importance_sampling_mode")):
        grpo_loss(log_probs, mask, advantages, LossSpec(loss_type="vespo"), importance_ratio=ratio)


def test_shapes_that_would_broadcast_to_nonsense_are_refused() -> None:
    log_probs, _, _, mask, advantages = batch()
    with pytest.raises(RestrlError, match="advantages have shape"):
        grpo_loss(log_probs, mask, advantages[:, None], LossSpec())
    with pytest.raises(RestrlError, match="importance_ratio has shape"):
        grpo_loss(log_probs, mask, advantages, LossSpec(), importance_ratio=torch.ones(5))


def test_the_bonus_of_a_part_needs_the_count_of_the_whole() -> None:
    mask = torch.ones(2, 3)
    spec = LossSpec(entropy_coef=0.1, top_entropy_quantile=0.5)
    with pytest.raises(RestrlError, match=r"entropy_coef.*top_entropy_quantile.*totals\.entropy_tokens"):
        entropy_weights(mask, spec, Totals(2, 6.0), mask > 0)


def test_sampler_ratio_says_what_is_wrong() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(RestrlError, match=r"clip_min 3\.0 .*clip_max 2\.0"):
        sampler_ratio(x, x, x, "token_mask", 2.0, 3.0)
    with pytest.raises(RestrlError, match=r"'sequence_truncate'.*clip_max"):
        sampler_ratio(x, x, x, "sequence_truncate", None)
    with pytest.raises(RestrlError, match="vllm_importance_sampling_mode 'x'"):
        sampler_ratio(x, x, x, "x")  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [0, -5])
def test_a_length_that_would_turn_the_loss_around_is_refused(length: int) -> None:
    with pytest.raises(RestrlError, match=f"max_completion_length is {length}, below 1"):
        LossSpec("dr_grpo", max_completion_length=length)
