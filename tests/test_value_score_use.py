"""The scalar value model reads its values through value_score: they stay the class's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("pydantic")
from test_value_tries import branching, classifier
from transformers import Qwen2Config

from restrl.ops import value_torch
from restrl.value.scalar import ScalarValue


def scalar(dtype: torch.dtype) -> ScalarValue:
    config = Qwen2Config(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_labels=1,
        pad_token_id=0,
        initializer_range=0.3,
    )
    value = classifier(config)
    value.model.to(dtype)
    return value


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_values_are_the_class_s(dtype: torch.dtype, tolerance: float) -> None:
    """bfloat16: of values up to 4 that the class itself rounds to eight bits."""
    value = scalar(dtype)
    encoded = [value.encode(*item) for item in branching()]
    value.model.eval()
    with torch.no_grad():
        got = [row for row in value.values(encoded)]
        want = [value.model(input_ids=torch.tensor([e.token_ids])).logits[0, 0] for e in encoded]
    assert all(row.dtype == torch.float32 for row in got)
    assert [float(row[-1]) for row in got] == pytest.approx([float(w) for w in want], abs=tolerance)
    assert len({round(float(w), 2) for w in want}) > 3


def test_training_has_the_head_s_gradients() -> None:
    """Those of the class's head on all states; rows in tries and alone are read by the same operation."""
    value = scalar(torch.float64)
    encoded = [value.encode(*item) for item in branching()]
    weights = [value.model.score.weight, value.model.base_model.norm.weight, next(value.model.parameters())]
    got = torch.autograd.grad(
        sum((row.square().sum() for row in value.values(encoded)), torch.zeros(())), weights
    )
    ends = torch.zeros(())
    for e in encoded:
        hidden = value.model.base_model(input_ids=torch.tensor([e.token_ids])).last_hidden_state
        ends = ends + value.model.score(hidden)[0, list(e.positions), 0].square().sum()
    for mine, true in zip(got, torch.autograd.grad(ends, weights), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-9, atol=1e-10)


def test_every_path_reads_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    value, calls = scalar(torch.float32), []
    forward = value_torch.forward

    def counted(*given: Any, **options: Any) -> Any:
        calls.append(options["gradients"])
        return forward(*given, **options)

    monkeypatch.setattr(value_torch, "forward", counted)
    value.score(branching())
    assert set(calls) == {False}
    calls.clear()
    value.shares = False
    value.score(branching())
    assert set(calls) == {False}
    calls.clear()
    value.values([value.encode(*item) for item in branching()])
    assert calls == [True]
