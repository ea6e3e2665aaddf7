"""Losses and advantages equal those of the installed TRL's own code, values and gradients, but for the
differences that docs/losses.md lists, each with a test here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from restrl.errors import RestrlError
from restrl.reference import (
    LossSpec,
    Totals,
    advantages_by_group,
    entropy_mask,
    entropy_weights,
    grouped_advantages,
    grpo_loss,
    loss_weights,
    multi_objective_advantages,
    sampler_ratio,
    token_gradients,
)

trl = pytest.importorskip("trl", minversion="1.16")

import trl_peer  # noqa: E402
from reference_cases import CLIPPED, LOSSES, Case, by_autograd, frozen_case, random_case, random_options  # noqa: E402

GOLDEN = Path(__file__).parent / "golden" / "trl_1.8.jsonl"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}
SEEDS = range(40)  # random options per loss type and level
NAN = float("nan")


def sizes(seed: int) -> dict[str, Any]:
    """How TRL's training is cut into processes and forward passes."""
    rng = random.Random(seed)
    steps = rng.choice([1, 2, 6])
    found = {"gradient_accumulation_steps": rng.choice([1, 3]), "num_processes": rng.choice([1, 2])}
    return found | {"steps_per_generation": steps, "num_items_in_batch": rng.choice([None, 3.0, 57.0])}


def with_trl(spec: LossSpec, case: Case, **more: Any) -> tuple[Tensor, ...]:
    """TRL's loss, dloss/dl and dloss/dH."""
    log_probs, entropies = (x.clone().requires_grad_() for x in (case.log_probs, case.entropies))
    given = case.keywords() | {"entropies": entropies} | more
    loss = trl_peer.loss(spec, log_probs, mask=case.mask, advantages=case.advantages, **given)
    grads = torch.autograd.grad(loss, (log_probs, entropies), allow_unused=True)
    return loss.detach(), *(torch.zeros_like(log_probs) if g is None else g for g in grads)


def in_closed_form(spec: LossSpec, case: Case, totals: Totals, kept: Tensor | None) -> tuple[Tensor, ...]:
    bonus = entropy_weights(case.mask, spec, totals, kept)
    weights = loss_weights(case.mask, spec, totals)
    args = (case.log_probs, case.entropies, case.mask, case.advantages, weights, bonus, case.mask.sum(1))
    more = {"old": case.old, "ref": case.ref, "sampler": case.sampler, "entropy_mask": kept}
    found = token_gradients(*args, spec, importance_ratio=case.importance_ratio, **more)
    assert found.d_entropy is not None
    return found.loss, found.d_log_prob, found.d_entropy


def assert_equal(
    found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float, note: Any
) -> None:
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype
        assert torch.allclose(x, y, rtol=tolerance, atol=tolerance), (note, x, y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("loss", LOSSES, ids="-".join)
def test_losses_and_gradients(loss: tuple[str, str], dtype: torch.dtype) -> None:
    """`GRPOTrainer._compute_loss` over random options, with and without l_old, sampler and sampler ratio."""
    for seed in SEEDS:
        spec = LossSpec(**random_options(random.Random(f"{loss} {seed}"), *loss))
        case, cut = random_case(seed, loss[0]).cast(dtype), sizes(seed)
        kept = (
            entropy_mask(case.entropies, case.mask, spec.top_entropy_quantile) if spec.needs_batch else None
        )
        expected = with_trl(spec, case, **cut)
        totals = Totals.as_trl(case.mask, spec, entropy_mask=kept, **cut)
        note = (spec, seed, cut)
        assert_equal(by_autograd(spec, case, totals=totals), expected, TOLERANCE[dtype], note)
        assert_equal(in_closed_form(spec, case, totals, kept), expected, TOLERANCE[dtype], note)


def test_the_random_options_meet_in_pairs() -> None:
    """Every value of every option occurs with every loss type and level that reads it."""
    for loss in LOSSES:
        drawn = [random_options(random.Random(f"{loss} {seed}"), *loss) for seed in SEEDS]
        cases = [random_case(seed, loss[0]) for seed in SEEDS]
        for name, count in (("beta", 3), ("entropy_coef", 3), ("top_entropy_quantile", 4)):
            assert len({d[name] for d in drawn}) == count, (loss, name)
        assert len({d["off_policy_mask_threshold"] for d in drawn}) == 3
        assert {(d["beta"] > 0, d["use_bias_correction_kl"]) for d in drawn} >= {(True, True), (True, False)}
        if loss[0] in CLIPPED:
            assert {d["delta"] for d in drawn} == {None, 1.6, 1.1}
        shapes = {None if c.importance_ratio is None else c.importance_ratio.shape[1] for c in cases}
        assert shapes == ({None, 7} if loss[0] == "vespo" else {None, 1, 7})
        given = {(c.old is None, c.sampler is None, c.importance_ratio is None) for c in cases}
        assert len(given) >= 7
    cuts = [sizes(seed) for seed in SEEDS]
    assert len({(c["gradient_accumulation_steps"], c["num_processes"]) for c in cuts}) == 4
    assert {(c["num_items_in_batch"], c["steps_per_generation"]) for c in cuts} >= {(57.0, 6), (3.0, 1)}


@pytest.mark.parametrize("loss", LOSSES, ids="-".join)
def test_evaluation_counts_as_one_step(loss: tuple[str, str]) -> None:
    spec = LossSpec(**random_options(random.Random(3), *loss))
    case = random_case(3, loss[0])
    kept = entropy_mask(case.entropies, case.mask, spec.top_entropy_quantile) if spec.needs_batch else None
    cut = {"num_processes": 2, "num_items_in_batch": 50.0}
    expected = with_trl(
        spec, case, training=False, gradient_accumulation_steps=4, steps_per_generation=8, **cut
    )
    totals = Totals.as_trl(case.mask, spec, entropy_mask=kept, **cut)
    assert_equal(by_autograd(spec, case, totals=totals), expected, 1e-9, spec)


@pytest.mark.parametrize("loss_type", [*CLIPPED, "cispo"])
def test_counts_of_clipped_tokens(loss_type: str) -> None:
    for seed in range(10):
        options: dict[str, Any] = {"epsilon_high": 1.2} if loss_type == "cispo" else {"delta": 1.6}
        spec = LossSpec(loss_type=loss_type, max_completion_length=9, **options)  # type: ignore[arg-type]
        case, logged = random_case(seed)._replace(importance_ratio=None, sampler=None), {}
        with_trl(spec, case, metrics=logged)
        found = grpo_loss(case.log_probs, case.mask, case.advantages, spec, old=case.old)
        low, high = (float(x.sum() / case.mask.sum()) for x in (found.clipped_low, found.clipped_high))
        if loss_type == "cispo":
            assert (low, high) == (0, pytest.approx(logged["cispo_clip_ratio"][0]))
        else:
            assert low == pytest.approx(logged["clip_ratio/low_mean"][0])
            assert high == pytest.approx(logged["clip_ratio/high_mean"][0])


# --- `_generate_and_score_completions`, with generation, model and reward functions stubbed ---


def some_rewards(seed: int, functions: int, dtype: torch.dtype) -> Tensor:
    """`[24, F]`: groups of 4, some rewards missing, some completions without any."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(24, functions, generator=generator, dtype=torch.float64)
    missing = torch.rand(24, functions, generator=generator) < 0.15
    rewards[missing] = NAN
    rewards[5] = NAN
    return rewards.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages(scale: Any, dtype: torch.dtype) -> None:
    for seed in range(10):
        rewards = some_rewards(seed, 1, dtype)
        expected = trl_peer.scored(rewards, 4, scale_rewards=scale)["advantages"]
        found = grouped_advantages(rewards.reshape(6, 4), scale).flatten()
        tolerance = TOLERANCE[dtype]
        assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance), (found, expected)
        order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
        groups = torch.arange(6).repeat_interleave(4)[order] * 7 - 3
        ragged = advantages_by_group(rewards[order, 0], groups, scale)
        assert torch.allclose(ragged, found[order], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_advantages_of_several_rewards(aggregation: Any, dtype: torch.dtype) -> None:
    groups = torch.arange(6).repeat_interleave(4)
    for seed in range(10):
        rewards, weights = some_rewards(seed, 3, dtype), torch.tensor([1.0, 0.25, -0.5])
        more = {"multi_objective_aggregation": aggregation, "reward_weights": weights}
        expected = trl_peer.scored(rewards, 4, **more)["advantages"]
        found = multi_objective_advantages(rewards, groups, weights, aggregation)
        tolerance = TOLERANCE[dtype]
        assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance), (found, expected)


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
@pytest.mark.parametrize(("cap", "floor"), [(3.0, None), (1.3, 0.7), (None, 0.9)])
def test_sampler_ratios(mode: Any, cap: float | None, floor: float | None) -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        old = torch.randn(4, 6, generator=generator)
        sampler = old + 0.5 * torch.randn(4, 6, generator=generator)
        sampler[0, 0] = NAN
        lengths = [6, 1, 4, 2]
        mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).float()
        given = {"old": old, "sampler": sampler, "lengths": lengths, "mode": mode, "cap": cap, "floor": floor}
        expected = trl_peer.scored(torch.zeros(4, 1), 2, **given)["importance_sampling_ratio"]
        found = sampler_ratio(old, sampler, mask, mode, cap, floor)
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, rtol=1e-6)


# --- release 1.8 ---


def test_release_1_8() -> None:
    """Frozen numbers of that release's own code (`python tests/trl_peer.py`)."""
    rows = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    assert {row["options"]["loss_type"] for row in rows} == {loss for loss, _ in LOSSES}
    differs = 0
    for row in rows:
        spec, case = LossSpec(**row["options"]), frozen_case(row["leave_out"])
        kept = (
            entropy_mask(case.entropies, case.mask, spec.top_entropy_quantile) if spec.needs_batch else None
        )
        zero = torch.zeros_like(case.log_probs)
        expected = [torch.tensor(row["loss"], dtype=torch.float64)]
        for key in ("by_log_prob", "by_entropy"):
            expected.append(zero if row[key] is None else torch.tensor(row[key], dtype=torch.float64))
        old_way, new_way = (
            by_autograd(
                spec,
                case,
                totals=Totals.as_trl(case.mask, spec, entropy_mask=kept, release=release, **row["sizes"]),
            )
            for release in ("1.8", "1.16")
        )
        assert_equal(old_way, tuple(expected), 2e-11, row["options"])
        differs += not torch.allclose(new_way[0], expected[0])
    assert differs >= 8


# --- where this differs from TRL on purpose ---


def test_equal_rewards_are_exactly_zero_here_and_not_in_trl() -> None:
    values = torch.arange(1, 300)[:, None] / 299
    rewards = values.expand(-1, 8).reshape(-1, 1)
    theirs = trl_peer.scored(rewards, 8)["advantages"].reshape(-1, 8)
    assert (theirs != 0).any(1).sum() > 100
    assert float(theirs.abs().max()) > 1e-3
    assert (grouped_advantages(values.expand(-1, 8)) == 0).all()


def test_infinite_rewards_are_unscorable_here_and_cost_the_group_in_trl() -> None:
    rewards = torch.tensor([math.inf, 1.0, 0.0, 0.5])
    assert not trl_peer.scored(rewards[:, None], 4)["advantages"].any()
    found = grouped_advantages(rewards[None])[0]
    assert found[0] == 0
    assert torch.allclose(found[1:], grouped_advantages(rewards[None, 1:])[0])


def test_the_logged_kl_is_plain_here_and_times_the_ratio_in_trl() -> None:
    case, logged = frozen_case(["importance_ratio", "sampler"]), {}
    assert case.old is not None
    spec = LossSpec(loss_type="grpo", beta=0.1, use_bias_correction_kl=True)
    with_trl(spec, case, metrics=logged)
    found = grpo_loss(case.log_probs, case.mask, case.advantages, spec, old=case.old, ref=case.ref)
    assert found.kl is not None
    ratio = torch.where(case.mask > 0, case.log_probs - case.old, 0.0).exp()
    tokens = case.mask.sum()
    assert float((found.kl * ratio).sum() / tokens) == pytest.approx(logged["kl"][0], rel=1e-6)
    plain = dataclasses.replace(spec, use_bias_correction_kl=False)
    with_trl(plain, case, metrics=logged)
    assert float(found.kl.sum() / tokens) == pytest.approx(logged["kl"][0], rel=1e-6)


def test_padding_is_not_read_here_and_poisons_trl() -> None:
    case = random_case(1)._replace(importance_ratio=None)
    case = case._replace(log_probs=case.log_probs.masked_fill(case.mask == 0, -math.inf))
    assert not with_trl(LossSpec(loss_type="grpo"), case)[0].isfinite()
    assert by_autograd(LossSpec(loss_type="grpo"), case)[0].isfinite()


def test_an_exploded_ratio_has_gradient_zero_where_it_is_clipped_and_nan_in_trl() -> None:
    one = torch.ones(1, 1)
    case = Case(one * 0, one, one, torch.ones(1), one * -200, one, None, None)
    assert with_trl(LossSpec(loss_type="grpo"), case)[1].isnan().all()
    assert by_autograd(LossSpec(loss_type="grpo"), case)[1] == 0


def test_vespo_reads_no_padding_of_the_sampler_ratio_and_trl_does() -> None:
    """A cap below 1 makes the ratios of padding less than 1 in TRL, which multiplies them."""
    case = random_case(4, "vespo")
    outside = torch.where(case.mask > 0, 1.0, 0.5)
    case = case._replace(importance_ratio=outside)
    plain = case._replace(importance_ratio=torch.ones_like(outside))
    spec = LossSpec(loss_type="vespo")
    assert torch.equal(by_autograd(spec, case)[0], by_autograd(spec, plain)[0])
    assert not torch.allclose(with_trl(spec, case)[0], with_trl(spec, plain)[0])


def test_the_entropy_mask_compares_in_float32_here_and_in_both_types_in_trl() -> None:
    entropies = torch.tensor([[0.1, 0.3, 0.7]], dtype=torch.float64)  # none is a float32 number
    mask = torch.ones(1, 3, dtype=torch.float64)
    spec = LossSpec(top_entropy_quantile=0.0)
    case = random_case(0, rows=1, width=3)._replace(mask=mask, entropies=entropies, importance_ratio=None)
    assert entropy_mask(entropies, mask, 0.0).tolist() == [[False, False, True]]
    case = case._replace(advantages=torch.ones(1, dtype=torch.float64), old=None)
    assert by_autograd(spec, case)[1][0, 2] != 0
    rounded_up = float(torch.tensor(0.7)) > 0.7
    assert bool(with_trl(spec, case)[1][0, 2] == 0) == rounded_up


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"loss_type": "cispo"}, ("cispo", "epsilon_high")),
        ({"loss_type": "sapo", "delta": 2.0}, ("sapo", "delta")),
        (
            {"loss_type": "vespo", "importance_sampling_level": "sequence"},
            ("vespo", "importance_sampling_level"),
        ),
    ],
)
def test_options_that_trl_ignores_are_refused(options: dict[str, Any], names: tuple[str, ...]) -> None:
    with pytest.raises(RestrlError) as error:
        LossSpec(**options)
    assert all(name in str(error.value) for name in names)
