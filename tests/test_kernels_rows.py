"""Statistics and gradients of rows of logits, and the one-shot kernel, against autograd in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kernel_cases import DEVICE, distance, integers, random
from torch import Tensor

pytest.importorskip("triton")

from restrl import reference
from restrl.kernels import rows
from restrl.kernels.one_shot import one_shot
from restrl.kernels.rows import Tile, Transform
from restrl.ops.rows import TokenInputs
from restrl.reference import LossSpec

# NumPy speaks up in branches that a select discards; a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")

V = 300  # two tiles and a rest
PLAIN = (1.0, None, 1.0)
How = tuple[float, float | None, float]  # logit_scale, softcap, temperature


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "TILES", ((1 << 31, Tile(128, 4)),))


def expected(
    logits: Tensor,
    tokens: Tensor,
    how: How,
    bias: Tensor | None,
    g: Tensor,
    c: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """log-probs, entropies and dloss/dlogits of loss = g log-probs + c entropies, in float64."""
    scale, cap, temperature = how
    x = logits.double().requires_grad_()
    z = (x if bias is None else x + bias.double()) * scale
    z = z if cap is None else cap * torch.tanh(z / cap)
    found = reference.log_probs_from_logits(z, tokens, temperature, entropy_gradient=True)
    (found.log_probs @ g.double() + found.entropies @ c.double()).backward()
    assert x.grad is not None
    return found.log_probs.detach(), found.entropies.detach(), x.grad


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("how", [PLAIN, (0.7, None, 1.3), (0.5, 3.0, 0.8)])
def test_values_and_gradients(how: How, split: bool) -> None:
    """With a bias; out of place and in place; rows without a gradient are 0."""
    x, tokens, bias = random(1, 6, V, scale=3), integers(2, V, 6), random(3, V)
    tokens[:3] = torch.tensor([0, V - 1, 128])
    g, c = random(4, 6), random(5, 6)
    g[4] = c[4] = 0
    log_probs, entropies, gradient = expected(x, tokens, how, bias, g, c)
    transform = Transform.of(*how)
    known = rows.statistics(x, tokens, transform, True, bias=bias, split=split)
    assert distance(known[0], log_probs) < 1e-6
    assert distance(known[1], entropies) < 1e-6
    assert (known[2] is None) is not split
    out = torch.full_like(x, torch.nan)
    rows.gradient(x, out, tokens, transform, known, g, c, bias=bias)
    assert distance(out, gradient) < 1e-6
    assert (out[4] == 0).all()
    rows.gradient(x, x, tokens, transform, known, g, c, bias=bias)
    assert torch.equal(x, out)


def test_without_entropy() -> None:
    x, tokens, g = random(1, 3, V), integers(2, V, 3), random(4, 3)
    log_probs, _, gradient = expected(x, tokens, PLAIN, None, g, torch.zeros_like(g))
    known = rows.statistics(x, tokens, Transform.of(*PLAIN), False)
    assert known[1] is None
    assert distance(known[0], log_probs) < 1e-6
    rows.gradient(x, x, tokens, Transform.of(*PLAIN), known, g, None)
    assert distance(x, gradient) < 1e-6


@pytest.mark.parametrize("vocabulary", [1, 2, 127, 128, 129, 256])
def test_vocabularies(vocabulary: int) -> None:
    """Whole tiles and rests of one: what lies past the vocabulary never counts."""
    for level in (-10.0, 10.0):
        x, tokens = random(1, 2, vocabulary) + level, integers(2, vocabulary, 2)
        g, c = random(4, 2), random(5, 2)
        log_probs, entropies, gradient = expected(x, tokens, PLAIN, None, g, c)
        known = rows.statistics(x, tokens, Transform.of(*PLAIN), True)
        assert distance(known[0], log_probs) < 2e-6
        assert distance(known[1], entropies) < 2e-6
        rows.gradient(x, x, tokens, Transform.of(*PLAIN), known, g, c)
        assert distance(x, gradient) < 2e-6


@pytest.mark.parametrize("split", [True, False])
def test_extreme_logits(split: bool) -> None:
    """Far below what exp holds, far above, falling and rising by tiles, -inf in whole tiles."""
    x, tokens = random(1, 7, V), integers(2, V, 7)
    x[0] -= 200
    x[1] = torch.linspace(-1e4, 1e4, V, device=DEVICE)
    x[2] = torch.linspace(1e4, -1e4, V, device=DEVICE)
    x[3, 140:] = -torch.inf
    x[4, :140] = -torch.inf
    x[5] = -torch.inf
    x[5, 270] = 3.0
    tokens[3:6] = torch.tensor([7, 299, 270])
    x[6, 11] = -torch.inf
    tokens[6] = 12
    g, c = random(4, 7), random(5, 7)
    log_probs, entropies, gradient = expected(x, tokens, PLAIN, None, g, c)
    known = rows.statistics(x, tokens, Transform.of(*PLAIN), True, split=split)
    assert ((known[0] - log_probs).abs() <= 1e-6 * (1 + log_probs.abs())).all()
    assert ((known[1] - entropies).abs() <= 2e-6).all()
    rows.gradient(x, x, tokens, Transform.of(*PLAIN), known, g, c)
    off = (x - gradient).abs().amax(1)
    rounded = 1e-6 if split else 2e-3  # one number for the normaliser of logits of 1e4: their spacing is 1e-3
    assert (off < torch.tensor([3e-6, rounded, rounded, *[3e-6] * 4], device=DEVICE)).all()


def test_nearly_certain_tokens_keep_their_gradient() -> None:
    """p = 1 - 1e-6 and nearer: p - 1 is exact to float32's relative precision, in 16 bits to theirs."""
    x = torch.zeros(4, V, device=DEVICE)
    tokens = torch.tensor([0, 130, 299, 5], device=DEVICE)
    x[torch.arange(4), tokens] = torch.tensor([18.0, 20.0, 22.0, 24.0], device=DEVICE)
    g, c = torch.ones(4, device=DEVICE), torch.zeros(4, device=DEVICE)
    log_probs, entropies, gradient = expected(x, tokens, PLAIN, None, g, c)
    known = rows.statistics(x, tokens, Transform.of(*PLAIN), True, split=True)
    assert (known[0] / log_probs - 1).abs().max() < 1e-5
    assert (known[1] / entropies - 1).abs().max() < 1e-5
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        out = torch.empty(4, V, dtype=dtype, device=DEVICE)
        rows.gradient(x, out, tokens, Transform.of(*PLAIN), known, g, None)
        own = gradient.gather(1, tokens[:, None])
        assert (out.gather(1, tokens[:, None]).double() / own - 1).abs().max() < tolerance


def test_rows_that_do_not_count() -> None:
    """NaN and inf in their logits, their statistics and their gradients go nowhere."""
    x, tokens = random(1, 4, V), integers(2, V, 4)
    x[1], x[2] = torch.nan, torch.inf
    tokens[1] = tokens[2] = -1
    g, c = random(4, 4), random(5, 4)
    g[1] = torch.nan
    known = rows.statistics(x, tokens, Transform.of(*PLAIN), True)
    for column in (known[0], known[1], known[3]):
        assert (column[1:3] == 0).all()
        assert (column[[0, 3]] != 0).all()
    kept = x[[0, 3]]
    rows.gradient(x, x, tokens, Transform.of(*PLAIN), known, g, c)
    assert (x[1:3] == 0).all()
    live = torch.tensor([0, 3], device=DEVICE)
    assert distance(x[live], expected(kept, tokens[live], PLAIN, None, g[live], c[live])[2]) < 1e-6


def test_no_gradient_no_look() -> None:
    """g = c = 0: zeros even where statistics were NaN."""
    x, tokens = torch.full((2, V), torch.nan, device=DEVICE), integers(2, V, 2)
    known = rows.statistics(x, tokens, Transform.of(*PLAIN), True)
    assert known[0].isnan().all()
    zero = torch.zeros(2, device=DEVICE)
    rows.gradient(x, x, tokens, Transform.of(*PLAIN), known, zero, zero)
    assert (x == 0).all()


def test_no_rows() -> None:
    x, none = torch.empty(0, V, device=DEVICE), torch.empty(0, device=DEVICE)
    known = rows.statistics(x, none.long(), Transform.of(*PLAIN), True, split=True)
    assert [k.shape for k in known] == [(0,)] * 4
    rows.gradient(x, x, none.long(), Transform.of(*PLAIN), known, none, none)


def test_narrow_gradients_in_the_memory_of_wide_logits() -> None:
    """The same bits as into memory of their own; padding of the rows never counts."""
    width, tokens, bias = 320, integers(2, V, 5), random(3, V)
    bias = torch.nn.functional.pad(bias, (0, width - V))
    g, c = random(4, 5), random(5, 5)
    g[3] = c[3] = 0
    memory = torch.full((5, width), torch.nan, device=DEVICE)
    memory[:, :V] = random(1, 5, V, scale=3)
    logits = memory[:, :V]
    values = logits.clone()
    transform = Transform.of(0.7, 5.0, 1.3)
    known = rows.statistics(logits, tokens, transform, True, bias=bias, split=True, width=width)
    gradient = expected(values, tokens, (0.7, 5.0, 1.3), bias[:V], g, c)[2]
    apart = torch.empty(5, V, dtype=torch.bfloat16, device=DEVICE)
    rows.gradient(values, apart, tokens, transform, known, g, c, bias=bias)
    inside = memory.view(torch.bfloat16)[:, :V]
    rows.gradient(logits, inside, tokens, transform, known, g, c, bias=bias, width=width)
    assert torch.equal(inside, apart)
    assert (inside[3] == 0).all()
    assert ((inside.double() - gradient).abs() <= 2**-7 * gradient.abs() + 1e-9).all()


def test_half_logits_and_strided_rows() -> None:
    big = random(1, 6, 2 * V).half()
    x, tokens, g, c = big[::2, :V], integers(2, V, 3), random(4, 3), random(5, 3)
    log_probs, entropies, gradient = expected(x, tokens, PLAIN, None, g, c)
    known = rows.statistics(x, tokens, Transform.of(*PLAIN), True)
    assert distance(known[0], log_probs) < 1e-6
    assert distance(known[1], entropies) < 1e-6
    others = big.clone()
    rows.gradient(x, x, tokens, Transform.of(*PLAIN), known, g, c)
    assert distance(x, gradient) < 1e-3
    assert torch.equal(big[1::2], others[1::2])
    assert torch.equal(big[:, V:], others[:, V:])


def test_rows_beyond_two_billion_elements(tmp_path: Path) -> None:
    """Row 2 starts past 2^31 elements: a sparse file stands for the memory, on a GPU real memory. What an
    offset of 32 bits would reach exists too.
    """
    stride, before = 2**30 + 160, 2**31
    size = before + 2 * stride + V
    if DEVICE == "cuda":
        memory = torch.empty(size, dtype=torch.float16, device=DEVICE)
    else:
        memory = torch.from_file(str(tmp_path / "logits"), shared=True, size=size, dtype=torch.float16)
    logits = memory.as_strided((3, V), (stride, 1), before)
    values = random(1, 3, V).half()
    logits.copy_(values)
    tokens, g, c = integers(2, V, 3), random(4, 3), random(5, 3)
    log_probs, _, gradient = expected(values, tokens, PLAIN, None, g, c)
    known = rows.statistics(logits, tokens, Transform.of(*PLAIN), True)
    assert distance(known[0], log_probs) < 1e-6
    rows.gradient(logits, logits, tokens, Transform.of(*PLAIN), known, g, c)
    assert distance(logits, gradient) < 1e-3


def test_twice_the_same() -> None:
    x, tokens, g, c = random(1, 5, V), integers(2, V, 5), random(4, 5), random(5, 5)
    one, two = x.clone(), x.clone()
    for y in (one, two):
        known = rows.statistics(y, tokens, Transform.of(*PLAIN), True)
        rows.gradient(y, y, tokens, Transform.of(*PLAIN), known, g, c)
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "loss_type": "grpo",
            "delta": 1.3,
            "beta": 0.1,
            "use_bias_correction_kl": True,
            "entropy_coef": 0.05,
        },
        {"loss_type": "cispo", "epsilon_high": 1.1, "beta": 0.1},
        {"loss_type": "sapo", "entropy_coef": 0.05},
        {"loss_type": "vespo"},
        {"off_policy_mask_threshold": -0.1},
    ],
)
def test_one_shot(options: dict[str, object]) -> None:
    """As statistics, loss and gradient one after the other; rows with token -1 hold NaN everywhere."""
    spec = LossSpec(**options)  # type: ignore[arg-type]
    n, how = 9, (0.7, 5.0, 1.3)
    x, tokens = random(1, n, V, scale=3), integers(2, V, n)
    tokens[4] = -1
    live = tokens >= 0
    safe = tokens.clamp(min=0)
    zero = torch.zeros(n, device=DEVICE)
    log_probs, entropies, _ = expected(x, safe, how, None, zero, zero)
    alone = spec.loss_type == "vespo" or spec.off_policy_mask_threshold is not None
    columns = {
        "advantages": random(3, n),
        "weights": random(4, n).abs() / n,
        "entropy_weights": random(5, n).abs() if spec.entropy_coef else None,
        "lengths": torch.full((n,), 3.0, device=DEVICE),
        "old": None if alone else log_probs.float() + 0.4 * random(6, n),
        "ref": log_probs.float() + 0.4 * random(7, n),
        "sampler": None,
        "importance_ratio": None if alone else random(8, n).exp(),
    }
    wide = {k: None if v is None else v.double()[:, None] for k, v in columns.items()}
    correct = reference.token_gradients(
        log_probs[:, None], entropies[:, None], live.double()[:, None], wide.pop("advantages")[:, 0],
        wide.pop("weights"), wide.pop("entropy_weights"), wide.pop("lengths")[:, 0], spec, **wide,
    )  # fmt: skip
    c = zero.double() if correct.d_entropy is None else correct.d_entropy[:, 0]
    gradient = expected(x, safe, how, None, correct.d_log_prob[:, 0], c)[2]
    for name, column in columns.items():
        if column is not None and name != "lengths":
            column[~live] = torch.nan
    x[~live] = torch.nan
    inputs = TokenInputs(**columns)
    done = one_shot(x, tokens, Transform.of(*how), inputs, spec, True, x)
    assert done is not None
    statistics, found = done
    assert distance(statistics.log_probs, torch.where(live, log_probs, 0)) < 1e-6
    assert distance(statistics.entropies, torch.where(live, entropies, 0)) < 1e-6
    for name, a, b in zip(found._fields, found, correct, strict=True):
        if b is None:
            assert a is None, name
        elif name != "loss":
            assert distance(a, b[:, 0]) < 3e-6, name
    assert float(found.loss) == pytest.approx(float(correct.loss), rel=1e-5, abs=1e-6)
    assert distance(x, gradient) < 3e-6
    assert (x[~live] == 0).all()


def test_one_shot_is_not_for_losses_of_rows() -> None:
    x, tokens, column = random(1, 2, V), integers(2, V, 2), torch.ones(2, device=DEVICE)
    before = x.clone()
    for spec in (
        LossSpec(importance_sampling_level="sequence"),
        LossSpec(loss_type="vespo"),
        LossSpec(top_entropy_quantile=0.5),
    ):
        inputs = TokenInputs(column, column, None, column, column, None, None, None)
        assert one_shot(x, tokens, Transform.of(*PLAIN), inputs, spec, False, x) is None
    assert torch.equal(x, before)


def test_tiles_are_powers_of_two_for_every_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for vocabulary in (1, 2048, 2049, 32000, 151936, 262144, 2**31 - 1):
        block, warps = rows.tile(vocabulary)
        assert block & (block - 1) == 0
        assert block >= 32 * warps
