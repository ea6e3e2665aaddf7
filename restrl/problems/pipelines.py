"""Generated problems: a comment names a chain of list operations, the program has one line for each.

    # b: keep items at least 5; c: reverse the order; return the list
    def f(a):
        b = [x for x in a if x >= 5]
        c = b[::-1]
        return c

Small enough for a policy of half a million parameters, and with every property the method needs: a program
is made of lines, each line can be wrong in its own way, ten hidden tests give a fractional reward, and a
wrong line is sometimes made good by a later one. `difficulty` counts the operation lines; the return line
comes on top.

**Splits.** A pipeline's split follows from what it computes: from a hash of its outputs on fixed probe
lists. Two pipelines that compute the same function, written the same or not, lie in the same split,
whatever the seeds.

**Imperfect corpus.** `corpus` gives the texts a base policy is trained on. Every (operation, phrasing) is
written wrongly at a rate of its own (`error_rates`), by one of two plausible lines, so that a policy that has
learned the corpus well makes the errors that reinforcement learning and search are there to repair.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from restrl.errors import RestrlError
from restrl.records import Calls, Problem

Split = Literal["train", "dev", "test"]
Ints = list[int]

MAX_OPERATIONS = 12
ARGUMENTS = range(2, 10)
TESTS = 10
VARIABLES = "bcdeghjklmnp"  # a is the argument, f the function; i, x and y are bound inside the lines
# How often the first and the second wrong line are written, and for how many of the 52 (operation, phrasing)
# pairs. In sum a pair is wrong at .04, .30 or .65; in the last kind an error is the most likely line of all.
ERROR_KINDS = (((0.02, 0.02), 24), ((0.20, 0.10), 14), ((0.33, 0.32), 7), ((0.42, 0.23), 7))

_LARGEST = 10**6  # a pipeline whose values grow past this is rejected
_LONGEST = 40


@dataclass(frozen=True)
class Operation:
    """One list operation: `{k}` stands for its argument, `{v}` for the list it reads."""

    name: str
    phrasings: tuple[str, str]
    code: str
    wrong: tuple[str, str]

    @property
    def takes_argument(self) -> bool:
        return "{k}" in self.code


OPERATIONS = tuple(
    Operation(name, phrasings, code, wrong)
    for name, phrasings, code, wrong in [
        ("add", ("add {k} to each item", "raise items by {k}"),
         "[x + {k} for x in {v}]", ("[x - {k} for x in {v}]", "{v} + [{k}]")),
        ("subtract", ("subtract {k} from each item", "lower items by {k}"),
         "[x - {k} for x in {v}]", ("[{k} - x for x in {v}]", "[x + {k} for x in {v}]")),
        ("multiply", ("multiply each item by {k}", "scale items by {k}"),
         "[x * {k} for x in {v}]", ("{v} * {k}", "[x + {k} for x in {v}]")),
        ("divide", ("divide each item by {k}", "whole quotients by {k}"),
         "[x // {k} for x in {v}]", ("[x % {k} for x in {v}]", "[{k} // x for x in {v}]")),
        ("modulo", ("take each item modulo {k}", "remainders by {k}"),
         "[x % {k} for x in {v}]", ("[x // {k} for x in {v}]", "[{k} % x for x in {v}]")),
        ("at_least", ("keep items at least {k}", "drop items below {k}"),
         "[x for x in {v} if x >= {k}]", ("[x for x in {v} if x > {k}]", "[x for x in {v} if x < {k}]")),
        ("less_than", ("keep items less than {k}", "drop items from {k} up"),
         "[x for x in {v} if x < {k}]", ("[x for x in {v} if x <= {k}]", "[x for x in {v} if x > {k}]")),
        ("multiples", ("keep multiples of {k}", "keep items that {k} divides"),
         "[x for x in {v} if x % {k} == 0]", ("[x for x in {v} if x % {k}]", "[x * {k} for x in {v}]")),
        ("no_multiples", ("drop multiples of {k}", "drop items that {k} divides"),
         "[x for x in {v} if x % {k}]", ("[x for x in {v} if x % {k} == 0]", "[x // {k} for x in {v}]")),
        ("first", ("keep the first {k} items", "cut the list to length {k}"),
         "{v}[:{k}]", ("{v}[{k}:]", "{v}[:-{k}]")),
        ("skip", ("skip the first {k} items", "start at position {k}"),
         "{v}[{k}:]", ("{v}[:{k}]", "{v}[{k} - 1:]")),
        ("last", ("keep the last {k} items", "only the final {k} items"),
         "{v}[-{k}:]", ("{v}[:-{k}]", "{v}[{k}:]")),
        ("skip_last", ("skip the last {k} items", "leave out the final {k} items"),
         "{v}[:-{k}]", ("{v}[-{k}:]", "{v}[:{k}]")),
        ("every", ("take every {k} th item", "walk in steps of {k}"),
         "{v}[::{k}]", ("{v}[{k}::{k}]", "{v}[{k}:]")),
        ("rotate", ("rotate left by {k}", "move the first {k} items to the end"),
         "{v}[{k}:] + {v}[:{k}]", ("{v}[-{k}:] + {v}[:-{k}]", "{v}[:{k}] + {v}[{k}:]")),
        ("at_most", ("cap items at {k}", "limit items to at most {k}"),
         "[min(x, {k}) for x in {v}]", ("[max(x, {k}) for x in {v}]", "[x for x in {v} if x <= {k}]")),
        ("floor", ("lift items to at least {k}", "replace items below {k} by {k}"),
         "[max(x, {k}) for x in {v}]", ("[min(x, {k}) for x in {v}]", "[x for x in {v} if x >= {k}]")),
        ("append", ("append {k}", "put {k} at the end"),
         "{v} + [{k}]", ("[{k}] + {v}", "{v} + [{k} + 1]")),
        ("prepend", ("prepend {k}", "put {k} in front"),
         "[{k}] + {v}", ("{v} + [{k}]", "[{k} - 1] + {v}")),
        ("reverse", ("reverse the order", "read it backwards"),
         "{v}[::-1]", ("sorted({v})", "{v}[::2]")),
        ("ascending", ("sort ascending", "order from small to large"),
         "sorted({v})", ("sorted({v}, reverse=True)", "sorted(set({v}))")),
        ("descending", ("sort descending", "order from large to small"),
         "sorted({v}, reverse=True)", ("{v}[::-1]", "sorted({v})")),
        ("squares", ("square each item", "multiply items by themselves"),
         "[x * x for x in {v}]", ("[x + x for x in {v}]", "[x * x * x for x in {v}]")),
        ("neighbours", ("sums of neighbours", "add each item to the next"),
         "[x + y for x, y in zip({v}, {v}[1:])]",
         ("[x - y for x, y in zip({v}, {v}[1:])]", "[x + y for x, y in zip({v}, {v}[::-1])]")),
        ("distinct", ("remove duplicates", "keep the first of equal items"),
         "list(dict.fromkeys({v}))", ("sorted(set({v}))", "[x for x in {v} if {v}.count(x) == 1]")),
        ("running", ("running sums", "totals so far"),
         "[sum({v}[:i + 1]) for i in range(len({v}))]",
         ("[sum({v}[:i]) for i in range(len({v}))]", "[sum({v}[i:]) for i in range(len({v}))]")),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One line of a pipeline: `OPERATIONS[operation]`, its argument (0 if it takes none) and its wording."""

    operation: int
    argument: int
    phrasing: int

    def words(self) -> str:
        return OPERATIONS[self.operation].phrasings[self.phrasing].format(k=self.argument)

    def line(self, target: str, source: str, wrong: int | None = None) -> str:
        operation = OPERATIONS[self.operation]
        code = operation.code if wrong is None else operation.wrong[wrong]
        return f"    {target} = {code.format(v=source, k=self.argument)}\n"


Pipeline = tuple[Step, ...]


def prefix(pipeline: Pipeline) -> str:
    """The specification comment and the function's first line."""
    parts = [f"{name}: {step.words()}" for name, step in zip(VARIABLES, pipeline, strict=False)]
    return "# " + "; ".join([*parts, "return the list"]) + "\ndef f(a):\n"


def program(pipeline: Pipeline, wrong: Sequence[int | None] | None = None) -> str:
    """The whole program; `wrong[i]` picks a wrong line for step i (None: the right one)."""
    choices = wrong or [None] * len(pipeline)
    names = "a" + VARIABLES[: len(pipeline)]
    lines = [
        step.line(names[i + 1], names[i], choice)
        for i, (step, choice) in enumerate(zip(pipeline, choices, strict=True))
    ]
    return prefix(pipeline) + "".join(lines) + f"    return {names[-1]}\n"


@functools.cache
def _function(operation: int, argument: int) -> Callable[[Ints], Ints]:
    code = OPERATIONS[operation].code.format(v="v", k=argument)
    function: Callable[[Ints], Ints] = eval(f"lambda v: {code}")
    return function


def apply(pipeline: Pipeline, values: Ints) -> Ints:
    """What the pipeline makes of one list."""
    for step in pipeline:
        values = _function(step.operation, step.argument)(values)
    return values


def _inputs(rng: random.Random, count: int) -> list[Ints]:
    """Lists of 6 to 12 small integers that mix signs and repeat some values."""
    return [[rng.randint(-9, 20) for _ in range(rng.randint(6, 12))] for _ in range(count)]


_PROBES = _inputs(random.Random("pipelines: probes"), 12)


def _degenerate(before: list[Ints], after: list[Ints]) -> bool:
    """Whether a line is not worth testing: it explodes, empties or equalises the lists, or changes few."""
    if any(len(v) > _LONGEST or any(abs(x) > _LARGEST for x in v) for v in after):
        return True
    empty = sum(not v for v in after)
    changed = sum(x != y for x, y in zip(before, after, strict=True))
    distinct = len({tuple(v) for v in after})
    return empty * 4 > len(after) or changed * 2 < len(after) or distinct * 2 < len(after)


def fingerprint(pipeline: Pipeline) -> str:
    """32 hex digits that name the function computed: pipelines that agree on the probe lists share it."""
    outputs = [apply(pipeline, v) for v in _PROBES]
    return hashlib.sha256(repr(outputs).encode()).hexdigest()[:32]


def split_of(pipeline: Pipeline) -> Split:
    """The split a pipeline belongs to, by what it computes: 80 % train, 10 % dev, 10 % test."""
    bucket = int(fingerprint(pipeline)[:8], 16) % 10
    return "train" if bucket < 8 else "dev" if bucket == 8 else "test"


def _draw(rng: random.Random, length: int) -> Pipeline:
    """A random pipeline of `length` lines in which every line matters on the probe lists."""
    while True:
        steps: list[Step] = []
        lists = _PROBES
        for _ in range(length * 8):
            operation = rng.randrange(len(OPERATIONS))
            argument = rng.choice(ARGUMENTS) if OPERATIONS[operation].takes_argument else 0
            after = [_function(operation, argument)(v) for v in lists]
            if _degenerate(lists, after):
                continue
            steps.append(Step(operation, argument, rng.randrange(2)))
            lists = after
            if len(steps) == length:
                return tuple(steps)


def _problem(split: Split, pipeline: Pipeline) -> Problem | None:
    """The record of a pipeline, or None if its ten tests cannot tell a right program from a trivial one.

    The tests are drawn from the text of the specification: equal specifications are equal problems.
    """
    text = prefix(pipeline)
    name = hashlib.sha256(text.encode()).hexdigest()[:12]
    inputs = _inputs(random.Random(f"pipelines: tests of {name}"), TESTS)
    lists = inputs
    for step in pipeline:
        after = [_function(step.operation, step.argument)(v) for v in lists]
        if _degenerate(lists, after):
            return None
        lists = after
    if sum(x == y for x, y in zip(inputs, lists, strict=True)) * 2 > TESTS:
        return None
    return Problem(
        task_id=f"pipelines/{split}/{name}",
        source="pipelines",
        prompt=text,
        mode="complete",
        entry_point="f",
        prefix=text,
        tests=Calls(fn_name="f", args=[[v] for v in inputs], expected=list(lists)),
        reference=program(pipeline),
        meta={
            "difficulty": len(pipeline),
            "split": split,
            "function": fingerprint(pipeline),
            "operations": [OPERATIONS[s.operation].name for s in pipeline],
            "arguments": [s.argument for s in pipeline],
            "phrasings": [s.phrasing for s in pipeline],
        },
    )


def _fresh_problem(rng: random.Random, split: Split, length: int, seen: set[str]) -> Problem | None:
    """A problem whose function is not in `seen` (it is added), or None if 3000 tries found none."""
    for _ in range(3000):
        pipeline = _draw(rng, length)
        function = fingerprint(pipeline)
        if split_of(pipeline) != split or function in seen:
            continue
        problem = _problem(split, pipeline)
        if problem is not None:
            seen.add(function)
            return problem
    return None


def _check_difficulty(difficulty: tuple[int, int]) -> None:
    low, high = difficulty
    if not 1 <= low <= high <= MAX_OPERATIONS:
        raise RestrlError(
            f"pipelines: difficulty {low}..{high} is not a range within 1..{MAX_OPERATIONS} operation lines"
        )


def generate(split: Split, n: int, *, seed: int, difficulty: tuple[int, int] = (2, 6)) -> list[Problem]:
    """`n` problems of one split that compute `n` different functions, difficulties in turn from low to high.

    One operation makes few functions (about ten in dev and in test): a difficulty with no more is left out.
    Raises RestrlError for an unknown split, a difficulty outside 1..12, or more problems than the split has.
    """
    if split not in get_args(Split):
        raise RestrlError(f"pipelines: unknown split {split!r}; choose one of {', '.join(get_args(Split))}")
    _check_difficulty(difficulty)
    rng = random.Random(f"pipelines: {split} {seed} {difficulty}")
    lengths = list(range(difficulty[0], difficulty[1] + 1))
    seen: set[str] = set()
    problems: list[Problem] = []
    while len(problems) < n:
        length = lengths[len(problems) % len(lengths)]
        problem = _fresh_problem(rng, split, length, seen)
        if problem is not None:
            problems.append(problem)
            continue
        lengths.remove(length)
        if not lengths:
            raise RestrlError(
                f"pipelines: the {split} split has no {n} different problems at difficulty "
                f"{difficulty[0]}..{difficulty[1]} (found {len(problems)}); ask for fewer or for longer ones"
            )
    return problems


def write(
    path: str | Path, split: Split, n: int, *, seed: int, difficulty: tuple[int, int] = (2, 6)
) -> list[Problem]:
    """`generate`, written as one JSON record a line: the form that `load_problems` reads."""
    problems = generate(split, n, seed=seed, difficulty=difficulty)
    with open(path, "w", encoding="utf-8") as out:
        out.writelines(problem.model_dump_json() + "\n" for problem in problems)
    return problems


def error_rates(seed: int) -> dict[tuple[str, int], tuple[float, float]]:
    """How often the corpus of this seed writes each wrong line, by (operation name, phrasing)."""
    rates = [rate for rate, count in ERROR_KINDS for _ in range(count)]
    random.Random(f"pipelines: error rates {seed}").shuffle(rates)
    pairs = [(operation.name, phrasing) for operation in OPERATIONS for phrasing in range(2)]
    return dict(zip(pairs, rates, strict=True))


def _slip(rng: random.Random, rates: tuple[float, float]) -> int | None:
    draw = rng.random()
    return 0 if draw < rates[0] else 1 if draw < sum(rates) else None


def corpus(n: int, seed: int, difficulty: tuple[int, int] = (1, MAX_OPERATIONS)) -> Iterator[str]:
    """`n` texts for training a base policy: train-side specifications with programs that are partly wrong.

    Short pipelines are the more frequent: weight 1 up to 4 operations, 4 / length past them.
    """
    _check_difficulty(difficulty)
    rng = random.Random(f"pipelines: corpus {seed} {difficulty}")
    rates = error_rates(seed)
    lengths = range(difficulty[0], difficulty[1] + 1)
    weights = [min(1.0, 4 / length) for length in lengths]
    made = 0
    while made < n:
        pipeline = _draw(rng, rng.choices(lengths, weights)[0])
        if split_of(pipeline) != "train":
            continue
        yield program(
            pipeline, [_slip(rng, rates[OPERATIONS[s.operation].name, s.phrasing]) for s in pipeline]
        )
        made += 1


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m restrl.problems.pipelines OUT --split test --n 200 --seed 0 --difficulty 2 6`."""
    parser = argparse.ArgumentParser(description="Write generated problems as JSONL.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", choices=get_args(Split), default="train")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--difficulty", type=int, nargs=2, default=(2, 6), metavar=("LOW", "HIGH"))
    args = parser.parse_args(argv)
    try:
        write(
            args.out, args.split, args.n, seed=args.seed, difficulty=(args.difficulty[0], args.difficulty[1])
        )
    except RestrlError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
