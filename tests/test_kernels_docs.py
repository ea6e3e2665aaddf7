"""docs/kernels.md: its trainer trains, its names exist, its figures are in the history."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from restrl import ops  # noqa: E402
from restrl.reference import advantages_by_group, grpo_loss, log_probs_from_logits  # noqa: E402

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "kernels.md").read_text("utf-8")


def tiny_model() -> Any:
    config = transformers.Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.Qwen2ForCausalLM(config)


def test_the_trainer_trains_on_the_losses_of_the_reference() -> None:
    found = re.search(r"```python trainer\n(.*?)```", PAGE, re.DOTALL)
    assert found
    assert len([line for line in found[1].split("def step")[1].splitlines() if line.strip()]) <= 15
    names: dict[str, Any] = {}
    exec(found[1], names)
    model, generator = tiny_model(), torch.Generator().manual_seed(0)
    ids = torch.randint(64, (4, 12), generator=generator)
    mask = (torch.arange(12) >= 5).int().expand(4, 12)
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "completion_mask": mask,
        "rewards": torch.tensor([1.0, 0.0, 0.0, 1.0]),
        "groups": torch.tensor([0, 0, 1, 1]),
    }
    hidden = model.model(ids).last_hidden_state[:, :-1]
    with torch.no_grad():
        before = ops.token_log_probs(hidden, model.lm_head.weight, ids[:, 1:]).log_probs
        batch["old"], batch["ref"] = before, before + 0.1
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    log_probs = log_probs_from_logits(logits, ids[:, 1:].flatten()).log_probs.view(4, 11)
    advantages = advantages_by_group(batch["rewards"], batch["groups"])
    expected = grpo_loss(
        log_probs, mask[:, 1:].float(), advantages, names["SPEC"], old=batch["old"], ref=batch["ref"]
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = [names["step"](model, optimizer, batch)[0] for _ in range(3)]
    assert losses[0] == pytest.approx(float(expected.loss), abs=1e-6)
    assert losses[0] > losses[1] > losses[2]


def test_the_operations_of_the_page_are_the_public_ones() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE.split("## In a trainer")[0])) & set(dir(ops))
    first = next(line for line in PAGE.splitlines() if line.startswith("restrl.ops "))
    functions = {name for name in ops.__all__ if name.islower()} - {"fold_scalar_head"}
    assert set(first.split()[1:]) == functions
    assert named <= functions
