"""The decode benchmark: its plain search is the algorithm that restrl's forest runs, and the script runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import toy_sample, toy_score

from restrl.assets import BASE_POLICY
from restrl.policy import Completion
from restrl.policy.local import LocalPolicy
from restrl.problems import pipelines
from restrl.search import Evaluation, Expansion, Request, Root, SearchParams, TreeResult, search
from restrl.value.additive import AdditiveValue
from restrl.value.scalar import ScalarValue

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts of the folder can be imported, here and in the processes they start."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def grown(key: str, params: SearchParams, ends: float) -> TreeResult:
    """restrl's tree of the toy policy, every child scored by its own text."""
    sample = toy_sample(key, params.k, ends)

    def complete(requests: list[Request]) -> list[list[Completion]]:
        simulations = [int(r.seed_key.rsplit("/", 1)[1]) for r in requests]
        return [
            [Completion(text) for text in sample(r.state, s)]
            for r, s in zip(requests, simulations, strict=True)
        ]

    def evaluate(expansions: list[Expansion]) -> list[Evaluation]:
        return [
            Evaluation([toy_score(p) for p in e.programs], [toy_score(c) for c in e.children])
            for e in expansions
        ]

    return search([Root(key, "def f():\n")], params, complete=complete, evaluate=evaluate)[0]


@pytest.mark.parametrize("ends", [0.03, 0.3, 1.0])
@pytest.mark.parametrize("number", range(4))
def test_the_plain_search_grows_the_forests_tree(benchmarks: None, number: int, ends: float) -> None:
    import serial_decode

    key = f"tree {number}"
    shape: dict[str, Any] = {"simulations": 40, "num_decisions": (1, 2, 3, 5)[number], "c": 0.2, "eps": 0.1}
    root = serial_decode.serial_search(
        "def f():\n", sample=toy_sample(key, 5, ends), score=toy_score, **shape
    )
    nodes = serial_decode.preorder(root)
    tree = grown(key, SearchParams(mode="value", k=5, ties="first", leaves_in_flight=1, **shape), ends)
    assert [(n.state, n.N, n.W, n.V, n.terminal, bool(n.children), n.visible) for n in nodes] == [
        (n.state, n.N, n.W, n.V, n.terminal, n.expanded, n.visible) for n in tree.nodes
    ]
    plain = [completion for node in nodes for completion in node.completions]
    assert plain == [(c.program, c.value) for c in tree.completions]
    assert serial_decode.answer(root) == tree.best_program
    assert len(nodes) > (5 if ends < 1 else 1)


@pytest.mark.parametrize("head", ["additive", "scalar"])
def test_plain_scores_are_the_value_models(benchmarks: None, head: str) -> None:
    import serial_decode

    policy = LocalPolicy(BASE_POLICY, device="cpu")
    value: Any = ScalarValue.from_policy(policy, seed=3)
    if head == "additive":
        value = AdditiveValue.new(policy, 16, seed=3)
    else:
        torch.nn.init.constant_(value.model.score.weight, 0.02)
    problem = pipelines.generate("dev", 1, seed=0, difficulty=(4, 4))[0]
    assert problem.reference is not None
    lines = problem.reference[len(problem.prefix) :].splitlines(keepends=True)
    texts = [problem.prefix + "".join(lines[:count]) for count in range(1, len(lines) + 1)]
    scorer = serial_decode.Scorer(value, problem)
    found = [scorer(text) for text in texts]
    whole = value.score([(problem, text) for text in texts])
    assert found == pytest.approx([v.last for v in whole], abs=1e-5)
    assert len({round(v, 4) for v in found}) > 3
    assert scorer.tokens >= sum(v.tokens for v in whole) > 0
    assert serial_decode.Scorer(value, problem)(problem.prefix + "\n") == pytest.approx(
        value.score([(problem, problem.prefix + "\n")])[0].last, abs=1e-5
    )


def test_the_script_compares_the_arms(
    benchmarks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench_decode

    processes = bench_decode.run_arm

    def run_arm(arm: Any, setting: Any) -> Any:
        """One arm as it is, the others in this process: a new one takes five seconds to start."""
        if arm.name == "serial, restrl's loop":
            return processes(arm, setting)
        return [bench_decode.share(arm, setting, 0, lambda: None)]

    monkeypatch.setattr(bench_decode, "run_arm", run_arm)
    sizes = {"problems": 4, "seeds": 1, "serial-problems": 2, "train-problems": 5, "simulations": 4, "k": 3}
    words = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    out, history = tmp_path / "out.json", tmp_path / "history.json"
    words += [
        "--work",
        str(tmp_path / "work"),
        "--workers",
        "1",
        "--out",
        str(out),
        "--history",
        str(history),
    ]
    bench_decode.main(words)
    result = json.loads(out.read_text(encoding="utf-8"))
    generate, loop, one, many, reuse = result["arms"].values()
    assert generate["value_tokens"] > 0
    assert loop["value_tokens"] > 0
    assert 0 < one["wall_shares"]["engine"] < one["wall_shares"]["generate"]
    assert not loop["wall_shares"]
    assert reuse["reused"] > 0
    assert one["value_tokens"] == many["value_tokens"] == 0  # the additive head reads the policy's own pass
    assert result["same_answers"] == 1
    counts = [{row["task_id"]: row["samples"] for row in rows} for rows in result["answers"].values()]
    assert [len(own) for own in counts] == [2, 2, 4, 4, 4]
    assert counts[1].items() <= counts[2].items()  # the same trees, whatever was decoded beside them
    first = json.loads(history.read_text(encoding="utf-8"))[0]
    assert first["comparisons"] == result["comparisons"]
    assert len(capsys.readouterr().out.splitlines()) > 10
