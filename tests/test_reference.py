"""The reference losses against frozen numbers of TRL's releases and cases worked out by hand; log-probs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_cases import batch

from restrl.reference import (
    PRESETS,
    LossSpec,
    Totals,
    entropy_mask,
    grpo_loss,
    log_probs_from_logits,
    sampler_ratio,
)

FROZEN = Path(__file__).parent / "golden" / "trl_grpo_loss.jsonl"


# --- the loss ---


def frozen_cases() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FROZEN.read_text().splitlines()]


def test_the_frozen_cases_cover_all_options() -> None:
    cases = frozen_cases()
    keys = ("preset", "loss_type", "importance_sampling_level", "delta", "beta", "old")
    seen = {tuple(case[key] for key in keys) for case in cases}
    assert len(seen) == len(cases) == 3 * 8 + 4 * 2 * 8


@pytest.mark.parametrize("preset", ["0.18.2", "1.16"])
def test_values_and_gradients_equal_trl(preset: str) -> None:
    """TRL's own `_compute_loss` on `batch()`, epsilon .2 / .28, L_max 8, one accumulation step."""
    for case in (c for c in frozen_cases() if c["preset"] == preset):
        log_probs, old, ref, mask, advantages = batch()
        log_probs.requires_grad_()
        spec = LossSpec(
            loss_type=case["loss_type"],
            importance_sampling_level=case["importance_sampling_level"],
            epsilon=0.2,
            epsilon_high=0.28,
            delta=case["delta"],
            beta=case["beta"],
            use_bias_correction_kl=PRESETS[preset].use_bias_correction_kl,
            max_completion_length=8,
        )
        old_log_probs = old if case["old"] else None
        found = grpo_loss(log_probs, mask, advantages, spec, old=old_log_probs, ref=ref)
        found.loss.backward()
        assert found.loss.item() == pytest.approx(case["loss"], abs=1e-11), case
        np.testing.assert_allclose(log_probs.grad, case["grad"], atol=2e-11, err_msg=str(case)[:150])


def test_without_old_log_probs_the_ratio_is_one_and_its_gradient_is_not_zero() -> None:
    log_probs, _, _, mask, advantages = batch()
    log_probs.requires_grad_()
    grpo_loss(log_probs, mask, advantages, LossSpec(loss_type="bnpo")).loss.backward()
    expected = -advantages[:, None] * mask / mask.sum()
    np.testing.assert_allclose(log_probs.grad, expected, atol=1e-14)


def test_kl_is_positive_and_pulls_towards_the_reference() -> None:
    log_probs, _, ref, mask, advantages = batch()
    log_probs.requires_grad_()
    found = grpo_loss(log_probs, mask, advantages * 0, LossSpec(beta=1.0), ref=ref)
    found.loss.backward()
    assert found.kl is not None
    assert (found.kl >= 0).all()
    above = (log_probs > ref) & (mask > 0)
    assert log_probs.grad is not None
    assert (log_probs.grad[above] > 0).all()  # descent lowers what is above the reference


def test_clip_counts() -> None:
    log_probs = torch.log(torch.tensor([[0.5, 1.5, 1.0, 0.5]]))
    old, mask = torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    up = grpo_loss(log_probs, mask, torch.tensor([1.0]), LossSpec(), old=old)
    down = grpo_loss(log_probs, mask, torch.tensor([-1.0]), LossSpec(), old=old)
    assert (int(up.clipped_low.sum()), int(up.clipped_high.sum())) == (0, 1)
    assert (int(down.clipped_low.sum()), int(down.clipped_high.sum())) == (1, 0)
    for loss_type, high in (("cispo", 1.4), ("cispo", 1.6), ("sapo", None), ("vespo", None)):
        spec = LossSpec(loss_type=loss_type, epsilon_high=high)  # type: ignore[arg-type]
        for a in (1.0, -1.0):
            found = grpo_loss(log_probs, mask, torch.tensor([a]), spec, old=old)
            assert not found.clipped_low.any()
            assert int(found.clipped_high.sum()) == (high == 1.4 and a > 0)


@pytest.mark.parametrize(
    ("rho", "kept"), [(0.0, [7]), (0.3, [5, 6, 7]), (0.5, [4, 5, 6, 7]), (1.0, range(8))]
)
def test_the_entropy_mask_keeps_the_upper_share_of_the_unmasked(rho: float, kept: Any) -> None:
    entropies = torch.tensor([[0.0, 7.0, 1.0, 6.0], [2.0, 5.0, 3.0, 4.0], [9.0, 9.0, math.nan, 9.0]])
    mask = torch.tensor([[1.0] * 4, [1.0] * 4, [0.0] * 4])
    found = entropy_mask(entropies, mask, rho)
    assert not found[2].any()
    assert sorted(entropies[found].tolist()) == list(kept)
    assert torch.equal(entropy_mask(entropies.flatten(), mask.flatten(), rho), found.flatten())


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token_truncate", [[2.0, 0.5, 1.0, 1.0], [0.8, 1.0, 1.0, 1.0]]),
        ("token_mask", [[0.0, 0.0, 1.0, 1.0], [0.8, 1.0, 1.0, 1.0]]),
        ("sequence_truncate", [[0.75], [0.8]]),
        ("sequence_mask", [[0.75], [0.8]]),
    ],
)
def test_sampler_ratios_are_bounded_by_token_or_by_row(mode: Any, expected: list[list[float]]) -> None:
    old = torch.tensor([[3.0, 0.25, 1.0, math.inf], [0.8, 1.0, 1.0, 7.0]]).log()
    sampler = torch.tensor([[0.0, 0.0, math.nan, 0.0], [0.0, 0.0, 0.0, math.nan]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(sampler_ratio(old, sampler, mask, mode, 2.0, 0.5), torch.tensor(expected))
    whole = sampler_ratio(old, sampler, mask, mode, 0.79 if mode.startswith("sequence") else 5.0, 0.1)
    assert whole[1, 0].item() == pytest.approx(
        {"sequence_truncate": 0.79, "sequence_mask": 0.0}.get(mode, 0.8)
    )


def test_totals_of_trl() -> None:
    """10 tokens here, 60 in the generation batch of 2 processes and 6 forward passes, 3 of them per step."""
    mask = torch.ones(2, 5)
    cut: dict[str, Any] = {"gradient_accumulation_steps": 3, "num_processes": 2, "steps_per_generation": 6}
    cut["num_items_in_batch"] = 60.0
    assert Totals.as_trl(mask, LossSpec(loss_type="grpo"), **cut) == (6, 30.0, 30.0)
    assert Totals.as_trl(mask, LossSpec(loss_type="dapo"), **cut) == (6, 15.0, 30.0)
    assert Totals.as_trl(mask, LossSpec(loss_type="dapo"), release="1.8", **cut) == (6, 30.0, 30.0)
    half = mask.cumsum(1) > 3
    assert Totals.as_trl(mask, LossSpec(loss_type="bnpo"), entropy_mask=half, **cut) == (6, 30.0, 12.0)
    assert Totals.as_trl(mask * 0, LossSpec(loss_type="vespo")) == (2, 1.0, 1.0)


# --- log-probs ---


def log_probs_by_hand(logits: np.ndarray, tokens: np.ndarray, temperature: float) -> tuple[Any, Any]:
    p = np.exp(logits / temperature - (logits / temperature).max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    safe = np.where(p > 0, p, 1.0)
    return np.log(p[np.arange(len(p)), tokens]), -(p * np.log(safe)).sum(1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_and_entropies(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(13, 11)), rng.integers(0, 11, 13)
    expected = log_probs_by_hand(logits, tokens, temperature)
    found = log_probs_from_logits(torch.from_numpy(logits), torch.from_numpy(tokens), temperature)
    np.testing.assert_allclose(found.log_probs, expected[0], rtol=1e-12)
    np.testing.assert_allclose(found.entropies, expected[1], rtol=1e-12)


def test_gradient_of_log_probs_is_onehot_minus_p() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 12, generator=rng, dtype=torch.float64).requires_grad_()
    tokens = torch.randint(0, 12, (9,), generator=rng)
    upstream = torch.randn(9, generator=rng, dtype=torch.float64)
    (log_probs_from_logits(logits, tokens, 0.7).log_probs * upstream).sum().backward()
    p = (logits.detach() / 0.7).softmax(1)
    expected = upstream[:, None] / 0.7 * (torch.nn.functional.one_hot(tokens, 12) - p)
    torch.testing.assert_close(logits.grad, expected)


def test_low_precision_is_computed_in_float32_and_infinite_logits_are_fine() -> None:
    logits = torch.tensor([[-math.inf, 0.0, 1.0], [-200.0, -201.0, -202.0]])
    found = log_probs_from_logits(logits.bfloat16(), torch.tensor([1, 0]))
    assert found.log_probs.dtype == torch.float32
    expected = [-math.log(1 + math.e), -math.log(1 + math.exp(-1) + math.exp(-2))]
    torch.testing.assert_close(found.log_probs, torch.tensor(expected))
    assert found.entropies.isfinite().all()


def test_the_gradient_of_entropies_is_asked_for() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, generator=rng, dtype=torch.float64)
    logits[1, 2] = -math.inf
    logits.requires_grad_()
    tokens = torch.tensor([0, 1, 2, 3])
    assert not log_probs_from_logits(logits, tokens).entropies.requires_grad
    weights = torch.tensor([1.0, -0.5, 2.0, 0.1], dtype=torch.float64)
    (log_probs_from_logits(logits, tokens, 0.7, entropy_gradient=True).entropies * weights).sum().backward()
    p = (logits.detach() / 0.7).softmax(1)
    log_p = torch.where(p > 0, p, 1.0).log()
    entropies = -(p * log_p).sum(1, keepdim=True)
    torch.testing.assert_close(logits.grad, -weights[:, None] / 0.7 * p * (log_p + entropies))
