"""What value_score refuses, what it does where nothing waits to look, and heads over logits that fold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from value_cases import BACKENDS, DEVICE, flat_index, on_cpu

from restrl.errors import RestrlError
from restrl.kernels import value_score as kernels
from restrl.ops import value_torch
from restrl.ops.value import LineEnds, fold_scalar_head, value_score

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "row too large": ({"index": torch.tensor([0, 12])}, r"entry 1 of the index, 12, is out of range"),
    "row negative": ({"index": torch.tensor([-1])}, r"entry 0 of the index, -1, is out of range"),
    "position too large": (
        {"index": (torch.tensor([1]), torch.tensor([4]))},
        r"entry 0 of the index, \(1, 4\), is out of range: hidden is \[3, 4, 8\]",
    ),
    "position negative": ({"index": (torch.tensor([1]), torch.tensor([-2]))}, r"\(1, -2\), is out of range"),
    "floating index": ({"index": torch.tensor([0.0])}, "int32 or int64"),
    "index of two dimensions": ({"index": torch.zeros(2, 2, dtype=torch.int64)}, "int32 or int64"),
    "pairs of other lengths": (
        {"index": (torch.tensor([1, 2]), torch.tensor([1]))},
        "2 rows or sequences, but 1 positions",
    ),
    "a triple": ({"index": (torch.tensor([1]),) * 3}, "an index of pairs"),
    "packed of three dimensions": (
        {"index": LineEnds(torch.tensor([0, 4]), torch.tensor([0]), torch.tensor([0]))},
        "LineEnds are of packed",
    ),
    "weight": ({"weight": torch.ones(7)}, "weight has 7 elements instead of 8"),
    "bias": ({"bias": torch.ones(2)}, "bias has 2 elements instead of 1"),
    "norm": ({"norm": "batch"}, 'norm must be None, "rms" or "layer"'),
    "weight of no norm": ({"norm_weight": torch.ones(8)}, 'needs norm="rms" or norm="layer"'),
    "bias of an RMS norm": ({"norm": "rms", "norm_bias": torch.ones(8)}, "norm_bias needs"),
    "offset of nothing": ({"norm": "rms", "norm_offset": 1.0}, "norm_offset is added to norm_weight"),
    "norm weight": ({"norm": "rms", "norm_weight": torch.ones(3)}, "norm_weight has 3 elements"),
    "clamp": ({"clamp": (1.0, 0.0)}, "low <= high"),
    "backend": ({"backend": "cuda"}, "backend 'cuda' is unknown; there are auto, torch, triton"),
    "hidden": ({"hidden": torch.zeros(8)}, "hidden must be floating point"),
    "integers": ({"hidden": torch.zeros(3, 4, 8, dtype=torch.int64)}, "hidden must be floating point"),
    "no columns": ({"hidden": torch.zeros(3, 4, 0)}, "no columns"),
    "no states": ({"hidden": torch.zeros(0, 8)}, "1 rows of hidden states that have none"),
    "another device": ({"weight": torch.ones(8, device="meta")}, "weight is on meta"),
    "float64 kernels": (
        {"hidden": torch.zeros(3, 4, 8, dtype=torch.float64), "backend": "triton"},
        "backend 'triton' has no float64",
    ),
}


@on_cpu
@pytest.mark.parametrize("wrong", BAD)
def test_what_does_not_fit_is_refused(wrong: str) -> None:
    changed, message = BAD[wrong]
    given: dict[str, Any] = {
        "hidden": torch.zeros(3, 4, 8),
        "index": torch.tensor([0]),
        "weight": torch.ones(8),
        "bias": None,
    } | changed
    with pytest.raises(RestrlError, match=message):
        value_score(given.pop("hidden"), given.pop("index"), given.pop("weight"), given.pop("bias"), **given)


@on_cpu
@pytest.mark.parametrize(
    ("starts", "sequence", "position"),
    [([0, 5, 12], 1, 7), ([0, 5, 12], 2, 0), ([0, 5, 12], 0, 5), ([0, 5, 13], 1, 7), ([0], 0, 0)],
)
def test_line_ends_out_of_range(starts: list[int], sequence: int, position: int) -> None:
    """Past its own sequence is out of range, although the states go on; no sequences, or too long ones."""
    ends = LineEnds(torch.tensor(starts), torch.tensor([sequence]), torch.tensor([position]))
    with pytest.raises(RestrlError, match=rf"\({sequence}, {position}\), is out of range.*cu_seqlens"):
        value_score(torch.zeros(12, 8), ends, torch.ones(8))
    with pytest.raises(RestrlError, match="ends of 7 sequences"):
        LineEnds.of(torch.tensor(starts), [[]] * 7)


@on_cpu
def test_kernels_need_a_gpu_or_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RestrlError, match="backend 'triton' needs tensors on a GPU, not on cpu"):
        value_score(torch.zeros(2, 8), torch.tensor([0]), torch.ones(8), backend="triton")
    assert value_score(torch.zeros(2, 8), torch.tensor([0]), torch.ones(8)).tolist() == [0.0]


FAULTY: list[tuple[Any, list[bool]]] = [
    (value_torch.Rows(flat_index(2, 12, -1, 0)), [True, False, False, True]),
    (
        value_torch.Rows(flat_index(2, 2, 3, -1, 1), flat_index(3, 4, 0, 0, -1)),
        [True, False, False, False, False],
    ),
    (
        value_torch.Rows(flat_index(0, 0, 1, 2, 1), flat_index(4, 5, 6, 0, -1), flat_index(0, 5, 12)),
        [True, False, True, False, False],
    ),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "there"), FAULTY, ids=["flat", "pairs", "packed"])
def test_where_nothing_waits_to_look(backend: str, rows: Any, there: list[bool]) -> None:
    """On a GPU the score of a row that does not exist is NaN, and it has no part in the gradients."""
    passes: Any = kernels if backend == "triton" else value_torch
    pairs = rows.second is not None and rows.starts is None
    hidden = torch.randn(3, 4, 8, device=DEVICE) if pairs else torch.randn(12, 8, device=DEVICE)
    head = value_torch.Head(torch.ones(8, device=DEVICE), None, None, None)
    how = value_torch.How("rms", 1e-6, 0.0, (-9.0, 9.0))
    score, keys, saved = passes.forward(hidden, rows, head, how, gradients=True)
    assert score.isnan().logical_not().tolist() == there
    assert (keys >= 0).tolist() == there
    d_hidden, d_head = passes.backward(
        torch.ones_like(score), hidden, keys, saved, head.weight, "rms", d_hidden=True, d_head=True
    )
    assert d_head.isfinite().all()
    assert d_head.any()
    assert int(d_hidden.any(-1).sum()) == sum(there)


# ---- the head over logits


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_a_head_over_logits_folds(biased: bool, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of every position, the last one of each row with left padding, Linear(V, 1), clamp."""
    monkeypatch.setattr("restrl.ops.value._FOLD_ROWS", 50)
    torch.manual_seed(0)
    rows, length, width, vocab = 5, 7, 24, 133
    hidden = torch.randn(rows, length, width)
    hidden[0, :4] = torch.nan  # padding on the left
    lm_head = nn.Linear(width, vocab, bias=biased)
    scorer = nn.Linear(vocab, 1)
    with torch.no_grad():
        lm_head.weight.mul_(3)
        scorer.weight.mul_(3)
        want = scorer((lm_head(hidden) * scale)[:, -1].float())[:, 0].clamp(0, 1)
    folded = fold_scalar_head(
        lm_head.weight, scorer.weight, scorer.bias, lm_head_bias=lm_head.bias, logit_scale=scale
    )
    assert folded.weight.shape == (width,)
    assert not folded.weight.requires_grad
    last = torch.arange(rows, device=DEVICE), torch.full((rows,), length - 1, device=DEVICE)
    got = value_score(hidden.to(DEVICE), last, *(t.to(DEVICE) for t in folded))
    torch.testing.assert_close(got.cpu(), want, atol=2e-6, rtol=0)
    assert ((want > 0) & (want < 1)).any()


def test_what_cannot_be_folded() -> None:
    with pytest.raises(RestrlError, match="scorer_weight has 9 elements, the vocabulary 8"):
        fold_scalar_head(torch.ones(8, 4), torch.ones(1, 9))
    with pytest.raises(RestrlError, match="lm_head_bias has 3 elements"):
        fold_scalar_head(torch.ones(8, 4), torch.ones(1, 8), lm_head_bias=torch.ones(3))
    with pytest.raises(RestrlError, match="bias has 2 elements instead of one"):
        fold_scalar_head(torch.ones(8, 4), torch.ones(1, 8), torch.ones(2))
