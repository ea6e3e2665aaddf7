"""What the engine of restrl.ops computes and what it leaves out, and what it says about wrong arguments."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ops_cases import distance, gradients, oracle_log_probs, oracle_loss, others, random_model
from torch.utils._python_dispatch import TorchDispatchMode

import restrl.ops
from restrl.errors import RestrlError
from restrl.ops import (
    cross_entropy_loss,
    grouped_advantages,
    grpo_loss,
    grpo_loss_from_logits,
    token_log_probs,
)
from restrl.reference import LossSpec, Totals, advantages_by_group

torch.set_num_threads(1)

ADVANTAGES = torch.tensor([1.0, -0.5, 0.25, -2.0, 0.75, 0.0])


class Work(TorchDispatchMode):
    """Counts matmuls of the head by the rows they take, and the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.rows, self.largest = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            self.rows.append(args[0 if func.overloadpacket is torch.ops.aten.mm else 1].shape[0])
        for out in result if isinstance(result, tuple | list) else [result]:
            if isinstance(out, torch.Tensor):
                self.largest = max(self.largest, out.numel())
        return result


def loss_of(model, spec=None, **more):
    given = {"advantages": ADVANTAGES, "mask": model.mask, **more}
    return grpo_loss(model.hidden, model.lm_head, model.tokens, spec=spec or LossSpec(), **given)


@pytest.mark.parametrize(
    ("spec", "chunk_rows", "frozen", "forward", "backward"),
    [
        (LossSpec(), 100, "", 3, 0),
        (LossSpec(), 100, "lm_head", 2, 0),
        (LossSpec(), 100, "hidden", 2, 0),
        (LossSpec(importance_sampling_level="sequence"), 100, "", 3, 0),  # chunks of whole completions
        (LossSpec(importance_sampling_level="sequence"), 3, "", 1, 3),
        (LossSpec(top_entropy_quantile=0.5), 100, "", 1, 3),
        (LossSpec(), 100, "hidden lm_head", 1, 0),
    ],
)
def test_matmuls(spec, chunk_rows, frozen, forward, backward):
    """Of 3 per row and chunk, those whose results nobody wants are not made."""
    model = random_model(2)
    for name in frozen.split():
        getattr(model, name).requires_grad_(False)
    given = {} if spec == LossSpec() else {"old": model.mask - 5}
    live = ((model.mask > 0) & (ADVANTAGES != 0)[:, None]).sum()
    chunks = -(-int(live) // chunk_rows)
    with Work() as work:
        loss = loss_of(model, spec, chunk_rows=chunk_rows, **given).loss
    assert len(work.rows) == pytest.approx(forward * chunks, abs=forward)
    assert (chunks > 1) or len(work.rows) == forward
    if loss.requires_grad:
        with Work() as work:
            loss.backward()
        assert bool(work.rows) == bool(backward)
        assert (chunks > 1) or len(work.rows) == backward


def test_no_gradient_no_work():
    model = random_model(2, rows=6, width=20, hidden=4, vocabulary=300)
    with torch.no_grad(), Work() as work:
        out = loss_of(model, chunk_rows=8)
    assert not out.loss.requires_grad
    assert all(rows <= 8 for rows in work.rows)
    assert len(work.rows) == -(-int(out.computed.sum()) // 8)
    assert work.largest == 8 * 300  # the buffer, and a scratch block
    assert torch.equal(out.log_probs, loss_of(model, chunk_rows=8).log_probs)


def test_chunks_of_whole_completions_stay_within_the_buffer():
    model = random_model(2)
    with Work() as work:
        loss_of(model, LossSpec(importance_sampling_level="sequence"), chunk_rows=12, old=model.mask - 5)
    taken = [rows for rows in work.rows if rows != 37]  # but for the products that give the head's gradient
    assert max(taken) <= 12
    assert len(taken) < 2 * 5  # more than one completion at a time


def test_nothing_of_the_size_of_all_logits_is_ever_made():
    model = random_model(2, rows=6, width=50, hidden=6, vocabulary=500).to(torch.float32)
    for spec in (LossSpec(), LossSpec(top_entropy_quantile=0.5, entropy_coef=0.1)):
        with Work() as work:
            loss_of(model, spec, chunk_rows=8).loss.backward()
        assert work.largest == 8 * 500  # the buffer of 8 rows; all rows have 150000 logits


def test_rows_without_gradient_are_not_computed():
    model = random_model(2)
    model.mask[0] = 0
    with Work() as work:
        out = loss_of(model)
    live = (model.mask > 0) & (ADVANTAGES != 0)[:, None]
    assert torch.equal(out.computed, live)
    assert work.rows[0] == live.sum()
    assert (out.log_probs[~live] == 0).all()
    assert not (out.log_probs[live] == 0).any()
    assert torch.equal(loss_of(model, drop_zero_advantages=False).computed, model.mask > 0)
    reference = torch.zeros(6, 7, dtype=torch.float64)
    assert torch.equal(loss_of(model, LossSpec(beta=0.1), ref=reference).computed, model.mask > 0)
    assert torch.equal(loss_of(model, LossSpec(entropy_coef=0.1)).computed, model.mask > 0)
    assert torch.equal(loss_of(model, LossSpec(top_entropy_quantile=0.3)).computed, model.mask > 0)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_masked_rows_may_hold_anything(poison, level):
    spec = LossSpec(loss_type="grpo", importance_sampling_level=level, beta=0.1, entropy_coef=0.1,
                    off_policy_mask_threshold=0.5)  # fmt: skip
    model = random_model(4)
    _, given = others(model, 4, spec)
    given["importance_ratio"] = torch.rand(6, 7, dtype=torch.float64)
    given["sampler"] = given["ref"] + 0.1
    clean = loss_of(model, spec, **given)
    grads = gradients(clean.loss, model.inputs())
    dead = model.mask == 0
    hidden = model.hidden.detach().clone().masked_fill_(dead[..., None], poison).requires_grad_()
    given = {k: None if x is None else x.masked_fill(dead, poison) for k, x in given.items()}
    tokens = model.tokens.masked_fill(dead, -100)
    out = grpo_loss(
        hidden,
        model.lm_head,
        tokens,
        spec=spec,
        advantages=ADVANTAGES,
        mask=model.mask,
        chunk_rows=9,
        **given,
    )
    found = gradients(out.loss, [hidden, model.lm_head])
    assert out.loss.item() == pytest.approx(clean.loss.item(), rel=1e-12)
    assert all(distance(a, b) < 1e-12 for a, b in zip(found, grads, strict=True))
    assert (found[0][dead] == 0).all()
    logits = torch.nan_to_num(hidden.detach() @ model.lm_head.detach().T).masked_fill_(
        dead[..., None], poison
    )
    logits.requires_grad_()
    again = grpo_loss_from_logits(logits, tokens, spec=spec, advantages=ADVANTAGES, mask=model.mask, **given)
    assert again.loss.item() == pytest.approx(clean.loss.item(), rel=1e-12)
    (grad,) = gradients(again.loss, [logits])
    assert (grad[dead] == 0).all()
    assert grad.isfinite().all()


@pytest.mark.parametrize("spec", [
    LossSpec(), LossSpec(loss_type="vespo"), LossSpec(top_entropy_quantile=0.5, entropy_coef=0.1),
    LossSpec(loss_type="grpo", importance_sampling_level="sequence"),
])  # fmt: skip
@pytest.mark.parametrize("case", ["masked", "no rows", "zero advantages"])
def test_nothing_to_learn_gives_a_differentiable_zero(case, spec):
    model = random_model(4)
    if case == "no rows":
        model = replace(model, hidden=model.hidden[:0].detach().requires_grad_(), tokens=model.tokens[:0])
    given = {"mask": model.mask * 0, "advantages": ADVANTAGES, "old": model.tokens.double()}
    if case == "no rows":
        given = {"advantages": ADVANTAGES[:0]}
    if case == "zero advantages":
        given = {"advantages": torch.zeros(6), "mask": model.mask}
        spec = replace(spec, entropy_coef=0.0)
    out = loss_of(model, spec, **{"mask": None, **given})
    assert out.loss.item() == 0
    out.loss.backward()
    assert (model.lm_head.grad == 0).all()
    assert (model.hidden.grad == 0).all()
    assert out.log_probs.shape == model.tokens.shape
    logits = model.logits().detach().requires_grad_()
    loss = grpo_loss_from_logits(logits, model.tokens, spec=spec, **{"mask": None, **given}).loss
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_one_token():
    model = random_model(4, rows=1, width=1)
    model = replace(model, mask=torch.ones(1, 1))
    out = loss_of(model, advantages=torch.ones(1))
    expected = oracle_loss(model, LossSpec(), torch.ones(1))
    for a, b in zip(
        gradients(out.loss, model.inputs()), gradients(expected.loss, model.inputs()), strict=True
    ):
        assert distance(a, b) < 1e-12


def test_backward_passes():
    model = random_model(4)
    loss = loss_of(model).loss
    whole = gradients(loss, model.inputs())
    again = loss_of(model).loss
    again.backward(retain_graph=True)
    with pytest.raises(RestrlError, match="first backward pass took the gradients"):
        again.backward()
    logits = model.logits()
    from_logits = grpo_loss_from_logits(logits, model.tokens, spec=LossSpec(), advantages=ADVANTAGES).loss
    recomputed = token_log_probs(model.hidden, model.lm_head, model.tokens).log_probs.sum()
    for one in (loss_of(model).loss, from_logits, recomputed):
        with pytest.raises(RestrlError, match="no second derivatives"):
            torch.autograd.grad(one, [model.hidden], create_graph=True)
    scaled = gradients(loss_of(model).loss * 3 - 1, model.inputs(), -0.5)
    assert all(distance(a, -1.5 * b) < 1e-12 for a, b in zip(scaled, whole, strict=True))
    nothing = gradients(loss_of(model).loss, model.inputs(), 0.0)
    assert all((g == 0).all() for g in nothing)


def test_a_tied_head_gets_both_gradients():
    embedding = torch.randn(37, 12, dtype=torch.float64, requires_grad=True)
    model = random_model(4)

    def loss(tied, op):
        m = replace(model, hidden=tied[model.tokens].tanh(), lm_head=tied)
        return loss_of(m).loss if op else oracle_loss(m, LossSpec(), ADVANTAGES).loss

    (found,), (expected,) = (gradients(loss(embedding, op), [embedding]) for op in (True, False))
    assert distance(found, expected) < 1e-12


def test_results_are_bitwise_repeatable():
    model = random_model(4, rows=6, width=30, hidden=32, vocabulary=300).to(torch.bfloat16)
    one, two = (gradients(loss_of(model, chunk_rows=32).loss, model.inputs()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_autocast_sets_the_type_of_the_matmuls_alone():
    """As with torch's linear layers: 16-bit matmuls; log-probs and the gradient of the head stay float32."""
    model = random_model(4, hidden=32, vocabulary=200).to(torch.float32)
    low = model.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = loss_of(model)
        expected = loss_of(low)
    outside = loss_of(low)
    assert torch.equal(expected.log_probs, outside.log_probs)
    assert torch.equal(out.log_probs, outside.log_probs)
    assert out.log_probs.dtype == torch.float32
    found, rounded = gradients(out.loss, model.inputs()), gradients(outside.loss, low.inputs())
    assert [g.dtype for g in found] == [torch.float32] * 2
    assert all(distance(a, b) < 5e-3 for a, b in zip(found, rounded, strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        exact = loss_of(random_model(4))
    assert exact.log_probs.dtype == torch.float64


def test_padding_rows_of_the_head_never_count():
    model = random_model(4, vocabulary=37, vocab_size=30)
    with torch.no_grad():
        model.lm_head[30:] = float("nan")
    model.lm_head.requires_grad_()
    loss_of(model, vocab_size=30).loss.backward()
    assert (model.lm_head.grad[30:] == 0).all()
    assert model.lm_head.grad[:30].isfinite().all()
    assert (model.lm_head.grad[:30] != 0).any(1).all()


def test_a_bias_may_forbid_tokens():
    model = random_model(4, bias=True)
    with torch.no_grad():
        model.bias[[3, 20]] = -torch.inf
    model = replace(model, tokens=model.tokens.masked_fill((model.tokens == 3) | (model.tokens == 20), 5))
    spec = LossSpec(entropy_coef=0.1)
    out, expected = loss_of(model, spec, bias=model.bias), oracle_loss(model, spec, ADVANTAGES)
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=1e-12)
    found = gradients(out.loss, model.inputs()[:2])
    assert all(
        distance(a, b) < 1e-10
        for a, b in zip(found, gradients(expected.loss, model.inputs()[:2]), strict=True)
    )


def test_extreme_logits():
    """Far below and above zero, nearly certain tokens and tokens that cannot be."""
    model = random_model(6).to(torch.float32)
    for offset, spread in ((-300.0, 1.0), (5000.0, 1.0), (0.0, 60.0)):
        logits = (model.logits().detach() * spread + offset).requires_grad_()
        exact = logits.detach().double().requires_grad_()
        out = grpo_loss_from_logits(
            logits, model.tokens, spec=LossSpec(entropy_coef=0.1), advantages=ADVANTAGES
        )
        plain = replace(model, mask=torch.ones_like(model.mask))
        expected = oracle_loss(plain, LossSpec(entropy_coef=0.1), ADVANTAGES, logits=exact)
        seen, entropies = oracle_log_probs(plain, exact)
        assert torch.allclose(out.log_probs.double(), seen, rtol=1e-6, atol=2e-6)
        assert torch.allclose(out.entropies.double(), entropies, rtol=1e-5, atol=2e-6)
        (found,), (grad,) = gradients(out.loss, [logits]), gradients(expected.loss, [exact])
        assert distance(found, grad) < 1e-5 + 4e-8 * abs(offset)  # of the log-normaliser


def test_nearly_certain_tokens_keep_their_gradient():
    """p - 1 of a token with p = 1 - 1e-6 is known to float32's precision, though p itself is not."""
    logits = torch.full((1, 1, 50), -17.7)
    logits[..., 7] = 0.0
    logits.requires_grad_()
    exact = logits.detach().double().requires_grad_()
    tokens = torch.tensor([[7]])
    out = grpo_loss_from_logits(logits, tokens, spec=LossSpec(), advantages=torch.ones(1))
    (found,) = gradients(out.loss, [logits])
    (grad,) = gradients(-torch.log_softmax(exact, -1)[0, 0, 7], [exact])
    assert found[0, 0, 7].item() == pytest.approx(grad[0, 0, 7].item(), rel=0.2)


@pytest.mark.parametrize("head", [{}, {"bias": True, "softcap": 3.0, "logit_scale": 1.4, "temperature": 0.7}])
def test_token_log_probs(head):
    model = random_model(9, **head)
    expected = oracle_log_probs(model)
    found = token_log_probs(
        model.hidden, model.lm_head, model.tokens, mask=model.mask, chunk_rows=8, **model.head()
    )
    weights = torch.randn(2, 6, 7, dtype=torch.float64)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    pairs = zip(
        gradients((weights[0] * found[0] + weights[1] * found[1]).sum(), model.inputs()),
        gradients((weights[0] * expected[0] + weights[1] * expected[1]).sum(), model.inputs(), retain=True),
        strict=True,
    )
    assert all(distance(a, b) < 1e-10 for a, b in pairs)
    alone = token_log_probs(
        model.hidden, model.lm_head, model.tokens, mask=model.mask, **model.head()
    ).log_probs
    pairs = zip(
        gradients(alone.pow(2).sum(), model.inputs()),
        gradients(expected[0].pow(2).sum(), model.inputs()),
        strict=True,
    )
    assert all(distance(a, b) < 1e-10 for a, b in pairs)
    without = token_log_probs(
        model.hidden, model.lm_head, model.tokens, mask=model.mask, entropies=False, **model.head()
    )
    assert torch.allclose(without.log_probs, expected[0], rtol=0, atol=1e-12)
    assert without.entropies.isnan().all()


def test_log_probs_and_losses_see_the_same_policy():
    """The ratio of a policy to itself is 1 whatever path its log-probs took."""
    model = random_model(9, rows=6, width=30, hidden=32, vocabulary=300).to(torch.bfloat16)
    with torch.no_grad():
        old = token_log_probs(model.hidden, model.lm_head, model.tokens, chunk_rows=17).log_probs
    out = loss_of(model, mask=None, old=old, chunk_rows=50, drop_zero_advantages=False)
    assert float((out.log_probs - old).abs().max()) < 1e-5


@pytest.mark.parametrize("head", [{}, {"bias": True, "softcap": 3.0, "temperature": 0.7}])
def test_cross_entropy(head):
    model = random_model(10, **head)
    weights = model.mask * torch.rand(6, 7, dtype=torch.float64) / 30
    log_probs, entropies = oracle_log_probs(model)
    expected = -(weights * log_probs).sum()
    tokens = model.tokens.masked_fill(model.mask == 0, -100)
    with Work() as work:
        out = cross_entropy_loss(model.hidden, model.lm_head, tokens, weights, **model.head())
    assert len(work.rows) == 3
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(out.log_probs, log_probs, rtol=0, atol=1e-12)
    assert torch.allclose(out.entropies, entropies, rtol=0, atol=1e-12)
    pairs = zip(gradients(out.loss, model.inputs(), 2), gradients(expected, model.inputs(), 2), strict=True)
    assert all(distance(a, b) < 1e-10 for a, b in pairs)
    again = cross_entropy_loss(
        model.hidden.detach(), model.lm_head.detach(), tokens, weights, entropies=False,
        **{**model.head(), "bias": None if model.bias is None else model.bias.detach()},
    )  # fmt: skip
    assert again.entropies is None
    assert again.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert not again.loss.requires_grad


def test_grouped_advantages():
    rewards, groups = torch.tensor([1.0, 0.0, 2.0, 3.0, torch.nan]), torch.tensor([5, 5, -1, -1, 5])
    for scale in ("group", "batch", "none"):
        assert torch.equal(
            grouped_advantages(rewards, groups, scale), advantages_by_group(rewards, groups, scale)
        )
    with pytest.raises(RestrlError, match="scale_rewards"):
        grouped_advantages(rewards, groups, "groups")
    with pytest.raises(RestrlError, match="integers"):
        grouped_advantages(rewards, groups.float())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokens": torch.full((6, 7), 37)}, "token id 37 is not in the vocabulary of 37"),
        ({"tokens": torch.full((6, 7), -1)}, "token id -1 "),
        ({"vocab_size": 30, "tokens": torch.full((6, 7), 33)}, "token id 33 is not in the vocabulary of 30"),
        ({"vocab_size": 38}, "vocab_size is 38, not in 1 to 37"),
        ({"tokens": torch.zeros(6, 6, dtype=torch.long)}, r"tokens has shape \[6, 6\]"),
        ({"tokens": torch.zeros(6, 7)}, "token ids are integers"),
        ({"lm_head": torch.zeros(37, 11, dtype=torch.float64)}, r"lm_head has shape \[37, 11\]"),
        ({"lm_head": torch.zeros(37, 12)}, "hidden is torch.float64 and lm_head torch.float32"),
        ({"hidden": torch.zeros(6, 7, 12, dtype=torch.long)}, "must be a floating-point tensor"),
        ({"hidden": torch.zeros(12)}, r"hidden has shape \[12\]"),
        ({"bias": torch.zeros(36)}, r"bias has shape \[36\]"),
        ({"mask": torch.ones(6, 8)}, r"mask has shape \[6, 8\]"),
        ({"old": torch.ones(6)}, r"old has shape \[6\]"),
        ({"importance_ratio": torch.ones(7, 1)}, r"importance_ratio has shape \[7, 1\]"),
        ({"advantages": torch.ones(5)}, r"advantages has shape \[5\]; there are 6 completions"),
        ({"advantages": torch.full((6,), torch.nan)}, "advantages hold NaN"),
        ({"advantages": None}, "give either rewards and groups, or advantages"),
        ({"rewards": torch.ones(6)}, "give either rewards and groups, or advantages"),
        ({"lengths": torch.ones(6, dtype=torch.long)}, "lengths is for packed tokens"),
        ({"spec": LossSpec(beta=0.1)}, "beta 0.1 needs the reference"),
        ({"entropy_mask": torch.ones(6, 7, dtype=torch.bool)}, "entropy_mask has no meaning"),
        ({"spec": LossSpec(loss_type="vespo"), "importance_ratio": torch.ones(6, 1)}, "per token"),
        ({"temperature": 0.0}, "temperature is 0.0, not above 0"),
        ({"softcap": 0.0}, "softcap is 0.0, not above 0"),
        ({"softcap": float("inf")}, "softcap is inf, not above 0 and finite"),
        ({"logit_scale": float("nan")}, "logit_scale is nan, not a finite number"),
        ({"scale_rewards": "none"}, "scale_rewards 'none' is of rewards, and advantages are given"),
        ({"spec": LossSpec(entropy_coef=0.1, top_entropy_quantile=0.5), "totals": Totals(6, 42)},
         "totals.entropy_tokens is not set"),
        ({"chunk_rows": 0}, "chunk_rows is 0, below 1"),
        ({"backend": "cuda"}, "backend 'cuda' is unknown; there are auto, torch, triton"),
        ({"backend": "triton"}, "triton"),
        ({"scale_rewards": "x", "advantages": None, "rewards": torch.ones(6),
          "groups": torch.zeros(6, dtype=torch.long)}, "scale_rewards 'x' is unknown"),
    ],
)  # fmt: skip
def test_mistakes_are_named(change, says):
    model = random_model(4)
    arguments = {
        "hidden": model.hidden, "lm_head": model.lm_head, "tokens": model.tokens, "spec": LossSpec(),
        "advantages": ADVANTAGES, **change,
    }  # fmt: skip
    with pytest.raises(RestrlError, match=says) as caught:
        grpo_loss(**arguments)
    assert "\n" not in str(caught.value)


def test_mistakes_in_packed_rows_and_logits_are_named():
    model = random_model(4)
    flat, tokens = model.hidden.reshape(42, 12), model.tokens.reshape(42)
    for lengths, says in (
        (None, "give the completions' lengths"),
        (torch.full((6,), 6), "add up to the 42 tokens"),
        (torch.ones(42, dtype=torch.bool), "lengths must be .* integers"),
        (torch.tensor([44, -2, 0, 0, 0, 0]), "lengths holds -2"),
    ):
        with pytest.raises(RestrlError, match=says):
            grpo_loss(flat, model.lm_head, tokens, spec=LossSpec(), advantages=ADVANTAGES, lengths=lengths)
    with pytest.raises(RestrlError, match="token id"):
        grpo_loss_from_logits(model.logits(), model.tokens + 37, spec=LossSpec(), advantages=ADVANTAGES)
    spread = torch.zeros(6, 1, 37).expand(6, 7, 37)
    with pytest.raises(RestrlError, match="inplace needs logits"):
        grpo_loss_from_logits(spread, model.tokens, spec=LossSpec(), advantages=ADVANTAGES, inplace=True)
    with pytest.raises(RestrlError, match="they must agree"):
        cross_entropy_loss(model.hidden, model.lm_head, model.tokens, torch.ones(42))
    weights = torch.ones(6, 7, requires_grad=True)
    with pytest.raises(RestrlError, match="weights requires a gradient"):
        cross_entropy_loss(model.hidden, model.lm_head, model.tokens, weights)


def test_imports_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None; import torch; import restrl.ops as ops;"
        "from restrl.reference import LossSpec;"
        "print(ops.grpo_loss(torch.ones(1, 2, 3), torch.ones(4, 3), torch.zeros(1, 2, dtype=torch.long),"
        "spec=LossSpec(), advantages=torch.ones(1)).loss.item())"
    )
    root = str(Path(restrl.ops.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); " + code],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "-1.0"


def test_all_names_are_there():
    assert all(name in dir(restrl.ops) for name in restrl.ops.__all__)
