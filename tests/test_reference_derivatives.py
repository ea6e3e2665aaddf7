"""The loss by autograd, its derivatives in closed form, and finite differences of the equations written out
apart from both, on random options. What stands at masked positions, rows without tokens, extreme ratios.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_cases import LOSSES, Case, by_autograd, random_case, random_options, written_out
from torch import Tensor

from restrl.reference import (
    EXPONENT_BOUND,
    LossSpec,
    TokenGradients,
    Totals,
    entropy_mask,
    entropy_weights,
    grpo_loss,
    loss_weights,
    token_gradients,
)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}  # of the largest entry, at least 1
DIFFERENCES = 2e-7  # of finite differences, relative as above

some_loss = st.sampled_from(LOSSES)
some_seed = st.integers(0, 2**32 - 1)


def spec_of(loss: tuple[str, str], seed: int) -> LossSpec:
    return LossSpec(**random_options(random.Random(seed), *loss))


def entropy_mask_of(spec: LossSpec, case: Case) -> Tensor | None:
    return entropy_mask(case.entropies, case.mask, spec.top_entropy_quantile) if spec.needs_batch else None


def closed_form(spec: LossSpec, case: Case, rows: Any = slice(None)) -> TokenGradients:
    """`token_gradients` of some rows of the batch `case`, which the normalisers count in full."""
    kept = entropy_mask_of(spec, case)
    totals = Totals.of(case.mask, kept)
    weights = loss_weights(case.mask, spec, totals).expand_as(case.mask)
    bonus = entropy_weights(case.mask, spec, totals, kept) if spec.entropy_coef else None
    args = [case.log_probs, case.entropies, case.mask, case.advantages, weights, bonus, case.mask.sum(1)]
    more = {"old": case.old, "ref": case.ref, "sampler": case.sampler, "entropy_mask": kept}
    more["importance_ratio"] = case.importance_ratio
    args = [None if x is None else x[rows] for x in args]
    return token_gradients(*args, spec, **{k: None if x is None else x[rows] for k, x in more.items()})


def close(found: Tensor, expected: Any, tolerance: float, note: Any = "") -> None:
    expected = torch.as_tensor(expected).to(found.dtype)
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=0, atol=tolerance * scale), (found, expected, note)


def differences(spec: LossSpec, case: Case, step: float = 1e-6) -> tuple[np.ndarray, np.ndarray]:
    """Central differences of the loss written out, by l and by H."""
    mask = entropy_mask_of(spec, case)
    kept = None if mask is None else mask.numpy()
    points = [case.log_probs.numpy(), case.entropies.numpy()]
    found = []
    for which in (0, 1):
        gradient = np.zeros_like(points[which])
        for place in np.argwhere(case.mask.numpy() > 0):
            sides = []
            for sign in (1, -1):
                moved = [p.copy() for p in points]
                moved[which][tuple(place)] += sign * step
                sides.append(written_out(spec, case, *moved, kept))
            gradient[tuple(place)] = (sides[0] - sides[1]) / (2 * step)
        found.append(gradient)
    return found[0], found[1]


@given(some_loss, some_seed)
@settings(max_examples=150, deadline=None)
def test_closed_form_autograd_and_the_equations_agree(loss: tuple[str, str], seed: int) -> None:
    spec, case = spec_of(loss, seed), random_case(seed, loss[0], rows=4, width=4)
    value, by_l, by_h = by_autograd(spec, case)
    found = closed_form(spec, case)
    tolerance = TOLERANCE[torch.float64]
    kept = entropy_mask_of(spec, case)
    equation = written_out(
        spec, case, case.log_probs.numpy(), case.entropies.numpy(), None if kept is None else kept.numpy()
    )
    close(value, equation, tolerance, spec)
    close(found.loss, value, tolerance, spec)
    close(found.d_log_prob, by_l, tolerance, spec)
    assert (found.d_entropy is None) == (spec.entropy_coef == 0)
    close(torch.zeros_like(by_h) if found.d_entropy is None else found.d_entropy, by_h, tolerance, spec)
    difference_l, difference_h = differences(spec, case)
    close(by_l, difference_l, DIFFERENCES, spec)
    close(by_h, difference_h, DIFFERENCES, spec)


@pytest.mark.parametrize("loss", LOSSES, ids="-".join)
def test_float32_follows_float64(loss: tuple[str, str]) -> None:
    for seed in range(20):
        spec, case = spec_of(loss, seed), random_case(seed, loss[0], rows=8, width=16)
        expected, narrow = closed_form(spec, case), case.cast(torch.float32)
        tolerance = TOLERANCE[torch.float32]
        for found in (closed_form(spec, narrow)[:3], by_autograd(spec, narrow)):
            for part, (x, y) in enumerate(zip(found, expected[:3], strict=True)):
                if x is not None and y is not None:
                    assert x.dtype == torch.float32
                    close(x, y, tolerance, (spec, part))


@given(some_loss, some_seed)
@settings(max_examples=60, deadline=None)
def test_what_stands_at_masked_positions_is_never_read(loss: tuple[str, str], seed: int) -> None:
    spec, case = spec_of(loss, seed), random_case(seed, loss[0])
    masked = case.mask == 0
    clean = (*by_autograd(spec, case), *closed_form(spec, case)[:2])
    assert (clean[1][masked] == 0).all()
    assert (clean[2][masked] == 0).all()
    for junk in (torch.nan, torch.inf, -torch.inf, 1e30):

        def dirty(x: Tensor | None, junk: float = junk) -> Tensor | None:
            if x is None or x.shape != masked.shape:
                return x
            return x.masked_fill(masked, junk)

        other = Case(*map(dirty, case))._replace(mask=case.mask)
        other = other._replace(advantages=case.advantages.masked_fill(masked.all(1), junk))
        found = closed_form(spec, other)
        for x, y in zip((*by_autograd(spec, other), *found[:2]), clean, strict=True):
            assert torch.equal(x, y), (spec, junk)
        if found.kl is not None:
            assert (found.kl[masked] == 0).all()
        assert not (found.clipped_low | found.clipped_high)[masked].any()


@pytest.mark.parametrize("loss", LOSSES, ids="-".join)
@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (0, 4), (2, 0)])
def test_batches_without_tokens_give_a_differentiable_zero(
    loss: tuple[str, str], shape: tuple[int, int]
) -> None:
    for seed in range(6):
        spec, case = spec_of(loss, seed), random_case(seed, loss[0], rows=3, width=4)
        ratio = torch.ones(shape[0], 1 if loss[0] != "vespo" else shape[1], dtype=torch.float64)
        case = Case(*(torch.zeros(shape, dtype=torch.float64) for _ in range(8)))._replace(
            advantages=torch.ones(shape[0], dtype=torch.float64), importance_ratio=ratio
        )
        value, by_l, by_h = by_autograd(spec, case)
        found = closed_form(spec, case)
        assert value == 0
        assert found.loss == 0
        assert torch.equal(found.d_log_prob, torch.zeros(shape, dtype=torch.float64))
        assert not by_l.any()
        assert not by_h.any()


@pytest.mark.parametrize("loss", LOSSES, ids="-".join)
def test_one_token_has_the_gradient_of_its_own_loss_at_both_levels(loss: tuple[str, str]) -> None:
    spec = LossSpec(**random_options(random.Random(1), *loss))
    case = random_case(2, loss[0], rows=3, width=7)
    one = Case(
        *(None if x is None else x[1:2, :1] for x in case._replace(advantages=case.advantages[:, None]))
    )
    one = one._replace(advantages=torch.tensor([0.7], dtype=torch.float64), mask=torch.ones(1, 1).double())
    found = closed_form(spec, one)
    value, by_l, _ = by_autograd(spec, one)
    close(found.loss, value, 1e-14)
    close(found.d_log_prob, by_l, 1e-14)
    difference_l, _ = differences(spec, one)
    close(by_l, difference_l, DIFFERENCES)


@given(some_loss, some_seed)
@settings(max_examples=60, deadline=None)
def test_rows_add_up_to_the_batch(loss: tuple[str, str], seed: int) -> None:
    spec, case = spec_of(loss, seed), random_case(seed, loss[0])
    whole = closed_form(spec, case)
    parts = [closed_form(spec, case, rows) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    close(sum((p.loss for p in parts), torch.zeros(())).double(), whole.loss, 1e-12, spec)
    close(torch.cat([p.d_log_prob for p in parts]), whole.d_log_prob, 1e-13, spec)
    kept = entropy_mask_of(spec, case)
    totals = Totals.of(case.mask, kept)
    value = torch.zeros((), dtype=torch.float64)
    for rows in (slice(0, 2), slice(2, 6)):
        given = {k: None if x is None else x[rows] for k, x in case.keywords().items()}
        given["entropy_mask"] = None if kept is None else kept[rows]
        value += grpo_loss(
            case.log_probs[rows], case.mask[rows], case.advantages[rows], spec, totals=totals, **given
        ).loss
    close(value, whole.loss, 1e-12, spec)


@given(some_loss, some_seed)
@settings(max_examples=120, deadline=None)
def test_by_token_names_a_loss_of_single_tokens_that_is_the_same(loss: tuple[str, str], seed: int) -> None:
    """Every token as a row of its own, in any order, with the A, W and n_i of its row."""
    spec, case = spec_of(loss, seed), random_case(seed, loss[0])
    level = None
    if case.importance_ratio is not None:
        level = "token" if case.importance_ratio.shape == case.mask.shape else "sequence"
    alone = spec.by_token(old=case.old is not None, sampler=case.sampler is not None, importance_ratio=level)
    if alone is None:
        assert spec.needs_sequence
        return
    kept = entropy_mask_of(spec, case)
    totals = Totals.of(case.mask, kept)
    bonus = entropy_weights(case.mask, spec, totals, kept) if spec.entropy_coef else None
    order = torch.randperm(case.mask.numel(), generator=torch.Generator().manual_seed(seed % 1000))
    order = order[case.mask.flatten()[order] > 0]

    def flat(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.expand_as(case.mask).flatten()[order][:, None]

    lengths, advantages = (flat(x[:, None])[:, 0] for x in (case.mask.sum(1), case.advantages))  # type: ignore[index]
    found = token_gradients(
        *(flat(x) for x in (case.log_probs, case.entropies, case.mask)),  # type: ignore[arg-type]
        advantages,
        flat(loss_weights(case.mask, spec, totals)),  # type: ignore[arg-type]
        flat(bonus),
        lengths,
        alone,
        old=flat(case.old),
        ref=flat(case.ref),
        sampler=flat(case.sampler),
        importance_ratio=flat(case.importance_ratio),
        entropy_mask=flat(kept),
    )
    whole = closed_form(spec, case)
    close(found.loss, whole.loss, 1e-12, spec)
    close(found.d_log_prob, flat(whole.d_log_prob), 1e-13, spec)
    assert torch.equal(found.clipped_high, flat(whole.clipped_high))  # type: ignore[arg-type]


def test_by_token_is_used_where_it_can_be() -> None:
    sequence = LossSpec(loss_type="grpo", importance_sampling_level="sequence")
    assert sequence.by_token(old=True) is None
    assert sequence.by_token(old=False) == LossSpec(loss_type="grpo")
    assert sequence.by_token(old=False, importance_ratio="sequence") == LossSpec(loss_type="grpo")
    assert sequence.by_token(old=False, importance_ratio="token") is None
    assert LossSpec(loss_type="vespo").by_token(old=False) == LossSpec(loss_type="vespo")
    assert LossSpec(loss_type="vespo").by_token(old=False, importance_ratio="token") is None
    assert LossSpec(off_policy_mask_threshold=0.1).by_token(old=False, sampler=True) is None
    corrected = LossSpec(importance_sampling_level="sequence", beta=0.1, use_bias_correction_kl=True)
    assert corrected.by_token(old=False) is None


# --- extreme ratios ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", LOSSES, ids="-".join)
def test_extreme_log_probs_give_finite_losses_and_gradients(
    loss: tuple[str, str], dtype: torch.dtype
) -> None:
    extreme = torch.tensor(
        [[0.0, -1e4, -88.0, -1e-30, -700.0], [-1e4, 0.0, -1e-30, -700.0, -88.0]], dtype=dtype
    )
    for seed in range(30):
        spec = spec_of(loss, seed)
        case = random_case(seed, loss[0], rows=2, width=5).cast(dtype)
        case = case._replace(log_probs=extreme, mask=torch.ones(2, 5, dtype=dtype))
        case = case._replace(advantages=torch.tensor([1.5, 0.0 if seed % 3 else -2.0], dtype=dtype))
        if seed % 2:
            case = case._replace(old=extreme.flip(0), ref=extreme.flip(1))
        if spec.use_bias_correction_kl and spec.beta > 0 and seed % 2:
            continue  # K r itself has no number in float32
        value, by_l, _ = by_autograd(spec, case)
        found = closed_form(spec, case)
        assert found.d_log_prob.isfinite().all(), (spec, found.d_log_prob)
        assert by_l.isfinite().all(), (spec, by_l)
        close(found.d_log_prob, by_l, 1e-5, spec)
        assert value.isfinite()
        close(found.loss, value, 1e-5, spec)


def test_a_ratio_past_the_bound_counts_as_the_bound_and_has_no_gradient() -> None:
    log_probs, old = torch.zeros(2, 1), torch.full((2, 1), -200.0)
    case = random_case(0, rows=2, width=1).cast(torch.float32)
    case = case._replace(log_probs=log_probs, mask=torch.ones(2, 1), old=old, importance_ratio=None)
    case = case._replace(advantages=torch.tensor([1.0, -1.0]))
    found = closed_form(LossSpec(loss_type="luspo"), case)
    assert found.d_log_prob.tolist() == [[0.0], [0.0]]
    assert found.loss.item() == pytest.approx((-1.2 + np.exp(EXPONENT_BOUND)) / 2, rel=1e-5)
    assert found.clipped_high.tolist() == [[True], [False]]


def test_ties_share_the_gradient_as_autograd_does() -> None:
    """Ratios at a bound and a rounding error beside it, where both branches may be equal by rounding."""
    at = torch.tensor([0.8, 1.0, 1.2, 1.5, 1.6], dtype=torch.float64).log()
    log_ratios = (at[:, None] + 1.1e-16 * torch.arange(-4, 5)).reshape(1, -1)
    halves = 0
    for delta in (None, 0.8, 1.0, 1.2, 1.6):
        spec = LossSpec(loss_type="luspo", epsilon=0.2, delta=delta)
        for a in (-1.0, 0.0, 1.0, 1 / 3, 0.84, -0.84, 0.63, -0.63):
            case = random_case(0, rows=1, width=45)._replace(log_probs=log_ratios, sampler=None)
            case = case._replace(old=torch.zeros_like(log_ratios), mask=torch.ones_like(log_ratios))
            case = case._replace(advantages=torch.tensor([a]).double(), importance_ratio=None)
            _, by_l, _ = by_autograd(spec, case)
            close(closed_form(spec, case).d_log_prob, by_l, 1e-15, (delta, a))
            share = by_l / (-log_ratios.exp() * a)
            halves += int(((share - 0.5).abs() < 0.1).sum())
    assert halves > 0
