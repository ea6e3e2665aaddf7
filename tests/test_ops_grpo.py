"""The GRPO losses of restrl.ops on the CPU: every loss and option against full logits and autograd."""

import random
from dataclasses import replace

import pytest
import torch
from ops_cases import Model, distance, gradients, oracle_log_probs, oracle_loss, others, random_model
from reference_cases import LOSSES, random_options

from restrl.ops import cpu_products, grpo_loss, grpo_loss_from_logits
from restrl.reference import LossSpec, Totals

torch.set_num_threads(1)

# Relative norms of the gradients, absolute differences of log-probs (nats) against float64 on equal inputs.
TOLERANCE = {torch.float64: (1e-10, 1e-11), torch.float32: (2e-5, 5e-6)}
HEADS = [
    {},
    {"bias": True, "logit_scale": 0.7, "temperature": 0.8},
    {"softcap": 3.0, "temperature": 1.3},
    {"softcap": 2.0, "bias": True, "vocab_size": 31, "logit_scale": 1.5},
]


def compare(model: Model, spec: LossSpec, seed: int, dtype: torch.dtype, **more) -> None:
    advantages, given = others(model, seed, spec)
    expected = oracle_loss(model, spec, advantages, **given)
    grads = gradients(expected.loss, model.inputs(), 1.7)
    log_probs, entropies = oracle_log_probs(model)
    cast = model.to(dtype)
    out = grpo_loss(
        cast.hidden, cast.lm_head, cast.tokens, spec=spec, advantages=advantages, mask=cast.mask,
        **given, **cast.head(), **more,
    )  # fmt: skip
    relative, absolute = TOLERANCE[dtype]
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=relative, abs=relative)
    found = gradients(out.loss, cast.inputs(), 1.7)
    scale = max(float(g.norm()) for g in grads)
    for g, e in zip(found, grads, strict=True):
        assert float((g.double() - e).norm()) <= relative * max(float(e.norm()), 1e-3 * scale) + 1e-12
    seen = out.computed
    assert torch.allclose(out.log_probs.double(), log_probs.where(seen, 0.0), rtol=0, atol=absolute)
    assert torch.allclose(out.entropies.double(), entropies.where(seen, 0.0), rtol=0, atol=absolute)
    if spec.beta > 0:
        assert torch.allclose(out.kl.double(), expected.kl.where(seen, 0.0), rtol=1e-4, atol=absolute)
    else:
        assert out.kl is None
    if dtype == torch.float64:
        assert torch.equal(out.clipped_low, expected.clipped_low)
        assert torch.equal(out.clipped_high, expected.clipped_high)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("loss_type", "level"), LOSSES)
def test_every_loss_is_that_of_full_logits(loss_type, level, dtype):
    for seed in range(12):
        rng = random.Random(f"{loss_type} {level} {seed}")
        spec = LossSpec(**random_options(rng, loss_type, level))
        model = random_model(seed, **HEADS[seed % len(HEADS)])
        chunk_rows = rng.choice([1, 4, 7, 16, 100, None])
        compare(model, spec, seed, dtype, chunk_rows=chunk_rows, drop_zero_advantages=rng.random() < 0.7)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 5, 7, 8, 13, 41, 42, 43, 1000])
def test_chunks_of_any_size(level, chunk_rows):
    spec = LossSpec(loss_type="grpo", importance_sampling_level=level, beta=0.1, entropy_coef=0.01)
    compare(random_model(3), spec, 3, torch.float64, chunk_rows=chunk_rows)


def test_float32_does_not_depend_on_the_chunk_size():
    model = random_model(5, rows=8, width=40, hidden=32, vocabulary=501).to(torch.float32)
    advantages = torch.randn(8, generator=torch.Generator().manual_seed(1))
    found = []
    for chunk_rows in (1, 7, 64, 320, None):
        out = grpo_loss(
            model.hidden,
            model.lm_head,
            model.tokens,
            spec=LossSpec(),
            advantages=advantages,
            chunk_rows=chunk_rows,
        )
        found.append((out.log_probs, *gradients(out.loss, model.inputs())))
    for one in found[:-1]:
        assert all(distance(x, y) < 1e-6 for x, y in zip(one, found[-1], strict=True))


@pytest.mark.parametrize("chunk_rows", [32, None])  # the head's gradient is summed, or one product
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(
    ("dtype", "rounds", "near", "tolerance"),
    [
        (torch.bfloat16, True, 0.03, 1.5e-2),
        (torch.bfloat16, False, 2e-5, 4e-3),
        (torch.float16, False, 2e-5, 2e-3),
    ],
)
def test_sixteen_bits(level, dtype, rounds, near, tolerance, chunk_rows, monkeypatch):
    """Against float64 on the same 16-bit numbers; ratios stand away from the bounds, where gradients jump.
    With products of 16 bits, whatever this CPU has, and with float32's.
    """
    monkeypatch.setattr(cpu_products, "multiplies", lambda *_: rounds)
    monkeypatch.setattr(cpu_products, "TILE_ELEMENTS", 48 * 70)
    model = random_model(7, rows=6, width=20, hidden=48, vocabulary=300).to(dtype)
    exact = model.to(torch.float64)
    log_probs, _ = oracle_log_probs(exact)
    steps = torch.tensor([-0.5, -0.1, 0.1, 0.5])[torch.arange(120) % 4].reshape(6, 20)
    old = log_probs.detach() - steps
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0])
    spec = LossSpec(loss_type="grpo", importance_sampling_level=level, epsilon=0.3)
    expected = oracle_loss(exact, spec, advantages, old=old)
    out = grpo_loss(
        model.hidden, model.lm_head, model.tokens, spec=spec, advantages=advantages, mask=model.mask, old=old,
        chunk_rows=chunk_rows,
    )  # fmt: skip
    assert out.log_probs.dtype == torch.float32
    assert float((out.log_probs - log_probs.detach().where(out.computed, 0.0)).abs().max()) < near
    assert out.loss.item() == pytest.approx(expected.loss.item(), abs=near)
    found = gradients(out.loss, model.inputs())
    assert [g.dtype for g in found] == [dtype] * 2
    for g, e in zip(found, gradients(expected.loss, exact.inputs()), strict=True):
        assert distance(g, e) < tolerance


def test_bfloat16_log_probs_of_likely_tokens_are_nearly_exact():
    model = random_model(8, hidden=64, vocabulary=200, spread=8.0).to(torch.bfloat16)
    model = replace(model, tokens=model.logits().argmax(-1), mask=torch.ones_like(model.mask))
    expected, _ = oracle_log_probs(model.to(torch.float64))
    out = grpo_loss(model.hidden, model.lm_head, model.tokens, spec=LossSpec(), advantages=torch.ones(6))
    sure = expected > -0.1
    assert sure.sum() > 10
    assert float((out.log_probs - expected.detach())[sure].abs().max()) < 5e-4


@pytest.mark.parametrize("shape", ["packed", "expanded", "strided", "transposed"])
def test_other_layouts(shape):
    spec = LossSpec(loss_type="luspo", importance_sampling_level="sequence", epsilon_high=0.28)
    model = random_model(11)
    lengths = torch.tensor([0, 1, 7, 3, 5, 2])
    model = replace(model, mask=(torch.arange(7) < lengths[:, None]).double())
    advantages, given = others(model, 11, spec)
    given["importance_ratio"] = None
    hidden, lm_head, tokens = model.hidden, model.lm_head, model.tokens
    if shape == "expanded":
        hidden = hidden[:1].expand(6, 7, 12)
        model = replace(model, hidden=hidden)
    if shape == "strided":
        hidden = torch.stack([hidden, hidden * 2], 2).reshape(6, 14, 12)[:, ::2]
    if shape == "transposed":
        lm_head, hidden = lm_head.T.contiguous().T, hidden.transpose(0, 1).contiguous().transpose(0, 1)
    expected = oracle_loss(model, spec, advantages, **given)
    grads = gradients(expected.loss, model.inputs())
    layout = {"mask": model.mask}
    if shape == "packed":
        live = model.mask > 0
        hidden, tokens, layout = hidden[live], tokens[live], {"lengths": lengths}
        given = {k: None if x is None else x[live] for k, x in given.items()}
    out = grpo_loss(
        hidden, lm_head, tokens, spec=spec, advantages=advantages, chunk_rows=8, **layout, **given
    )
    assert out.log_probs.shape == tokens.shape
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=1e-12)
    for g, e in zip(gradients(out.loss, model.inputs()), grads, strict=True):
        assert distance(g, e) < 1e-10


def test_rewards_become_advantages():
    model = random_model(12)
    rewards = torch.tensor([1.0, 0.0, 0.3, torch.nan, 0.5, 0.5])
    groups = torch.tensor([4, 4, 9, 4, 9, 4])
    out = grpo_loss(
        model.hidden,
        model.lm_head,
        model.tokens,
        spec=LossSpec(),
        rewards=rewards,
        groups=groups,
        mask=model.mask,
    )
    four = rewards[[0, 1, 5]]
    assert out.advantages[[0, 1, 5]].tolist() == pytest.approx(
        ((four - four.mean()) / (four.std() + 1e-4)).tolist(), rel=1e-5
    )
    assert out.advantages[3] == 0
    assert not out.computed[3].any()
    expected = oracle_loss(model, LossSpec(), out.advantages)
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    equal = grpo_loss(
        model.hidden,
        model.lm_head,
        model.tokens,
        spec=LossSpec(),
        rewards=torch.full((6,), 0.7),
        groups=groups * 0,
    )
    assert not equal.computed.any()
    assert equal.loss.item() == 0


def test_totals_of_a_larger_batch_and_its_entropy_mask():
    """Parts of a batch add up to the whole, with the normalisers and the entropy mask of the whole."""
    spec = LossSpec(loss_type="grpo", top_entropy_quantile=0.5, entropy_coef=0.1)
    model = random_model(13)
    advantages, given = others(model, 13, spec)
    given["importance_ratio"] = None
    whole = grpo_loss(
        model.hidden, model.lm_head, model.tokens, spec=spec, advantages=advantages, mask=model.mask, **given
    )
    live = model.mask > 0
    kept = live & (whole.entropies >= whole.entropies[live].float().quantile(0.5))
    totals = Totals.of(model.mask, kept)
    parts = [
        grpo_loss(
            model.hidden[part], model.lm_head, model.tokens[part], spec=spec, advantages=advantages[part],
            mask=model.mask[part], totals=totals, entropy_mask=kept[part],
            **{k: None if x is None else x[part] for k, x in given.items()},
        ).loss
        for part in (slice(0, 2), slice(2, 6))
    ]  # fmt: skip
    assert sum(parts).item() == pytest.approx(whole.loss.item(), rel=1e-12)
    assert all(
        distance(a, b) < 1e-12
        for a, b in zip(
            gradients(sum(parts), model.inputs()), gradients(whole.loss, model.inputs()), strict=True
        )
    )


@pytest.mark.parametrize("entropies", [False, True])
@pytest.mark.parametrize("rounds", [None, False, True])
@pytest.mark.parametrize(
    "head", [{}, {"bias": True, "logit_scale": 1.5, "temperature": 0.8}, {"softcap": 300.0}]
)
def test_tokens_that_are_hardly_possible(head, rounds, entropies, monkeypatch):
    """Their probability is 0 in float32; log-probs of -100 to -700 come from the row's normaliser."""
    model = random_model(21, spread=60.0, **head).to(torch.float32 if rounds is None else torch.bfloat16)
    if rounds is not None:
        monkeypatch.setattr(cpu_products, "multiplies", lambda *_: rounds)
    exact = model.to(torch.float64)
    tokens = exact.logits().argmin(-1)
    model, exact = (replace(m, tokens=tokens, mask=torch.ones_like(m.mask)) for m in (model, exact))
    expected, surprise = oracle_log_probs(exact)
    assert expected.max() < -80
    given = {"spec": LossSpec(), "advantages": torch.ones(6), "entropies": entropies}
    out = grpo_loss(model.hidden, model.lm_head, tokens, **given, **model.head())
    relative = 1e-2 if rounds else 3e-6
    assert torch.allclose(out.log_probs.double(), expected.detach(), rtol=relative, atol=0)
    if entropies and not rounds:
        assert torch.allclose(out.entropies.double(), surprise.detach(), rtol=0, atol=3e-4)
    loss = oracle_loss(exact, LossSpec(), torch.ones(6)).loss
    for g, e in zip(
        gradients(out.loss, model.inputs()[:2]), gradients(loss, exact.inputs()[:2]), strict=True
    ):
        assert distance(g, e) < (3e-2 if rounds else 8e-3 if rounds is False else 1e-4)
    for inplace in (False, True):
        logits = exact.logits().detach().float().requires_grad_()
        shape = {k: v for k, v in model.head().items() if k != "bias"}
        work = logits * 1
        again = grpo_loss_from_logits(work, tokens, inplace=inplace, **given, **shape)
        seen, _ = oracle_log_probs(exact, logits.double())
        assert torch.allclose(again.log_probs.double(), seen.detach(), rtol=2e-6, atol=0)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("loss_type", "level"), LOSSES)
def test_from_logits(loss_type, level, dtype, inplace):
    relative, absolute = {torch.bfloat16: (8e-3, 5e-6)}.get(dtype) or TOLERANCE[dtype]
    for seed in range(4):
        rng = random.Random(f"logits {loss_type} {level} {seed}")
        spec = LossSpec(**random_options(rng, loss_type, level))
        model = random_model(seed, **HEADS[seed])
        full = model.logits().detach().to(dtype)
        length = full.shape[1]
        if seed % 2:  # as of TRL: sliced, so that a page is a completion; else one page is all
            full = torch.cat([full, torch.full_like(full[:, :1], 9.0)], 1)
        leaf = full.clone().requires_grad_()
        exact = full.double()[:, :length].requires_grad_()
        advantages, given = others(model, seed, spec)
        expected = oracle_loss(model, spec, advantages, logits=exact, **given)
        (grad,) = gradients(expected.loss, [exact], 1.7)
        work = (leaf * 1)[:, :length]
        head = {k: v for k, v in model.head().items() if k != "bias"}
        out = grpo_loss_from_logits(
            work,
            model.tokens,
            spec=spec,
            advantages=advantages,
            mask=model.mask,
            inplace=inplace,
            **given,
            **head,
        )
        assert out.loss.item() == pytest.approx(expected.loss.item(), rel=relative, abs=relative)
        (found,) = gradients(out.loss, [leaf], 1.7)
        assert (found[:, length:] == 0).all()
        assert float((found[:, :length].double() - grad).norm()) <= relative * float(grad.norm()) + 1e-12
        seen, _ = oracle_log_probs(model, exact)
        assert torch.allclose(out.log_probs.double(), seen.where(out.computed, 0.0), rtol=0, atol=absolute)
        if not inplace:
            assert torch.equal(work, full[:, :length])


def test_inplace_is_refused_by_autograd_where_the_logits_are_needed():
    model = random_model(1)
    hidden = model.hidden.detach().requires_grad_()
    logits = (hidden @ model.lm_head.detach().T).tanh()  # its backward pass needs its result
    loss = grpo_loss_from_logits(
        logits, model.tokens, spec=LossSpec(), advantages=torch.ones(6), inplace=True
    ).loss
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
