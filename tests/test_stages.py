"""What the stages count and write, on cases worked out by hand and run in the real verifier."""

import json
import math

import pytest

from restrl.errors import RestrlError
from restrl.policy import Completion
from restrl.prompts import PromptFormat
from restrl.records import Calls, Problem
from restrl.rows import read_rows
from restrl.sandbox import Verdict, Verifier
from restrl.stages.collect import known_reward
from restrl.stages.decode import budgets
from restrl.stages.evaluate import evaluate, mean_and_stderr, table
from restrl.stages.train_policy import _accepted, rewards
from restrl.training.rollout import TrainState

PREFIX = "def f(x):\n"
RIGHT, HALF, WRONG = "    return x + 1\n", "    return 2\n", "    return None\n"  # 1, .5 and 0 of the tests


def problem(name):
    return Problem(
        task_id=name, source="t", prompt=PREFIX, mode="complete", prefix=PREFIX,
        tests=Calls(fn_name="f", args=[[1], [2]], expected=[2, 3]),
    )  # fmt: skip


def answered(name, decoding, budget, *bodies, head=None):
    answer = {
        "decoding": decoding, "value_head": head, "budget": budget, "programs": [PREFIX + b for b in bodies],
        "generated": budget, "generated_tokens": 10 * budget, "value_tokens": 3, "verifier_seconds": 0.5,
        "seconds": 0.25,
    }  # fmt: skip
    return {"task_id": name, "answers": [answer]}


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=1) as made:
        yield made


def test_accuracy_counts_whole_passes_and_reward_counts_tests(tmp_path, verifier):
    decoded = [
        answered("a", "sample", 1, RIGHT, WRONG, HALF, HALF),
        answered("b", "sample", 1, RIGHT, RIGHT, HALF, HALF),
        answered("a", "vm-mcts", 2, HALF, head="additive"),
        answered("b", "vm-mcts", 2, WRONG, head="additive"),
        answered("a", "vm-mcts", 4, RIGHT, head="additive"),
        answered("b", "vm-mcts", 4, HALF, head="additive"),
    ]
    problems = {name: problem(name) for name in "ab"}
    rows = evaluate(decoded, problems, verifier, tmp_path, seed=7)
    found = {(r["decoding"], r["budget"]): r for r in rows}
    one = found["sample", 1]
    assert one["right"] == [0.25, 0.5]
    assert (one["accuracy"], one["reward"]) == (0.375, 0.625)
    assert one["stderr"] == pytest.approx(0.125)  # of .25 and .5: std .1768, over the root of 2
    assert [found["vm-mcts", b]["accuracy"] for b in (2, 4)] == [0.0, 0.5]
    last = found["vm-mcts", 4]
    assert (last["problems"], last["generated_tokens"], last["value_tokens"]) == (2, 80, 6)
    assert (last["verifier_seconds"], last["seconds"]) == (1.0, 0.5)
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == rows
    samples = read_rows(tmp_path / "samples.jsonl")
    assert samples == read_rows(tmp_path / "vm-mcts-additive.samples.jsonl")
    assert [(s["task_id"], s["completion"], s["reward"]) for s in samples] == [
        ("a", RIGHT, 1.0),
        ("b", HALF, 0.5),
    ]
    assert [s["sample_id"] for s in read_rows(tmp_path / "sample.samples.jsonl")] == [0, 1, 2, 3] * 2
    shown = table(rows).splitlines()
    assert [line.split()[3] for line in shown[1:3]] == ["0.375", "0.500"]  # the largest budget of each method


def test_standard_errors():
    assert mean_and_stderr([0.0, 1.0, 1.0, 1.0]) == (0.75, pytest.approx(0.5 / math.sqrt(4)))
    assert mean_and_stderr([1.0]) == (1.0, 0.0)


def test_what_cannot_be_verified_is_never_a_wrong_program():
    broken = Verdict("infrastructure_error", False, None, (), 0.0, "tier2", "the judge died")
    with pytest.raises(RestrlError, match=r"a: a program could not be verified \(the judge died\)"):
        known_reward(broken, "a")


def test_grpo_rewards_are_of_state_and_completion_up_to_the_stop(verifier):
    state = PREFIX + "    y = x\n"
    prompt = PromptFormat(None).prompt(problem("a"), state, "k")
    start = TrainState(problem("a"), prompt, "partial", ("\n```",))
    texts = ["    return y + 1\n```\nraise SystemExit", "    return y + 1\nraise ValueError", "    return 2"]
    found = rewards(verifier)([start], [[Completion(text=t) for t in texts]])
    assert found == [[1.0, 0.0, 0.5]]


def test_sft_accepts_the_first_best_completion_from_r0():
    problems = {name: problem(name) for name in "abcd"}
    samples = [
        {"task_id": "a", "completions": [HALF, RIGHT, RIGHT + "#"], "rewards": [0.5, 1.0, 1.0]},
        {"task_id": "b", "completions": [HALF], "rewards": [0.89]},
        {"task_id": "c", "completions": [RIGHT, HALF], "rewards": [None, 0.9]},
        {"task_id": "d", "completions": [RIGHT], "rewards": [None]},
    ]
    accepted = _accepted(samples, problems, 0.9)
    assert [(p.task_id, text) for p, text in accepted] == [("a", RIGHT), ("c", HALF)]


@pytest.mark.parametrize(
    ("most", "all_of_them"), [(1, [1]), (2, [1, 2]), (16, [1, 2, 4, 8, 16]), (6, [1, 2, 4, 6])]
)
def test_budgets_of_a_curve(most, all_of_them):
    assert budgets(most) == all_of_them
