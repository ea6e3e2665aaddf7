"""The public operations with backend="triton", from hidden states and logits, against float64 autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, distance, integers, random
from torch import Tensor

pytest.importorskip("triton")

from restrl import ops, reference
from restrl.kernels import loss, rows
from restrl.kernels.rows import Tile
from restrl.ops import triton_rows
from restrl.reference import LossSpec

# NumPy speaks up in branches that a select discards; a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")

B, T, H, V = 4, 3, 16, 133
HEAD = {"logit_scale": 0.7, "softcap": 4.0, "temperature": 1.2}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "TILES", ((1 << 31, Tile(128, 4)),))
    monkeypatch.setattr(loss, "BLOCK", 8)


def batch(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 0]], device=DEVICE)
    old = -random(6, B, T).abs() - 4
    old[mask == 0] = torch.nan
    return {
        "hidden": random(1, B, T, H).to(dtype),
        "lm_head": random(2, V, H).to(dtype),
        "bias": random(3, V).to(dtype),
        "tokens": integers(4, V, B, T),
        "advantages": random(5, B),
        "mask": mask,
        "old": old,
        "ref": old + 0.3 * random(7, B, T),
    }


def logits_of(hidden: Tensor, head: Tensor, bias: Tensor | None, how: dict[str, Any]) -> Tensor:
    z = hidden @ head.T
    z = (z if bias is None else z + bias) * how.get("logit_scale", 1.0)
    cap = how.get("softcap")
    return z if cap is None else cap * torch.tanh(z / cap)


def oracle(z: Tensor, data: dict[str, Any], spec: LossSpec, temperature: float = 1.0) -> Tensor:
    """The loss of logits `[B, T, V]` by autograd."""
    found = reference.log_probs_from_logits(
        z.reshape(-1, z.shape[-1]), data["tokens"].reshape(-1), temperature, entropy_gradient=True
    )
    shape = data["tokens"].shape
    given = {k: None if data[k] is None else data[k].double() for k in ("old", "ref")}
    return reference.grpo_loss(
        found.log_probs.reshape(shape), data["mask"].double(), data["advantages"].double(), spec,
        entropies=found.entropies.reshape(shape), **given,
    ).loss  # fmt: skip


def leaves(data: dict[str, Any], dtype: torch.dtype | None = None) -> list[Tensor]:
    return [
        (data[k] if dtype is None else data[k].to(dtype)).clone().requires_grad_()
        for k in ("hidden", "lm_head", "bias")
    ]


SPECS = [
    LossSpec(loss_type="dapo"),
    LossSpec(loss_type="grpo", beta=0.1, use_bias_correction_kl=True, entropy_coef=0.05),
    LossSpec(loss_type="grpo", importance_sampling_level="sequence", beta=0.04),
    LossSpec(loss_type="vespo"),
    LossSpec(loss_type="cispo", epsilon_high=1.2, top_entropy_quantile=0.5, entropy_coef=0.02),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.loss_type}-{s.importance_sampling_level}")
@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_grpo_from_hidden_states(spec: LossSpec, chunk_rows: int | None) -> None:
    data = batch()
    exact = leaves(data, torch.float64)
    correct = oracle(logits_of(*exact, HEAD), data, spec, HEAD["temperature"])
    (correct * 3).backward()
    mine = leaves(data)
    arguments = {k: data[k] for k in ("advantages", "mask", "old", "ref")}
    if spec.beta == 0:
        arguments["ref"] = None
    found = ops.grpo_loss(
        mine[0], mine[1], data["tokens"], spec=spec, bias=mine[2], chunk_rows=chunk_rows, backend="triton",
        **arguments, **HEAD,
    )  # fmt: skip
    (found.loss * 3).backward()
    assert float(found.loss.detach()) == pytest.approx(float(correct.detach()), rel=1e-5, abs=1e-6)
    for name, x, y in zip(("hidden", "lm_head", "bias"), mine, exact, strict=True):
        assert y.grad is not None
        assert float(y.grad.abs().max()) > 1e-4
        assert distance(x.grad, y.grad) < 2e-6, name
    assert (mine[0].grad[data["mask"] == 0] == 0).all()


def test_rows_that_do_not_count_hold_nan() -> None:
    data = batch()
    spec = LossSpec(beta=0.1)
    clean = leaves(data)
    run = {"spec": spec, "backend": "triton", **{k: data[k] for k in ("advantages", "mask", "old", "ref")}}
    one = ops.grpo_loss(clean[0], clean[1], data["tokens"], **run)
    one.loss.backward()
    data["hidden"][data["mask"] == 0] = torch.nan
    dirty = leaves(data)
    two = ops.grpo_loss(dirty[0], dirty[1], data["tokens"], **run)
    two.loss.backward()
    assert torch.equal(one.loss, two.loss)
    for x, y in zip(clean[:2], dirty[:2], strict=True):
        assert torch.equal(x.grad, y.grad)


def test_nothing_counts() -> None:
    data = batch()
    mine = leaves(data)
    mask = torch.zeros_like(data["mask"])
    found = ops.grpo_loss(
        mine[0],
        mine[1],
        data["tokens"],
        spec=LossSpec(),
        advantages=data["advantages"],
        mask=mask,
        backend="triton",
    )
    found.loss.backward()
    assert float(found.loss.detach()) == 0
    assert (mine[0].grad == 0).all()
    assert (mine[1].grad == 0).all()


def test_twice_the_same_and_any_chunk() -> None:
    data = batch()
    grads = []
    for chunk in (3, 3, 100):
        mine = leaves(data)
        run = {"spec": LossSpec(), "chunk_rows": chunk, "backend": "triton"}
        ops.grpo_loss(mine[0], mine[1], data["tokens"], advantages=data["advantages"], **run).loss.backward()
        grads.append([x.grad for x in mine[:2]])
    assert all(torch.equal(a, b) for a, b in zip(grads[0], grads[1], strict=True))
    assert all(distance(a, b) < 1e-6 for a, b in zip(grads[0], grads[2], strict=True))


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("spec", SPECS[:3], ids=lambda s: f"{s.loss_type}-{s.importance_sampling_level}")
def test_grpo_from_logits(spec: LossSpec, inplace: bool) -> None:
    """The last 5 columns are padding, which holds NaN."""
    data = batch()
    z = random(8, B, T, V, scale=2)
    tokens = data["tokens"] % (V - 5)
    data = {**data, "tokens": tokens, "ref": data["ref"] if spec.beta else None}
    exact = z.double().requires_grad_()
    correct = oracle(exact[..., : V - 5], data, spec, 1.3)
    (correct * 2).backward()
    mine = z.clone()
    mine[..., V - 5 :] = torch.nan
    mine[data["mask"] == 0] = torch.nan
    mine.requires_grad_()
    arguments = {k: data[k] for k in ("advantages", "mask", "old", "ref")}
    found = ops.grpo_loss_from_logits(
        mine,
        tokens,
        spec=spec,
        vocab_size=V - 5,
        temperature=1.3,
        inplace=inplace,
        backend="triton",
        **arguments,
    )
    (found.loss * 2).backward()
    assert float(found.loss.detach()) == pytest.approx(float(correct.detach()), rel=1e-5, abs=1e-6)
    assert distance(mine.grad, exact.grad) < 2e-6


def test_log_probs_and_cross_entropy() -> None:
    data = batch()
    flat, tokens = data["hidden"].reshape(-1, H), data["tokens"].reshape(-1)
    u, v = random(9, B * T), random(10, B * T)
    exact = leaves({**data, "hidden": flat}, torch.float64)
    wanted = reference.log_probs_from_logits(logits_of(*exact, {}), tokens, entropy_gradient=True)
    (wanted.log_probs @ u.double() + wanted.entropies @ v.double()).backward()
    mine = leaves({**data, "hidden": flat})
    found = ops.token_log_probs(mine[0], mine[1], tokens, bias=mine[2], chunk_rows=5, backend="triton")
    assert distance(found.log_probs, wanted.log_probs) < 2e-6
    assert distance(found.entropies, wanted.entropies) < 2e-6
    (found.log_probs @ u + found.entropies @ v).backward()
    for x, y in zip(mine, exact, strict=True):
        assert distance(x.grad, y.grad) < 3e-6
    mine, weights = leaves({**data, "hidden": flat}), u.abs()
    exact = leaves({**data, "hidden": flat}, torch.float64)
    wanted = reference.log_probs_from_logits(logits_of(*exact, {}), tokens)
    (-(wanted.log_probs @ weights.double())).backward()
    done = ops.cross_entropy_loss(
        mine[0], mine[1], tokens, weights, bias=mine[2], entropies=False, chunk_rows=5, backend="triton"
    )
    done.loss.backward()
    for x, y in zip(mine, exact, strict=True):
        assert distance(x.grad, y.grad) < 3e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_16_bits(dtype: torch.dtype) -> None:
    """Log-probs are float32's; gradients are rounded to 16 bits (the interpreter cuts bits off instead)."""
    data = batch(dtype)
    spec = LossSpec(loss_type="grpo", entropy_coef=0.05)
    data["ref"] = None
    exact = leaves(data, torch.float64)
    correct = oracle(logits_of(*exact, {}), data, spec)
    correct.backward()
    mine = leaves(data)
    found = ops.grpo_loss(
        mine[0], mine[1], data["tokens"], spec=spec, bias=mine[2], chunk_rows=2, backend="triton",
        **{k: data[k] for k in ("advantages", "mask", "old")},
    )  # fmt: skip
    found.loss.backward()
    assert float(found.loss.detach()) == pytest.approx(float(correct.detach()), rel=1e-5, abs=1e-6)
    for name, x, y in zip(("hidden", "lm_head", "bias"), mine, exact, strict=True):
        assert x.grad.dtype == dtype
        assert (x.grad.double() - y.grad).norm() < 1e-2 * y.grad.norm(), name


def test_the_buffer_is_the_only_large_memory() -> None:
    for vocabulary in (32000, 151936, 152064, 262144):
        capacity = triton_rows.chunk_rows(8192, vocabulary, 3584, torch.bfloat16)
        assert 0.75 * 1.3e9 < 4 * capacity * vocabulary <= 1.3e9 or capacity == 4096
    assert triton_rows.chunk_rows(8192, 152064, 3584, torch.bfloat16) == 2048
    assert triton_rows.chunk_rows(5, 152064, 3584, torch.bfloat16) == 5
    assert triton_rows.chunk_rows(0, 152064, 3584, torch.bfloat16) == 1
