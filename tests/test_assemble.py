"""The filter and the partial states of ReST-GRPO."""

import json
import math

import numpy as np
import pytest

from restrl.config import AssembleConfig
from restrl.errors import RestrlError
from restrl.records import Calls, Problem
from restrl.stages.assemble import assemble, partial_states

PREFIX = "def f(a):\n"


def problem(name):
    return Problem(
        task_id=name, source="t", prompt=PREFIX, mode="complete", prefix=PREFIX,
        tests=Calls(fn_name="f", args=[[1]], expected=[1]),
    )  # fmt: skip


def row(name, completions, rewards):
    return {"task_id": name, "completions": completions, "rewards": rewards}


ROWS = [
    row("flat", ["    return 1\n"] * 2, [0.5, 0.5]),
    row("small", ["    return 1\n"] * 2, [0.5, 0.5 + 2 * 0.0499]),  # population std .0499 < sigma0
    row("edge", ["    return 1\n", "    return 2\n"], [0.5, 0.6 + 1e-9]),  # std .05: kept
    row(
        "mixed", ["    b = 1\n    return b\n\n", "    return 2\n", "    x = 1\n    return 3"], [1.0, 0.0, 1.0]
    ),
    row("weak", ["    return 1\n", "    return 2\n"], [0.89, 0.0]),
    row("unscored", ["    return 1\n"], [None]),
]
PROBLEMS = {r["task_id"]: problem(r["task_id"]) for r in ROWS}


def states(tmp_path, **kwargs):
    return assemble(ROWS, PROBLEMS, AssembleConfig(**kwargs), tmp_path / "states.jsonl", seed=1)


def test_filter_keeps_prompts_whose_population_std_reaches_sigma0(tmp_path):
    kept = [s["task_id"] for s in states(tmp_path, mode="filter")]
    assert kept == ["edge", "mixed", "weak"]
    stats = json.loads((tmp_path / "states.stats.json").read_text())
    assert (stats["prompts"], stats["kept"], stats["dead"], stats["unscored"]) == (6, 3, 1, 1)


def test_equal_rewards_are_dead_whatever_their_mean_rounds_to(tmp_path):
    rows = [row("flat", ["    return 1\n"] * 3, [0.1] * 3), row("mixed", ["    return 1\n"] * 2, [0.0, 1.0])]
    assemble(rows, PROBLEMS, AssembleConfig(), tmp_path / "states.jsonl", seed=1)
    assert json.loads((tmp_path / "states.stats.json").read_text())["dead"] == 1


def test_naive_takes_every_bare_prompt(tmp_path):
    assert [s["task_id"] for s in states(tmp_path, mode="naive")] == [r["task_id"] for r in ROWS]


def test_rest_adds_prefixes_of_the_first_best_completion_only_from_r0(tmp_path):
    out = states(tmp_path, mode="rest", partial_count="all")
    partial = [s for s in out if s["kind"] == "partial"]
    assert [(s["task_id"], s["lines"], s["state"]) for s in partial] == [
        ("mixed", 1, PREFIX + "    b = 1\n"),
        ("mixed", 2, PREFIX + "    b = 1\n    return b\n"),
    ]
    bare = [s["task_id"] for s in out if s["kind"] == "bare"]
    assert bare == ["edge", "mixed", "weak"]
    assert json.loads((tmp_path / "states.stats.json").read_text())["partial"] == 2


def test_nothing_left_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(RestrlError, match="no prompt is left to train on"):
        states(tmp_path, sigma0=0.9)


def test_draws_follow_alpha_to_the_i():
    text = "".join(f"    line{i}\n" for i in range(6))
    cfg = AssembleConfig(partial_count=60_000, alpha=0.5, keep_duplicates=True)
    drawn = partial_states(PREFIX, text, cfg, np.random.default_rng(0))
    counts = np.bincount([lines - 1 for lines, _ in drawn], minlength=6) / len(drawn)
    weights = 0.5 ** np.arange(6)
    assert np.allclose(counts, weights / weights.sum(), atol=0.01)


@pytest.mark.parametrize(("count", "ratio"), [(1, 0.5), (5, 0.5), (6, 0.5), (7, 0.3)])
def test_number_of_draws_is_the_ceiling_and_duplicates_go(count, ratio):
    text = "\n".join(f"    line{i}" for i in range(count))
    rng = np.random.default_rng(3)
    every = partial_states("", text, AssembleConfig(partial_ratio=ratio, keep_duplicates=True), rng)
    assert len(every) == math.ceil(ratio * count)
    rng = np.random.default_rng(3)
    once = partial_states("", text, AssembleConfig(partial_ratio=ratio), rng)
    assert once == list(dict.fromkeys(every))
    assert all(state.endswith("\n") and state.count("\n") == lines for lines, state in every)


def test_draws_are_seeded(tmp_path):
    assert states(tmp_path) == states(tmp_path)
