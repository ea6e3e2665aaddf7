"""Decoding with a real policy and heads: the additive head costs no pass, batches do not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_tiny_qwen2

from restrl.config import DecodeConfig
from restrl.decode import decode, decode_trees, draw
from restrl.policy import Completion, Prompt, Sampling
from restrl.policy.local import LocalPolicy
from restrl.records import Calls, Problem
from restrl.value.additive import AdditiveValue
from restrl.value.scalar import ScalarValue

torch.set_num_threads(1)

CFG = DecodeConfig(budget=4, k=2, simulations=12, max_new_tokens=24, temperature=1.0)


def problem(i: int) -> Problem:
    text = f"# sum {i}\ndef add(x, y):\n"
    return Problem(
        task_id=f"p{i}",
        source="pipelines",
        prompt=text,
        mode="complete",
        prefix=text,
        tests=Calls(fn_name="add", args=[[1, 2]], expected=[3]),
    )


PROBLEMS = [problem(i) for i in range(4)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> LocalPolicy:
    return LocalPolicy(make_tiny_qwen2(tmp_path_factory.mktemp("qwen")), device="cpu", max_rows=16)


def additive(policy: LocalPolicy) -> AdditiveValue:
    value = AdditiveValue.new(policy, 16, seed=1)
    torch.nn.init.normal_(value.head.out.weight)
    return value


@pytest.mark.parametrize("method", ["orm", "prm", "orm-mcts", "vm-mcts"])
def test_the_additive_head_needs_no_pass(
    method: Any, policy: LocalPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = additive(policy)

    def forbidden(*_: object) -> None:
        raise AssertionError("a pass of its own")

    monkeypatch.setattr(policy, "trace", forbidden)
    got = decode(method, PROBLEMS, policy, CFG, form=policy.format, seed=3, value=value)
    assert all(a.value_tokens == 0 and 0 < a.generated <= 4 for a in got)
    assert all(0 < c.score < 1 for a in got for c in a.candidates)
    assert len({c.score for a in got for c in a.candidates}) > 4
    again = decode(method, PROBLEMS[::-1], policy, CFG, form=policy.format, seed=3, value=value)[::-1]
    assert [a.program for a in again] == [a.program for a in got]


def test_another_policys_samples_are_scored_by_a_pass(policy: LocalPolicy) -> None:
    class Other:
        def complete(self, requests: list[Prompt], n: int, sampling: Sampling) -> list[list[Completion]]:
            return policy.complete(requests, n, sampling)

    value = additive(policy)
    got = decode("orm", PROBLEMS, Other(), CFG, form=policy.format, seed=3, value=value)
    assert all(a.value_tokens > 0 for a in got)
    want = [max(v.last for v in value.score([(p, c.program) for c in a.candidates]))
            for p, a in zip(PROBLEMS, got, strict=True)]  # fmt: skip
    assert [max(c.score for c in a.candidates) for a in got] == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("method", ["orm-mcts", "vm-mcts"])
def test_the_scalar_head_reads_programs(method: Any, policy: LocalPolicy) -> None:
    value = ScalarValue.from_policy(policy, seed=1)
    with torch.no_grad():
        value.model.score.weight.mul_(0.05 / value.model.score.weight.std())
    for answer, tree in decode_trees(method, PROBLEMS, policy, CFG, form=policy.format, seed=3, value=value):
        assert answer.value_tokens > answer.generated_tokens
        assert answer.program == tree.best.program
        expected = [
            v.last
            for v in value.score([(problem(int(answer.task_id[1])), c.program) for c in answer.candidates])
        ]
        assert [c.score for c in answer.candidates] == pytest.approx(expected, abs=1e-5)


def test_draws_scored_on_the_way_are_those_drawn_without(policy: LocalPolicy) -> None:
    plain = draw(PROBLEMS, policy, CFG, 4, form=policy.format, seed=3)
    scored = draw(PROBLEMS, policy, CFG, 4, form=policy.format, seed=3, value=additive(policy))
    for a, b in zip(plain, scored, strict=True):
        assert [(s.program, s.tokens) for s in a.samples] == [(s.program, s.tokens) for s in b.samples]
        assert [s.log_prob for s in a.samples] == pytest.approx([s.log_prob for s in b.samples], abs=1e-4)
        assert all(s.values is None for s in a.samples)
        assert all(s.values is not None for s in b.samples)


def test_a_saved_head_decodes_the_same(policy: LocalPolicy, tmp_path: Path) -> None:
    value = additive(policy)
    value.save(tmp_path)
    again = AdditiveValue.load(tmp_path, policy)
    first = decode("vm-mcts", PROBLEMS, policy, CFG, form=policy.format, seed=3, value=value)
    second = decode("vm-mcts", PROBLEMS, policy, CFG, form=policy.format, seed=3, value=again)
    assert [a.candidates for a in first] == [a.candidates for a in second]
