"""What the losses of restrl.ops do at the edges of number formats and where arguments were left out."""

from __future__ import annotations

import math

import pytest
import torch
from ops_cases import distance, random_model

from restrl import reference
from restrl.ops import grpo_loss, grpo_loss_from_logits, value_score
from restrl.reference import LossSpec, Totals

torch.set_num_threads(1)

BACKENDS = ["torch", "triton"]
ADVANTAGES = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.5, 0.7])
SEQUENCE = LossSpec(importance_sampling_level="sequence")

# NumPy speaks up in branches that a select discards; a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")


@pytest.fixture(autouse=True)
def _needs_triton(request: pytest.FixtureRequest) -> None:
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("backend") == "triton":
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("on CPU tensors, through the interpreter")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("chunk_rows", [None, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_a_loss_scale_reaches_float16_gradients_before_they_are_rounded(backend, chunk_rows, masked):
    """Gradients formed in the forward pass are far below float16's range; the scaler's factor comes later."""
    found = []
    for dtype in (torch.float32, torch.float16):
        model = random_model(4).to(torch.float16).to(dtype)
        mask = model.mask if masked else None
        out = grpo_loss(
            model.hidden, model.lm_head, model.tokens, spec=LossSpec(), advantages=ADVANTAGES * 1e-3,
            totals=Totals(6, 1e5), mask=mask, chunk_rows=chunk_rows, backend=backend,
        )  # fmt: skip
        (out.loss * 2.0**24).backward()
        found.append((model.hidden.grad, model.lm_head.grad))
    assert [g.dtype for g in found[1]] == [torch.float16] * 2
    for exact, rounded in zip(*found, strict=True):
        assert distance(rounded.float(), exact) < 2e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spec", [LossSpec(), SEQUENCE, LossSpec(entropy_coef=0.1)])
@pytest.mark.parametrize("from_logits", [False, True])
def test_a_token_of_probability_0_has_a_ratio_of_1_to_itself(backend, spec, from_logits):
    model = random_model(4).to(torch.float32)
    bias = torch.zeros(37).index_fill(0, model.tokens[0, :1], -math.inf)
    if from_logits:
        logits = (model.logits() + bias).detach().requires_grad_()
        out = grpo_loss_from_logits(logits, model.tokens, spec=spec, advantages=ADVANTAGES, backend=backend)
        inputs = [logits]
    else:
        inputs = [model.hidden, model.lm_head]
        out = grpo_loss(*inputs, model.tokens, spec=spec, advantages=ADVANTAGES, bias=bias, backend=backend)
    assert out.log_probs[0, 0] == -math.inf
    bonus = spec.entropy_coef * out.entropies.mean()
    assert out.loss.item() == pytest.approx(-(ADVANTAGES.mean() + bonus).item(), rel=1e-5)
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.loss, inputs))
    terms = reference.grpo_loss(out.log_probs, torch.ones(6, 7), ADVANTAGES, spec, entropies=out.entropies)
    assert terms.loss.item() == pytest.approx(out.loss.item(), rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_entropy_mask_without_totals_counts_what_it_lets_through(backend):
    spec = LossSpec(entropy_coef=0.1, top_entropy_quantile=0.5)
    model = random_model(4).to(torch.float32)
    kept = torch.rand(6, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    losses = [
        grpo_loss(
            model.hidden, model.lm_head, model.tokens, spec=spec, advantages=ADVANTAGES, mask=model.mask,
            entropy_mask=kept, totals=totals, backend=backend,
        ).loss
        for totals in (None, Totals.of(model.mask, kept))
    ]  # fmt: skip
    assert torch.equal(*losses)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", [None, "rms", "layer"])
def test_autocast_does_not_round_scores(backend, norm):
    made = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(40, 64, generator=made), torch.randn(64, generator=made)
    shift = torch.randn(64, generator=made) if norm == "layer" else None
    found = []
    for enabled in (False, True):
        inputs = [x.clone().requires_grad_() for x in (hidden, weight)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            score = value_score(
                inputs[0],
                torch.arange(40),
                inputs[1],
                norm=norm,
                norm_bias=shift,
                clamp=None,
                backend=backend,
            )
            gradients = torch.autograd.grad(score.square().sum(), inputs)
        found.append([score, *gradients])
    assert found[1][0].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
