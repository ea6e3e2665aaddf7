"""The reference losses against formulas written apart from them (float64 numpy), finite differences and
TRL's numbers.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from restrl.config import TrainConfig
from restrl.errors import RestrlError
from restrl.reference import (
    PRESETS,
    LossSpec,
    Totals,
    group_std,
    grouped_advantages,
    grpo_loss,
    log_probs_from_hidden,
    log_probs_from_logits,
)

FROZEN = Path(__file__).parent / "golden" / "trl_grpo_loss.jsonl"
NAN = float("nan")


# --- advantages ---


def advantages_by_hand(groups: list[list[float]], scale: str) -> list[list[float]]:
    everything = [r for g in groups for r in g if not math.isnan(r)]
    out = []
    for group in groups:
        scored = [r for r in group if not math.isnan(r)]
        mean = sum(scored) / len(scored) if scored else 0.0
        pool = scored if scale == "group" else everything
        std = float(np.std(pool, ddof=1)) if len(pool) > 1 else 0.0
        divisor = 1.0 if scale == "none" else std + 1e-4
        out.append([0.0 if math.isnan(r) or len(scored) < 2 else (r - mean) / divisor for r in group])
    return out


GROUPS = [
    [0.0, 0.5, 1.0, 0.25],
    [0.3, 0.3, 0.3, 0.3],
    [NAN, 0.9, 0.1, 0.4],
    [NAN, NAN, 0.7, NAN],
    [NAN, NAN, NAN, NAN],
    [0.301, 0.3, 0.3, 0.3],
]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_equal_the_formula(scale: Any) -> None:
    found = grouped_advantages(torch.tensor(GROUPS, dtype=torch.float64), scale)
    np.testing.assert_allclose(found, advantages_by_hand(GROUPS, scale), rtol=1e-12, atol=1e-14)


def test_advantages_divide_by_sample_std_plus_eps_outside_the_root() -> None:
    a = grouped_advantages(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    assert a[0, 0].item() == pytest.approx(0.5 / (math.sqrt(0.5) + 1e-4), rel=1e-12)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_equal_rewards_give_exactly_zero(scale: Any, size: int) -> None:
    values = torch.arange(1, 300, dtype=torch.float32)[:, None] / 299  # every constant a group of its own
    assert (grouped_advantages(values.expand(-1, size), scale) == 0).all()
    assert (group_std(values.expand(-1, size)) == 0).all()


def test_group_std_is_the_sample_std_of_the_scorable() -> None:
    found = group_std(torch.tensor(GROUPS, dtype=torch.float64))
    assert found[0].item() == pytest.approx(np.std(GROUPS[0], ddof=1))
    assert found[2].item() == pytest.approx(np.std([0.9, 0.1, 0.4], ddof=1))
    assert found[3].item() == 0.0


# --- the loss ---


def batch() -> tuple[torch.Tensor, ...]:
    """Log-probs, old, reference, mask and advantages that the frozen numbers were made from."""
    i = torch.arange(20, dtype=torch.float64).reshape(4, 5)
    log_probs = -0.3 - 1.5 * torch.sin(1.7 * i + 0.3) ** 2
    old = log_probs + 0.9 * torch.sin(2.9 * i + 1.0)
    ref = log_probs + 0.6 * torch.cos(1.3 * i)
    mask = (torch.arange(5)[None] < torch.tensor([5, 3, 1, 0])[:, None]).double()
    advantages = torch.tensor([0.8, -1.1, 0.6, -0.3], dtype=torch.float64)
    return log_probs, old, ref, mask, advantages


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


def loss_by_hand(
    log_p: Any, old: Any, ref: Any, mask: Any, advantages: Any, spec: LossSpec
) -> tuple[float, np.ndarray]:
    """Loss and dloss/dl token by token, after the gradient formulas of the equations (not autograd)."""
    high = 1 + (spec.epsilon if spec.epsilon_high is None else spec.epsilon_high)
    low = 1 - spec.epsilon
    rows, width = mask.shape
    loss, gradient = 0.0, np.zeros((rows, width))
    for i in range(rows):
        n = max(1.0, mask[i].sum())
        d = [log_p[i, t] - old[i, t] for t in range(width)]
        mean_d = sum(d[t] for t in range(width) if mask[i, t]) / n
        through_ratio = 0.0
        for t in range(width):
            if not mask[i, t]:
                continue
            w = {
                "grpo": 1 / (rows * n),
                "bnpo": 1 / mask.sum(),
                "dapo": 1 / mask.sum(),
                "dr_grpo": 1 / (rows * (spec.max_completion_length or 1)),
            }[spec.loss_type]
            sequence = spec.importance_sampling_level == "sequence"
            r, a = math.exp(mean_d if sequence else d[t]), advantages[i]
            bound = math.inf if spec.delta is None else spec.delta
            plain, clipped = min(r, bound) * a, min(max(r, low), high) * a
            policy = -min(plain, clipped)
            live = r <= bound if plain < clipped else low <= r <= high
            d_policy = -r * a if live else 0.0  # by log r
            x = ref[i, t] - log_p[i, t]
            k = math.exp(x) - x - 1
            correction = r if spec.use_bias_correction_kl else 1.0
            loss += w * (policy + spec.beta * k * correction)
            by_l = spec.beta * (1 - math.exp(x)) * correction
            by_ratio = d_policy + (spec.beta * k * r if spec.use_bias_correction_kl else 0.0)
            gradient[i, t] += w * by_l
            if sequence:
                through_ratio += w * by_ratio
            else:
                gradient[i, t] += w * by_ratio
        gradient[i] += mask[i] / n * through_ratio
    return loss, gradient


SPECS = [
    LossSpec(
        loss_type=loss_type,  # type: ignore[arg-type]
        importance_sampling_level=level,  # type: ignore[arg-type]
        epsilon=0.15,
        epsilon_high=high,
        delta=delta,
        beta=beta,
        use_bias_correction_kl=corrected,
        max_completion_length=7,
    )
    for loss_type, level, high, delta, beta, corrected in itertools.product(
        ["grpo", "bnpo", "dr_grpo", "dapo"],
        ["token", "sequence"],
        [None, 0.3],
        [None, 1.4],
        [0.0, 0.3],
        [False, True],
    )
]


def random_batch(seed: int, rows: int = 6, width: int = 7) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(seed)
    log_probs = -rng.exponential(1.0, (rows, width))
    old, ref = (log_probs + rng.normal(0, s, (rows, width)) for s in (0.4, 0.8))
    lengths = np.array([0, 1, width, *rng.integers(1, width + 1, rows - 3)])
    mask = (np.arange(width) < lengths[:, None]).astype(float)
    return tuple(map(torch.from_numpy, (log_probs, old, ref, mask, rng.normal(0, 1, rows))))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_values_and_gradients_equal_the_written_out_formulas(seed: int) -> None:
    for spec in SPECS:
        log_probs, old, ref, mask, advantages = random_batch(seed)
        log_probs.requires_grad_()
        found = grpo_loss(log_probs, mask, advantages, spec, old=old, ref=ref)
        found.loss.backward()
        loss, gradient = loss_by_hand(
            *(x.detach().numpy() for x in (log_probs, old, ref, mask, advantages)), spec
        )
        assert found.loss.item() == pytest.approx(loss, abs=1e-12), spec
        np.testing.assert_allclose(log_probs.grad, gradient, atol=1e-12, err_msg=str(spec))


def test_gradients_equal_finite_differences() -> None:
    for spec in SPECS[::5]:
        log_probs, old, ref, mask, advantages = random_batch(3, rows=4, width=3)

        def loss(x: torch.Tensor, spec: LossSpec = spec, rest: Any = (old, ref, mask, advantages)) -> Any:
            return grpo_loss(x, rest[2], rest[3], spec, old=rest[0], ref=rest[1]).loss

        assert torch.autograd.gradcheck(loss, (log_probs.requires_grad_(),), eps=1e-7, atol=1e-6)


def test_without_old_log_probs_the_ratio_is_one_and_its_gradient_is_not_zero() -> None:
    log_probs, _, _, mask, advantages = batch()
    log_probs.requires_grad_()
    grpo_loss(log_probs, mask, advantages, LossSpec(loss_type="bnpo")).loss.backward()
    expected = -advantages[:, None] * mask / mask.sum()
    np.testing.assert_allclose(log_probs.grad, expected, atol=1e-14)


@pytest.mark.parametrize("spec", [s for s in SPECS if s.beta > 0][::3])
def test_what_stands_at_masked_positions_is_never_read(spec: LossSpec) -> None:
    def gradient(junk: float | None) -> tuple[float, torch.Tensor]:
        log_probs, old, ref, mask, advantages = batch()
        if junk is not None:
            for tensor in (log_probs, old, ref):
                tensor[mask == 0] = junk
        log_probs.requires_grad_()
        loss = grpo_loss(log_probs, mask, advantages, spec, old=old, ref=ref).loss
        loss.backward()
        assert log_probs.grad is not None
        return loss.item(), log_probs.grad

    loss, grad = gradient(None)
    for junk in (NAN, math.inf, -math.inf, 1e30):
        other_loss, other_grad = gradient(junk)
        assert other_loss == loss
        assert torch.equal(grad, other_grad)
    assert (grad[batch()[3] == 0] == 0).all()


def test_a_fully_masked_batch_is_a_differentiable_zero() -> None:
    for spec in SPECS[::7]:
        log_probs, old, ref, mask, advantages = batch()
        log_probs.requires_grad_()
        loss = grpo_loss(log_probs, mask * 0, advantages, spec, old=old, ref=ref).loss
        loss.backward()
        assert loss.item() == 0
        assert log_probs.grad is not None
        assert (log_probs.grad == 0).all()


@pytest.mark.parametrize("spec", SPECS[::3])
def test_parts_add_up_to_the_whole(spec: LossSpec) -> None:
    log_probs, old, ref, mask, advantages = random_batch(5)
    whole = grpo_loss(log_probs, mask, advantages, spec, old=old, ref=ref).loss
    totals = Totals(6, float(mask.sum()))
    parts = sum(
        grpo_loss(log_probs[i], mask[i], advantages[i], spec, old=old[i], ref=ref[i], totals=totals).loss
        for i in (slice(0, 1), slice(1, 4), slice(4, 6))
    )
    assert float(parts) == pytest.approx(float(whole), abs=1e-13)


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


# --- what does not go together ---


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"loss_type": "dapo"}, ("dapo", "0.18.2")),
        ({"importance_sampling_level": "sequence"}, ("sequence", "0.18.2")),
        ({"scale_rewards": "batch"}, ("batch", "0.18.2")),
        ({"epsilon": 0.3, "delta": 0.5}, ("delta", "epsilon")),
        ({"epsilon": 1.5}, ("epsilon",)),
    ],
)
def test_unsupported_combinations_name_both_options(options: dict[str, Any], names: tuple[str, ...]) -> None:
    with pytest.raises(RestrlError) as error:
        LossSpec.from_config(TrainConfig(**options))
    assert all(name in str(error.value) for name in names)


def test_other_mistakes_raise() -> None:
    log_probs, _, _, mask, advantages = batch()
    with pytest.raises(RestrlError, match=r"beta 0\.1 .* ref"):
        grpo_loss(log_probs, mask, advantages, LossSpec(beta=0.1))
    with pytest.raises(RestrlError, match=r"dr_grpo.*max_completion_length"):
        LossSpec(loss_type="dr_grpo")
    with pytest.raises(RestrlError, match="loss_type 'x'"):
        LossSpec(loss_type="x")  # type: ignore[arg-type]
    with pytest.raises(RestrlError, match="scale_rewards"):
        grouped_advantages(torch.zeros(1, 2), "x")  # type: ignore[arg-type]


def test_defaults_are_the_paper_s() -> None:
    spec = LossSpec.from_config(TrainConfig())
    assert (spec.loss_type, spec.beta, spec.epsilon, spec.delta) == ("bnpo", 0.04, 0.2, None)
    assert (spec.importance_sampling_level, spec.use_bias_correction_kl) == ("token", False)
    assert LossSpec.from_config(TrainConfig(preset="1.16")).use_bias_correction_kl


# --- log-probs ---


def log_probs_by_hand(logits: np.ndarray, tokens: np.ndarray, temperature: float) -> tuple[Any, Any]:
    p = np.exp(logits / temperature - (logits / temperature).max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    safe = np.where(p > 0, p, 1.0)
    return np.log(p[np.arange(len(p)), tokens]), -(p * np.log(safe)).sum(1)


@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (0.7, None), (1.3, 5.0)])
def test_log_probs_and_entropies(temperature: float, softcap: float | None) -> None:
    rng = np.random.default_rng(0)
    hidden, weight, bias = rng.normal(size=(13, 6)), rng.normal(size=(11, 6)), rng.normal(size=11)
    tokens = rng.integers(0, 11, 13)
    logits = hidden @ weight.T + bias
    if softcap is not None:
        logits = softcap * np.tanh(logits / softcap)
    expected = log_probs_by_hand(logits, tokens, temperature)
    options: dict[str, Any] = {"temperature": temperature, "softcap": softcap}
    for chunk in (1, 4, 100):
        found = log_probs_from_hidden(
            *map(torch.from_numpy, (hidden, weight, tokens)),
            bias=torch.from_numpy(bias),
            chunk=chunk,
            **options,
        )
        np.testing.assert_allclose(found.log_probs, expected[0], rtol=1e-12)
        np.testing.assert_allclose(found.entropies, expected[1], rtol=1e-12)


def test_gradient_of_log_probs_is_onehot_minus_p_and_independent_of_chunks() -> None:
    rng = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(s, 5, generator=rng, dtype=torch.float64) for s in (9, 12))
    tokens = torch.randint(0, 12, (9,), generator=rng)
    upstream = torch.randn(9, generator=rng, dtype=torch.float64)
    p = (hidden @ weight.T / 0.7).softmax(1)
    d_logits = upstream[:, None] / 0.7 * (torch.nn.functional.one_hot(tokens, 12) - p)
    for chunk in (2, 9):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        found = log_probs_from_hidden(h, w, tokens, temperature=0.7, chunk=chunk).log_probs
        (found * upstream).sum().backward()
        torch.testing.assert_close(h.grad, d_logits @ weight)
        torch.testing.assert_close(w.grad, d_logits.T @ hidden)


def test_low_precision_is_computed_in_float32_and_infinite_logits_are_fine() -> None:
    logits = torch.tensor([[-math.inf, 0.0, 1.0], [-200.0, -201.0, -202.0]])
    found = log_probs_from_logits(logits.bfloat16(), torch.tensor([1, 0]))
    assert found.log_probs.dtype == torch.float32
    expected = [-math.log(1 + math.e), -math.log(1 + math.exp(-1) + math.exp(-2))]
    torch.testing.assert_close(found.log_probs, torch.tensor(expected))
    assert found.entropies.isfinite().all()
