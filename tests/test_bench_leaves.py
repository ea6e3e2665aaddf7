"""The benchmark of leaves in flight: its plain search is the forest's, and the script runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from restrl._core import SearchParams

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("rule", ["loss", "unobserved"])
@pytest.mark.parametrize("leaves", [1, 2, 4, 16])
def test_the_plain_search_is_the_forests(rule: str, leaves: int) -> None:
    from leaves_rules import Search
    from leaves_search import grow
    from leaves_task import Model, tasks

    models = [Model(task, 0, 1.0) for task in tasks(6)]
    params = SearchParams("value", simulations=40, leaves_in_flight=leaves, ties="first", virtual_loss=rule)
    for model, outcome in zip(models, grow(models, params), strict=True):
        search = Search(model, 40, leaves, rule).run()
        assert outcome.figures["rounds"] == search.rounds
        assert outcome.figures["expanded"] == search.expansions
        assert outcome.figures["collisions"] == search.collisions
        expanded = [(node.state, node.V) for node in search.nodes if node.children]
        assert outcome.figures["error"] == pytest.approx(model.judge("", [""], expanded)["error"])


@pytest.mark.parametrize("leaves", [4, 16])
def test_passing_over_leaves_under_way_fills_the_window(leaves: int) -> None:
    from leaves_rules import Search
    from leaves_task import Model, tasks

    models = [Model(task, 0, 0.5) for task in tasks(4)]
    unobserved, skip = (
        sum(Search(model, 20, leaves, rule).run().rounds for model in models)
        for rule in ("unobserved", "skip")
    )
    assert skip < unobserved


def test_the_task_knows_its_truth() -> None:
    from leaves_task import Model, Task, tasks

    task = Task("t", (0.9, 0.5, 0.8))
    model = Model(task, 0, 0.0)
    drawn = [text + "\n" for text in model.completions(0, "", 4000)]
    rewards = [model.reward(program) for program in drawn]
    assert np.mean(rewards) == pytest.approx(task.value(""), abs=0.01)
    assert np.mean(["w" not in program for program in drawn]) == pytest.approx(0.9 * 0.5 * 0.8, abs=0.02)
    assert task.value("r0\nw1\n") == pytest.approx(0.5 * 0.9)
    assert model.score("r0\nw1\n") == pytest.approx(0.45)
    assert model.completions(0, "r0\n", 5)[:2] == Model(task, 0, 1.0).completions(0, "r0\n", 2)
    assert model.completions(0, "r0\n", 5) != model.completions(1, "r0\n", 5)

    noisy = [Model(t, 0, 1.0) for t in tasks(300)]
    errors = np.array([[m._error("r0\n"), m._error("r0\nr1\n")] for m in noisy])
    assert errors.std(0) == pytest.approx([1, 1], abs=0.15)
    assert np.corrcoef(errors.T)[0, 1] == pytest.approx(0.7, abs=0.1)


def test_intervals_are_of_paired_differences_over_problems() -> None:
    from bench_leaves import Arm, rows_of
    from leaves_search import Outcome

    def outcomes(right: list[float], tokens: float) -> list[list[Outcome]]:
        return [[Outcome("", {"right": r, "tokens": tokens}) for r in right]] * 2

    alone, reuse = Arm("simulated", leaves=1), Arm("simulated", leaves=1, reuse=True)
    one, two = rows_of({alone: outcomes([1, 0, 1, 1], 100), reuse: outcomes([1, 1, 1, 0], 60)})
    assert one["right_minus"] == (0, 0, 0)
    assert two["right_minus"] == (0, -0.75, 0.75)
    assert two["reuse_minus"] == two["right_minus"]
    assert (two["right"], two["reuse_saves"], two["searches"]) == (0.75, 0.4, 8)


def test_the_script_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import bench_leaves

    history, picture = tmp_path / "leaves.json", tmp_path / "leaves.svg"
    argv = ["--problems", "3", "--seeds", "1", "--simulations", "6", "--noise", "1"]
    bench_leaves.main(["--parts", "simulated", "rules", *argv, "--history", str(history)])
    bench_leaves.main(["--parts", "rules", *argv, "--history", str(history), "--plot", str(picture)])
    known = json.loads(history.read_text())
    assert set(known["runs"]) == {"simulated", "rules"}
    rows = known["rows"]
    assert {row["part"] for row in rows} == {"simulated", "rules", "best-of-n"}
    for row in rows:
        if row["part"] == "simulated" and row["budget"] == "simulations":
            assert row["expanded"] + row["terminal_visits"] == 6 // row["trees"] * row["trees"]
            assert row["samples"] == row["expanded"] * 5 or row["reuse"]
    assert len(capsys.readouterr().out.splitlines()) > len(rows)
    assert picture.read_text().startswith("<?xml")
