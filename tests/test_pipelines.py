"""The generated problem family, its tokenizer and recipe, and the shipped base policy."""

from __future__ import annotations

import collections
import os
import random
import re
import subprocess
import sys
from typing import Any

import pytest

from restrl.errors import RestrlError
from restrl.problems import pipelines
from restrl.problems.pipelines import OPERATIONS, Pipeline, Step
from restrl.records import Calls, Problem

# What each operation makes of [3, -4, 5, 3, 12] with argument 3, worked out by hand.
BY_HAND: dict[str, list[int]] = {
    "add": [6, -1, 8, 6, 15],
    "subtract": [0, -7, 2, 0, 9],
    "multiply": [9, -12, 15, 9, 36],
    "divide": [1, -2, 1, 1, 4],
    "modulo": [0, 2, 2, 0, 0],
    "at_least": [3, 5, 3, 12],
    "less_than": [-4],
    "multiples": [3, 3, 12],
    "no_multiples": [-4, 5],
    "first": [3, -4, 5],
    "skip": [3, 12],
    "last": [5, 3, 12],
    "skip_last": [3, -4],
    "every": [3, 3],
    "rotate": [3, 12, 3, -4, 5],
    "at_most": [3, -4, 3, 3, 3],
    "floor": [3, 3, 5, 3, 12],
    "append": [3, -4, 5, 3, 12, 3],
    "prepend": [3, 3, -4, 5, 3, 12],
    "reverse": [12, 3, 5, -4, 3],
    "ascending": [-4, 3, 3, 5, 12],
    "descending": [12, 5, 3, 3, -4],
    "squares": [9, 16, 25, 9, 144],
    "neighbours": [-1, 1, 8, 15],
    "distinct": [3, -4, 5, 12],
    "running": [3, -1, 4, 7, 19],
}


def run(text: str, values: list[int]) -> Any:
    scope: dict[str, Any] = {}
    exec(text, scope)
    return scope["f"](list(values))


def reward(problem: Problem, text: str) -> float:
    """Fraction of tests passed, in this process: for programs of the family's own lines only."""
    assert isinstance(problem.tests, Calls)
    passed = 0
    for args, expected in zip(problem.tests.args, problem.tests.expected, strict=True):
        try:
            passed += run(text, args[0]) == expected
        except (ArithmeticError, TypeError, ValueError):
            continue
    return passed / len(problem.tests.args)


def read_back(text: str) -> Pipeline:
    """The pipeline that a specification describes."""
    described = text.split("\n")[0].removeprefix("# ").split("; ")
    assert described.pop() == "return the list"
    steps = []
    for words in described:
        found = [
            Step(index, int(match[1]) if match.groups() else 0, phrasing)
            for index, operation in enumerate(OPERATIONS)
            for phrasing, wording in enumerate(operation.phrasings)
            if (match := re.fullmatch(wording.replace("{k}", "([2-9])", 1).replace("{k}", r"\1"), words[3:]))
        ]
        assert len(found) == 1, f"{words!r} has {len(found)} readings"
        steps.append(found[0])
    return tuple(steps)


def test_operations_compute_what_they_say() -> None:
    assert [operation.name for operation in OPERATIONS] == list(BY_HAND)
    assert len(OPERATIONS) == 26
    for index, operation in enumerate(OPERATIONS):
        step = Step(index, 3 if operation.takes_argument else 0, 0)
        assert run(pipelines.program((step,)), [3, -4, 5, 3, 12]) == BY_HAND[operation.name], operation.name
        assert (
            operation.takes_argument == ("{k}" in operation.phrasings[0]) == ("{k}" in operation.phrasings[1])
        )


def test_wrong_lines_are_wrong() -> None:
    lists = pipelines._inputs(random.Random(0), 40)
    for index, operation in enumerate(OPERATIONS):
        for argument in pipelines.ARGUMENTS if operation.takes_argument else [0]:
            step = Step(index, argument, 0)
            for wrong in range(2):
                text = pipelines.program((step,), [wrong])
                differs = 0
                for values in lists:
                    try:
                        differs += run(text, values) != run(pipelines.program((step,)), values)
                    except ZeroDivisionError:
                        differs += 1
                assert differs, f"{operation.name} {argument}: {text}"


def test_program_text() -> None:
    names = [operation.name for operation in OPERATIONS]
    chain = (Step(names.index("at_least"), 5, 0), Step(names.index("reverse"), 0, 0))
    assert pipelines.program(chain, [None, 0]) == (
        "# b: keep items at least 5; c: reverse the order; return the list\n"
        "def f(a):\n"
        "    b = [x for x in a if x >= 5]\n"
        "    c = sorted(b)\n"
        "    return c\n"
    )


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_references_pass_their_tests_at_every_difficulty(split: pipelines.Split) -> None:
    problems = pipelines.generate(split, 48, seed=3, difficulty=(1, 12))
    assert [problem.meta["difficulty"] for problem in problems] == [1 + i % 12 for i in range(48)]
    for problem in problems:
        assert problem.source == "pipelines"
        assert problem.mode == "complete"
        assert problem.prompt == problem.prefix
        assert problem.prefix.endswith("\ndef f(a):\n")
        assert problem.reference is not None
        assert problem.reference.startswith(problem.prefix)
        assert problem.reference.count("\n") == problem.meta["difficulty"] + 3
        assert reward(problem, problem.reference) == 1.0
        assert read_back(problem.prompt) == read_back(problem.reference)


def test_tests_tell_programs_apart() -> None:
    for problem in pipelines.generate("train", 60, seed=1, difficulty=(1, 12)):
        assert isinstance(problem.tests, Calls)
        outputs = problem.tests.expected
        assert len(outputs) == 10
        assert sum(not v for v in outputs) <= 2
        assert len({tuple(v) for v in outputs}) >= 5
        assert max((abs(x) for v in outputs for x in v), default=0) <= 10**6
        unchanged = problem.prefix + "    return a\n"
        assert reward(problem, unchanged) <= 0.5


def test_wrong_lines_earn_fractions() -> None:
    rewards = []
    for problem in pipelines.generate("train", 60, seed=2, difficulty=(2, 6)):
        chain = read_back(problem.prompt)
        for place in range(len(chain)):
            slips: list[int | None] = [None] * len(chain)
            slips[place] = 0
            rewards.append(reward(problem, pipelines.program(chain, slips)))
    assert sum(r < 1 for r in rewards) > 0.8 * len(rewards)
    assert sum(0 < r < 1 for r in rewards) > 0.15 * len(rewards)


def test_splits_and_corpus_never_share_a_function() -> None:
    functions = {
        split: {
            problem.meta["function"]
            for seed, difficulty in [(0, (1, 1)), (0, (2, 4)), (1, (2, 12))]
            for problem in pipelines.generate(split, 9, seed=seed, difficulty=difficulty)
        }
        for split in ("train", "dev", "test")
    }
    assert not functions["train"] & functions["dev"]
    assert not functions["train"] & functions["test"]
    assert not functions["dev"] & functions["test"]
    seen = [read_back(text) for text in pipelines.corpus(2000, 5, difficulty=(1, 3))]
    assert {pipelines.split_of(chain) for chain in seen} == {"train"}
    assert not {pipelines.fingerprint(chain) for chain in seen} & (functions["dev"] | functions["test"])


def test_split_follows_the_function_not_the_wording() -> None:
    names = [operation.name for operation in OPERATIONS]
    add, reverse = names.index("add"), names.index("reverse")
    one = (Step(add, 2, 0), Step(add, 7, 1), Step(reverse, 0, 0))
    other = (Step(reverse, 0, 1), Step(add, 9, 1))
    assert pipelines.fingerprint(one) == pipelines.fingerprint(other)
    assert pipelines.fingerprint(one) != pipelines.fingerprint(one[:2])


def test_functions_are_distinct_within_a_split() -> None:
    problems = pipelines.generate("dev", 80, seed=0, difficulty=(1, 4))
    assert len({problem.meta["function"] for problem in problems}) == 80
    assert len({problem.task_id for problem in problems}) == 80


def test_seeds_fix_everything_in_every_process() -> None:
    assert pipelines.generate("dev", 12, seed=4) == pipelines.generate("dev", 12, seed=4)
    assert pipelines.generate("dev", 12, seed=4) != pipelines.generate("dev", 12, seed=5)
    script = (
        "import hashlib; from restrl.problems import pipelines as p;"
        "text = repr(p.generate('test', 6, seed=1)) + repr(list(p.corpus(50, 1)));"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(digests) == 1


def test_mistakes_are_named() -> None:
    with pytest.raises(RestrlError, match="unknown split 'valid'"):
        pipelines.generate("valid", 1, seed=0)  # type: ignore[arg-type]
    for difficulty in [(0, 3), (4, 3), (1, 13)]:
        with pytest.raises(RestrlError, match="difficulty"):
            pipelines.generate("train", 1, seed=0, difficulty=difficulty)
    with pytest.raises(RestrlError, match="no 500 different problems"):
        pipelines.generate("test", 500, seed=0, difficulty=(1, 1))


def test_write_is_read_back(tmp_path: Any) -> None:
    path = tmp_path / "problems.jsonl"
    problems = pipelines.write(path, "dev", 7, seed=0, difficulty=(2, 3))
    assert [Problem.model_validate_json(line) for line in path.read_text().splitlines()] == problems


def test_corpus_errs_at_its_rates() -> None:
    rates = pipelines.error_rates(0)
    assert len(rates) == 52
    counts: collections.Counter[tuple[str, int, int | None]] = collections.Counter()
    for text in pipelines.corpus(3000, 0):
        lines = text.split("\n")[2:-2]
        chain = read_back(text)
        names = "a" + pipelines.VARIABLES
        for place, (step, line) in enumerate(zip(chain, lines, strict=True)):
            choice = next(
                c for c in (None, 0, 1) if step.line(names[place + 1], names[place], c) == line + "\n"
            )
            counts[OPERATIONS[step.operation].name, step.phrasing, choice] += 1
    for (name, phrasing), expected in rates.items():
        total = sum(counts[name, phrasing, choice] for choice in (None, 0, 1))
        assert total > 60
        for choice in (0, 1):
            tolerance = 4.5 * (expected[choice] * (1 - expected[choice]) / total) ** 0.5
            assert abs(counts[name, phrasing, choice] / total - expected[choice]) < tolerance, (
                name,
                phrasing,
            )


def test_every_seed_has_the_same_mix_of_error_rates() -> None:
    first, second = pipelines.error_rates(0), pipelines.error_rates(1)
    assert first != second
    assert sorted(first.values()) == sorted(second.values())
