"""value_score against the formula in float64: values, gradients, every index, and what must not leak."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from value_cases import (
    BACKENDS,
    DEVICE,
    MIXED,
    NORMS,
    STATE_GRADIENT,
    VALUE,
    Case,
    compare,
    flat_index,
    needs_gpu,
    on_cpu,
)

from restrl.kernels import value_score as kernels
from restrl.ops import value_torch
from restrl.ops.value import LineEnds, value_score


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["one block", "tiles"])
def tiling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The blocks that a launch takes here, and small ones: rows of several blocks, several rows a program."""
    if request.param == "tiles":
        monkeypatch.setattr(kernels, "WIDEST", 32)
        monkeypatch.setattr(kernels, "PER_PROGRAM", 128)
        monkeypatch.setattr(kernels, "SPREAD", 0)
        monkeypatch.setattr(kernels, "BACKWARD", (2, 32))
        monkeypatch.setattr(kernels, "PARTS", 3)
    name: str = request.param
    return name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", STATE_GRADIENT)
def test_values_and_gradients(tiling: str, backend: str, norm: str | None, dtype: torch.dtype) -> None:
    """Width 100 is no multiple of a block."""
    index = flat_index(*MIXED)
    compare(Case((12, 100), norm, dtype), index, index, dtype, backend=backend, clamp=(0.2, 0.7))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [2, 8, 64, 257])
def test_widths(backend: str, width: int) -> None:
    index = flat_index(2, 0, 2)
    compare(Case((3, width), "rms", seed=width), index, index, torch.float32, backend=backend, clamp=None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_index_forms(tiling: str, backend: str, kind: torch.dtype) -> None:
    """Flat rows, pairs and line ends of packed sequences name the same rows."""
    row, position = flat_index(2, 0, 1, 2, 0, dtype=kind), flat_index(3, 0, 2, 3, 1, dtype=kind)
    want = row * 4 + position
    compare(Case((3, 4, 40), "rms"), (row, position), want, torch.float32, backend=backend)
    compare(Case((3, 4, 40), "rms"), want, want, torch.float32, backend=backend)
    starts = torch.tensor([0, 5, 5, 12], dtype=kind, device=DEVICE)  # the second sequence is empty
    ends = LineEnds.of(starts, [[4, 0], [], [6, 0, 6]])
    assert ends.sequence.tolist() == [0, 0, 2, 2, 2]
    packed = flat_index(4, 0, 11, 5, 11)
    compare(Case((12, 40), "layer"), ends, packed, torch.float32, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["rows apart", "columns apart", "batch apart", "time first", "expanded"])
@pytest.mark.parametrize("pairs", [False, True])
def test_strides(backend: str, layout: str, pairs: bool) -> None:
    base = Case((3, 8, 80), "rms")
    views = {
        "rows apart": lambda t: t[:, ::2, :40],
        "columns apart": lambda t: t[:, :4, ::2],
        "batch apart": lambda t: t[:, 1:5, 7:47],
        "time first": lambda t: t[:, :4, :40].transpose(0, 1),
        "expanded": lambda t: t[:1, :4, :40].expand(3, 4, 40),
    }
    case = Case((1, 1, 40), "rms")
    case.hidden = views[layout](base.hidden)
    row, position = flat_index(2, 0, 1, 2), flat_index(2, 1, 0, 2)
    flat = row * case.hidden.shape[1] + position
    exact = case.exact()
    exact.hidden = exact.hidden.contiguous()
    got = case.score((row, position) if pairs else flat, backend=backend)
    torch.testing.assert_close(got.cpu().double(), exact.formula(flat.cpu()), atol=VALUE, rtol=0)
    # The gradient of a view: that of its base, nothing beside it.
    base.hidden.requires_grad_()
    case.hidden = views[layout](base.hidden)
    case.score((row, position) if pairs else flat, backend=backend, clamp=None).sum().backward()
    leaf = base.hidden.detach().cpu().double().requires_grad_()
    exact.hidden = views[layout](leaf)
    exact.formula(flat.cpu(), None).sum().backward()
    assert base.hidden.grad is not None
    torch.testing.assert_close(base.hidden.grad.cpu().double(), leaf.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
def test_no_rows(backend: str, norm: str | None) -> None:
    case = Case((3, 20), norm)
    for tensor in case.tensors:
        tensor.requires_grad_()
    score = case.score(flat_index(), backend=backend)
    assert score.shape == (0,)
    score.sum().backward()
    assert all(t.grad is not None and not t.grad.any() for t in case.tensors)
    nothing = Case((0, 20), norm).score(flat_index(), backend=backend)
    assert nothing.shape == (0,)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("repeats", [1, 33, 70])
def test_one_row_and_long_runs(backend: str, repeats: int) -> None:
    """More repeats than a block of the kernel that adds them up."""
    index = flat_index(*[1] * repeats, 0)
    compare(Case((2, 24), "rms"), index, index, torch.float32, backend=backend, clamp=None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e15, 1e4, 1e-4, 1e-12])
def test_large_and_small_states(backend: str, norm: str | None, scale: float) -> None:
    index = flat_index(1, 0)
    compare(Case((2, 100), norm, scale=scale), index, index, torch.float32, backend=backend, clamp=None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layer_norm_far_from_zero(tiling: str, backend: str) -> None:
    """A mean of 1000 standard deviations: E[x^2] - E[x]^2 would be wrong in the first digits."""
    case = Case((4, 200), "layer", shift=1000.0)
    index = flat_index(2, 1, 3)
    got = case.score(index, backend=backend, clamp=None).cpu().double()
    torch.testing.assert_close(got, case.exact().formula(index.cpu(), None), atol=2e-4, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
def test_rows_that_are_not_read_may_hold_anything(tiling: str, backend: str, norm: str | None) -> None:
    clean, dirty = Case((6, 50), norm), Case((6, 50), norm)
    dirty.hidden[torch.tensor([0, 2, 5])] = torch.tensor([torch.nan, torch.inf, -torch.inf], device=DEVICE)[
        :, None
    ]
    index = flat_index(4, 1, 3, 4)
    for case in (clean, dirty):
        for tensor in case.tensors:
            tensor.requires_grad_()
        case.score(index, backend=backend).sum().backward()
    assert torch.equal(clean.score(index, backend=backend), dirty.score(index, backend=backend))
    for a, b in zip(clean.tensors, dirty.tensors, strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_not_clamped_away(backend: str) -> None:
    case = Case((3, 20), "rms")
    case.hidden[1, 3] = torch.nan
    got = case.score(flat_index(0, 1, 2), backend=backend)
    assert got.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("clamp", [(0.0, 1.0), (-0.5, 0.5), (0.25, 0.25), None])
def test_the_clamp_s_edges(backend: str, clamp: tuple[float, float] | None) -> None:
    """At the bounds the gradient passes, as torch.clamp lets it; outside it does not."""
    states = [[-2.0], [-0.5], [0.0], [0.25], [0.5], [1.0], [1.0000001], [3.0]]
    hidden = torch.tensor(states, device=DEVICE, requires_grad=True)
    index = torch.arange(len(states), device=DEVICE)
    got = value_score(hidden, index, torch.ones(1, device=DEVICE), clamp=clamp, backend=backend)
    got.sum().backward()
    twin = torch.tensor(states, device=DEVICE, requires_grad=True)
    want = twin[:, 0] if clamp is None else twin[:, 0].clamp(*clamp)
    want.sum().backward()
    assert torch.equal(got, want)
    assert torch.equal(hidden.grad, twin.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gemma_s_norm(backend: str) -> None:
    """Its weight is counted from 1."""
    index = flat_index(2, 1)
    compare(Case((3, 40), "rms", offset=1.0), index, index, torch.float32, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_norms_without_weights_and_heads_of_a_linear(tiling: str, backend: str, norm: Any) -> None:
    case = Case((4, 70), norm)
    head = nn.Linear(70, 1, device=DEVICE, dtype=torch.bfloat16)  # its weight is [1, H]
    got = value_score(
        case.hidden, flat_index(3, 0), head.weight, head.bias, norm=norm, clamp=None, backend=backend
    )
    exact = case.exact()
    exact.weight, exact.bias = head.weight[0].detach().cpu().double(), head.bias.detach().cpu().double()
    exact.norm_weight, exact.norm_bias = torch.ones(70).double(), None
    want = exact.formula(torch.tensor([3, 0]), None)
    torch.testing.assert_close(got.detach().cpu().double(), want.detach(), atol=VALUE, rtol=0)
    got.sum().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.shape == (1, 70)
    assert head.weight.grad.dtype == torch.bfloat16
    assert float(head.bias.grad) == 2.0  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_what_needs_a_gradient_gets_one(backend: str) -> None:
    """A frozen backbone, a frozen head; and each gradient alone equals that of all together."""
    together = Case((5, 40), "layer")
    index = flat_index(*MIXED[:3], 3, 1).clamp(max=4)
    for tensor in together.tensors:
        tensor.requires_grad_()
    together.score(index, backend=backend).sum().backward()
    for i, all_at_once in enumerate(together.tensors):
        alone = Case((5, 40), "layer")
        alone.tensors[i].requires_grad_()
        alone.score(index, backend=backend).sum().backward()
        assert [t.grad is not None for t in alone.tensors] == [j == i for j in range(5)]
        assert torch.equal(alone.tensors[i].grad, all_at_once.grad)
    with torch.no_grad():
        assert not together.score(index, backend=backend).requires_grad
    assert not Case((5, 40), "layer").score(index, backend=backend).requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_second_derivative_is_refused(backend: str) -> None:
    case = Case((3, 8), "rms")
    case.hidden.requires_grad_()
    score = case.score(flat_index(1), backend=backend, clamp=None)
    (first,) = torch.autograd.grad(score.square().sum(), case.hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_inputs_give_equal_bits(backend: str) -> None:
    index = torch.randint(0, 9, (24,), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    runs = []
    for _ in range(2):
        case = Case((9, 70), "layer", torch.bfloat16)
        for tensor in case.tensors:
            tensor.requires_grad_()
        score = case.score(index, backend=backend, clamp=None)
        (score * score).sum().backward()
        runs.append([score.detach(), *(t.grad for t in case.tensors)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@on_cpu
@pytest.mark.parametrize("norm", NORMS)
def test_a_row_scores_the_same_in_any_company(norm: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case((40, 300), norm)
    together = case.score(torch.arange(40))
    alone = torch.cat([case.score(torch.tensor([i])) for i in range(40)])
    assert torch.equal(together, alone)
    monkeypatch.setattr(value_torch, "_CHUNK", 3 * 300)
    assert torch.equal(together, case.score(torch.arange(40)))
    index = torch.tensor(MIXED)
    compare(case, index, index, torch.float32)  # gradients in chunks


@on_cpu
@pytest.mark.parametrize("norm", NORMS)
def test_float64(norm: str | None) -> None:
    case = Case((4, 6), norm, torch.float64).exact()
    index = torch.tensor([3, 0, 3])
    got = case.score(index, clamp=None)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, case.formula(index, None), atol=1e-12, rtol=0)
    for tensor in case.tensors:
        tensor.requires_grad_()

    def scored(*_: Tensor) -> Tensor:
        return case.score(index, clamp=None)

    assert torch.autograd.gradcheck(scored, tuple(case.tensors))


@on_cpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_offsets_past_32_bits(backend: str) -> None:
    """Rows 2^30 elements apart; the memory between them is never touched."""
    base = torch.empty((1 << 31) + 64, dtype=torch.bfloat16)
    hidden = base.as_strided((3, 64), (1 << 30, 1))
    case = Case((3, 64), "rms", torch.bfloat16)
    hidden.copy_(case.hidden)
    index = torch.tensor([2, 0, 1], dtype=torch.int32)
    want = case.score(index, backend=backend)
    case.hidden = hidden
    assert torch.equal(case.score(index, backend=backend), want)


# ---- on a GPU


@needs_gpu
def test_one_launch_that_a_graph_can_hold() -> None:
    case = Case((4096, 896), "rms", torch.bfloat16)
    index = torch.randint(0, 4096, (64,), device=DEVICE)
    want = case.score(index)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        case.score(index)
    launched = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert len(launched) == 1
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = case.score(index)
    graph.replay()
    assert torch.equal(got, want)
    case.hidden.normal_()
    graph.replay()
    assert torch.equal(got, case.score(index))


@needs_gpu
def test_many_rows_in_both_launches() -> None:
    """More rows than are spread one to a program, up to 8192 wide; both backends agree."""
    for width, count in ((64, 40000), (896, 5000), (3584, 3000), (8192, 700), (10000, 300)):
        case = Case((2000, width), "rms", torch.bfloat16)
        index = torch.randint(0, 2000, (count,), device=DEVICE)
        compare(case, index, index, torch.bfloat16, clamp=None)
