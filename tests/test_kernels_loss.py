"""The loss kernels against the closed forms in float64, which autograd and TRL agree with."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, distance
from reference_cases import LOSSES, Case, random_case, random_options
from torch import Tensor

pytest.importorskip("triton")

from restrl import reference
from restrl.errors import RestrlError
from restrl.kernels import loss
from restrl.reference import LossSpec, TokenGradients, Totals

# NumPy speaks up in branches that a select discards; a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of several blocks, programs of several rows."""
    monkeypatch.setattr(loss, "BLOCK", 8)


def arguments(case: Case, spec: LossSpec) -> tuple[list[Any], dict[str, Any]]:
    """Of token_gradients, with NaN wherever the mask is 0."""
    case = Case(*(None if x is None else x.to(DEVICE) for x in case))
    mask = case.mask
    passed = (
        reference.entropy_mask(case.entropies, mask, spec.top_entropy_quantile) if spec.needs_batch else None
    )
    totals = Totals.of(mask, passed)
    bonus = reference.entropy_weights(mask, spec, totals, passed) if spec.entropy_coef else None

    def hidden(values: Tensor | None) -> Tensor | None:
        if values is None or values.shape != mask.shape:
            return values
        return torch.where(mask > 0, values, torch.nan)

    positional = [
        hidden(case.log_probs), hidden(case.entropies) if spec.needs_entropies else None, mask,
        case.advantages, reference.loss_weights(mask, spec, totals), bonus, mask.sum(1), spec,
    ]  # fmt: skip
    keywords = {
        "old": hidden(case.old),
        "ref": hidden(case.ref),
        "sampler": hidden(case.sampler) if spec.off_policy_mask_threshold is not None else None,
        "importance_ratio": hidden(case.importance_ratio),
        "entropy_mask": passed,
    }
    return positional, keywords


def narrow(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float64 else value


def compare(positional: list[Any], keywords: dict[str, Any], tolerance: float = 3e-6) -> TokenGradients:
    expected = reference.token_gradients(*positional, **keywords)
    found = loss.token_gradients(*map(narrow, positional), **{k: narrow(v) for k, v in keywords.items()})
    for name, x, y in zip(expected._fields, found, expected, strict=True):
        if y is None:
            assert x is None, name
        elif y.dtype == torch.bool:
            assert torch.equal(x, y), name
        else:
            assert distance(x, y) < tolerance, name
    return found


@pytest.mark.parametrize(("loss_type", "level"), LOSSES)
def test_every_loss(loss_type: str, level: str) -> None:
    rng = random.Random(f"{loss_type} {level}")
    seen = 0.0
    for _ in range(5):
        spec = LossSpec(**random_options(rng, loss_type, level))
        width = rng.choice([7, 11])
        found = compare(*arguments(random_case(rng.randrange(1000), loss_type, 5, width), spec))
        seen += float(found.d_log_prob.abs().sum())
    assert seen > 0


@pytest.mark.parametrize("loss_type", ["dapo", "cispo", "sapo", "vespo"])
def test_flat_rows(loss_type: str) -> None:
    """`[C, 1]` in slices: the losses add up, the gradients are those of the whole."""
    bound = {"epsilon_high": 1.1} if loss_type == "cispo" else {}
    spec = LossSpec(loss_type=loss_type, beta=0.04, use_bias_correction_kl=True, entropy_coef=0.01, **bound)
    case = random_case(3, loss_type)._replace(importance_ratio=None)
    if loss_type == "vespo":
        case = case._replace(old=None)
    positional, keywords = arguments(case, spec)
    whole = reference.token_gradients(*positional, **keywords)
    shape = case.mask.shape
    rows = torch.arange(shape[0], device=DEVICE).repeat_interleave(shape[1])
    by_row = (3, 6)  # advantages and lengths
    total = 0.0
    for part in rows.new_ones(len(rows)).nonzero()[:, 0].split(17):
        sliced = [
            x[rows[part]] if i in by_row
            else x.expand(shape).reshape(-1)[part][:, None] if isinstance(x, Tensor) else x
            for i, x in enumerate(positional)
        ]  # fmt: skip
        columns = {k: None if v is None else v.reshape(-1)[part][:, None] for k, v in keywords.items()}
        found = compare(sliced, columns)
        total += float(found.loss)
        assert distance(found.d_log_prob[:, 0], whole.d_log_prob.reshape(-1)[part]) < 3e-6
    assert total == pytest.approx(float(whole.loss), abs=3e-6)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_ratios_past_every_bound(level: str, beta: float) -> None:
    """On policy, with clip bounds of width 0; far past them; and beyond what exp can hold."""
    spec = LossSpec(
        importance_sampling_level=level, epsilon=0.0, epsilon_high=0.0, delta=1.0, beta=beta,
        use_bias_correction_kl=True,
    )  # fmt: skip
    for shift in (0.0, 30.0, -30.0, 300.0):
        case = random_case(5, rows=4)._replace(importance_ratio=None, sampler=None)
        case = case._replace(old=case.log_probs - shift, ref=case.log_probs + (200 if shift == -30 else 0.3))
        positional, keywords = arguments(case, spec)
        found = compare(positional, keywords, 3e-5)
        assert found.d_log_prob.isfinite().all()
        if shift == 0 and beta == 0:
            assert (found.d_log_prob[positional[2] * positional[3][:, None] != 0] != 0).all()


def test_drift_decides_over_rows() -> None:
    """Every row once kept and once dropped; without a policy to compare with, the drift is 0."""
    case = random_case(8)._replace(importance_ratio=None, old=None)
    case = case._replace(advantages=-case.advantages.abs() - 0.1)
    for sampler, threshold, kept in (
        (0.5, 0.4, False),
        (0.5, 0.6, True),
        (None, 0.0, True),
        (None, -0.1, False),
    ):
        drifting = case._replace(sampler=None if sampler is None else case.log_probs + sampler)
        found = compare(*arguments(drifting, LossSpec(off_policy_mask_threshold=threshold)))
        assert bool((found.d_log_prob != 0).any()) is kept


def test_no_rows_no_tokens_one_token() -> None:
    for rows, width in ((0, 3), (2, 0), (1, 1)):
        mask = torch.ones(rows, width, device=DEVICE)
        values = torch.full((rows, width), -0.5, device=DEVICE)
        a, n = torch.ones(rows, device=DEVICE), torch.full((rows,), float(width), device=DEVICE)
        for level in ("token", "sequence"):
            spec = LossSpec(importance_sampling_level=level)
            found = loss.token_gradients(values, None, mask, a, mask, None, n, spec, old=values - 0.1)
            expected = reference.token_gradients(values, None, mask, a, mask, None, n, spec, old=values - 0.1)
            assert float(found.loss) == pytest.approx(float(expected.loss), abs=1e-6)
            assert found.d_log_prob.shape == (rows, width)


def test_what_the_spec_needs_is_asked_for() -> None:
    x = torch.zeros(1, 1, device=DEVICE)
    with pytest.raises(RestrlError, match="beta"):
        loss.token_gradients(x, None, x, x[0], x, None, x[0], LossSpec(beta=0.1))
    with pytest.raises(RestrlError, match="advantages"):
        loss.token_gradients(x, None, x, torch.zeros(2, device=DEVICE), x, None, x[0], LossSpec())


def test_twice_the_same() -> None:
    for level in ("token", "sequence"):
        spec = LossSpec(importance_sampling_level=level, beta=0.1)
        positional, keywords = arguments(random_case(2, rows=9, width=20), spec)
        keywords = {name: narrow(value) for name, value in keywords.items()}
        one, two = (loss.token_gradients(*map(narrow, positional), **keywords) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True) if a is not None)
