"""Decoders on fakes: rules of selection, ties, equal budgets, curves from one run, what is refused."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pytest

from restrl.config import DecodeConfig
from restrl.decode import Candidate, answers_at, decode, decode_trees, draw, normalised, pick
from restrl.decode.trees import child_values
from restrl.errors import RestrlError
from restrl.policy import Completion, Prompt, Sampling
from restrl.prompts import PromptFormat
from restrl.records import Calls, Problem
from restrl.search import Expansion
from restrl.value import LineValues, finished, line_ends

FORM = PromptFormat(None)
LINES = ["    x = 1\n", "    x = 2\n", "    y = 3\n"]


def problem(name: str) -> Problem:
    text = f"# {name}\ndef f(a):\n"
    return Problem(
        task_id=name,
        source="pipelines",
        prompt=text,
        mode="complete",
        entry_point="f",
        prefix=text,
        tests=Calls(fn_name="f", args=[[1]], expected=[1]),
    )


PROBLEMS = [problem("p0"), problem("p1"), problem("p2")]


@dataclass
class FakePolicy:
    """Up to three lines and a return; sample i of a request depends on seed, key and i alone."""

    drawn: int = 0

    def complete(self, requests: list[Prompt], n: int, sampling: Sampling) -> list[list[Completion]]:
        self.drawn += n * len(requests)
        return [[self._one(r, i, sampling) for i in range(n)] for r in requests]

    def _one(self, request: Prompt, i: int, sampling: Sampling) -> Completion:
        name = "greedy" if sampling.temperature == 0 else f"{sampling.seed} {request.key} {i}"
        bits = hashlib.sha256(name.encode()).digest()
        done = request.state.count("\n") - 2
        text = "".join(LINES[b % 3] for b in bits[: max(0, 3 - done)]) + "    return x\n"
        count = len(text.split())
        return Completion(text, np.zeros(count, np.int64), np.full(count, -bits[9] / 100, np.float32))


@dataclass
class FakeValue:
    """The value of a partial program: the share of its lines that set x to 2, from its text alone."""

    calls: list[int] = field(default_factory=list)

    def score(self, items: list[tuple[Problem, str]]) -> list[LineValues]:
        self.calls.append(len(items))
        return [self._one(p, program) for p, program in items]

    def _one(self, p: Problem, program: str) -> LineValues:
        ends = line_ends(program, len(p.prefix))
        parts = [program[len(p.prefix) : end] for end in ends]
        return LineValues(tuple(ends), tuple(t.count("= 2") / t.count("\n") for t in parts), 7)

    def save(self, folder: object) -> None:
        raise NotImplementedError


@dataclass
class FakeVerdict:
    reward: float | None
    seconds: float = 0.25
    detail: str = "broken"


class FakeVerifier:
    def verify(self, items: list[tuple[Problem, str]]) -> list[FakeVerdict]:
        return [FakeVerdict(program.count("= 2") / 3) for _, program in items]


CFG = DecodeConfig(budget=12, k=4, simulations=50, temperature=0.7)


def candidates(*scores: float) -> list[Candidate]:
    return [Candidate(f"x = {i}\n", "", score, rank=i, tokens=1) for i, score in enumerate(scores)]


def test_highest_score_wins_and_the_first_of_equals() -> None:
    assert pick("likelihood", candidates(-3.0, -1.0, -1.0)).rank == 1
    backwards = [Candidate("a", "a", 1.0, rank=5), Candidate("b", "b", 1.0, rank=2)]
    assert pick("vm-mcts", backwards).program == "b"
    with pytest.raises(ValueError, match="no candidates"):
        pick("orm", [])


def test_vote_counts_equal_programs_and_ties_go_to_the_first() -> None:
    texts = ["x=1\n", "y = 2\n", "y  =  2   # two\n", "x = 1", "z = 3\n"]
    got = pick("vote", [Candidate(t, t, rank=i) for i, t in enumerate(texts)])
    assert got.program == "x=1\n"  # two classes of two: the one seen first
    got = pick("vote", [Candidate(t, t, rank=i) for i, t in enumerate([*texts, "y = 2"])])
    assert got.program == "y = 2\n"


def test_normalised_keeps_different_programs_apart() -> None:
    assert normalised("def f(a):\n  return a # same\n") == normalised("def f(a):\n    return (a)\n")
    assert normalised("x = 'a'") == normalised('x = "a"')
    assert normalised("x = 1") != normalised("x = 2")
    assert normalised("def f(:\n\n  x ") == normalised("def f(:\n  x\n")  # not Python: compared as text
    assert normalised("if x:\ny") != normalised("if x:\n  y")
    assert normalised("\x00") == "\x00"


def test_line_ends_and_aggregates() -> None:
    program = "# é\ndef f():\n  x = 'ü€'\n\n  return x"
    ends = line_ends(program, len("# é\ndef f():\n"))
    assert [program[:e][-1] for e in ends] == ["\n", "\n", "x"]
    assert ends[-1] == len(program)
    assert line_ends("a\nb\n", 0) == [2, 4]
    assert line_ends("ab", 2) == [2]
    values = LineValues((1, 2, 3), (0.5, 0.2, 0.4))
    assert values.aggregate("min") == 0.2
    assert values.aggregate("last") == 0.4
    assert values.aggregate("product") == pytest.approx(0.04)
    with pytest.raises(KeyError):
        values.at(4)


def test_finished_programs_end_in_one_newline() -> None:
    assert finished("a\n", "  b\n\n \t") == "a\n  b\n"
    assert finished("a\n", "") == "a\n\n"


@pytest.mark.parametrize("method", ["vote", "likelihood", "orm", "prm", "oracle", "orm-mcts", "vm-mcts"])
def test_no_method_draws_more_than_its_budget(method: str) -> None:
    policy = FakePolicy()
    got = decode(method, PROBLEMS, policy, CFG, form=FORM, seed=1, value=FakeValue(), verifier=FakeVerifier())  # type: ignore[arg-type]
    assert [a.task_id for a in got] == ["p0", "p1", "p2"]
    assert policy.drawn == sum(a.generated for a in got) <= CFG.budget * len(PROBLEMS)
    for a in got:
        assert a.budget == 12
        assert a.generated == len(a.candidates)
        assert a.generated == 12 or method.endswith("mcts")
        assert a.generated % CFG.k == 0
        assert a.generated_tokens == sum(c.tokens for c in a.candidates) > 0
        assert a.program == PROBLEMS[int(a.task_id[1])].prefix + a.completion
        distinct = len({c.program for c in a.candidates})  # a tree has equal programs scored once
        scored = {"orm": 12, "prm": 12, "orm-mcts": distinct, "vm-mcts": distinct}
        assert a.value_tokens == 7 * scored.get(method, 0)
        assert (a.verifier_seconds > 0) == (method == "oracle")


@pytest.mark.parametrize("method", ["sample", "greedy"])
def test_sample_and_greedy_draw_one(method: str) -> None:
    policy = FakePolicy()
    got = decode(method, PROBLEMS, policy, CFG, form=FORM, seed=1)  # type: ignore[arg-type]
    assert policy.drawn == 3
    assert [a.generated for a in got] == [1, 1, 1]
    again = decode(method, PROBLEMS, FakePolicy(), CFG, form=FORM, seed=1)  # type: ignore[arg-type]
    assert [a.program for a in again] == [a.program for a in got]


def test_shared_draws_give_what_own_draws_give_and_cost_the_same() -> None:
    policy = FakePolicy()
    draws = draw(PROBLEMS, policy, CFG, CFG.budget, form=FORM, seed=3)
    for method in ("sample", "vote", "likelihood", "orm", "prm"):
        shared = decode(method, PROBLEMS, policy, CFG, form=FORM, seed=3, value=FakeValue(), draws=draws)
        own = decode(method, PROBLEMS, FakePolicy(), CFG, form=FORM, seed=3, value=FakeValue())
        assert [(a.program, a.generated_tokens, a.value_tokens) for a in shared] == [
            (a.program, a.generated_tokens, a.value_tokens) for a in own
        ]
    assert policy.drawn == CFG.budget * 3


def test_rules_on_real_draws() -> None:
    draws = draw(PROBLEMS, FakePolicy(), CFG, CFG.budget, form=FORM, seed=3)
    value = FakeValue()
    for method, rule in {
        "likelihood": lambda p, s: s.log_prob,
        "orm": lambda p, s: value._one(p, s.program).values[-1],
        "prm": lambda p, s: min(value._one(p, s.program).values),
        "oracle": lambda p, s: s.program.count("= 2"),
    }.items():
        got = decode(
            method, PROBLEMS, FakePolicy(), CFG, form=FORM, seed=3, value=value, verifier=FakeVerifier(),
            draws=draws,
        )  # type: ignore[arg-type]  # fmt: skip
        for a, d in zip(got, draws, strict=True):
            scores = [rule(d.problem, s) for s in d.samples]
            assert a.program == d.samples[int(np.argmax(scores))].program, method


@pytest.mark.parametrize("method", ["sample", "vote", "likelihood", "orm", "prm", "oracle"])
def test_curve_equals_runs_with_smaller_budgets(method: str) -> None:
    args = {"form": FORM, "seed": 5, "value": FakeValue(), "verifier": FakeVerifier()}
    full = decode(method, PROBLEMS, FakePolicy(), CFG, **args)  # type: ignore[arg-type]
    policy = FakePolicy()
    for budget, got in answers_at(full, [1, 4, 7, 12, 30]).items():
        if budget <= 12:
            cfg = CFG.model_copy(update={"budget": budget})
            fresh = decode(method, PROBLEMS, FakePolicy(), cfg, **args)  # type: ignore[arg-type]
            assert [(a.program, a.generated, a.generated_tokens) for a in got] == [
                (a.program, a.generated, a.generated_tokens) for a in fresh
            ]
        assert all(a.budget == budget for a in got)
        assert all(a.generated <= budget for a in got)
    assert policy.drawn == 0
    with pytest.raises(ValueError, match="at least 1"):
        answers_at(full, [0])


@pytest.mark.parametrize("method", ["orm-mcts", "vm-mcts"])
def test_tree_curve_equals_the_search_with_fewer_expansions(method: str) -> None:
    cfg = CFG.model_copy(update={"budget": 20})
    args = {"form": FORM, "seed": 5, "value": FakeValue()}
    full = decode_trees(method, PROBLEMS, FakePolicy(), cfg, **args)  # type: ignore[arg-type]
    for a, tree in full:
        assert a.program == tree.best.program
        assert a.generated == tree.stats.completions <= 20
        assert a.generated_tokens == tree.stats.generated_tokens
    for budget in (4, 8, 12):
        cut = answers_at([a for a, _ in full], [budget])[budget]
        small = cfg.model_copy(update={"budget": budget})
        fresh = decode_trees(method, PROBLEMS, FakePolicy(), small, **args)  # type: ignore[arg-type]
        assert [[c.program for c in a.candidates] for a in cut] == [
            [c.program for c in a.candidates] for a, _ in fresh
        ]
        assert [c.score for a in cut for c in a.candidates] == [
            c.score for a, _ in fresh for c in a.candidates
        ]


def test_tree_answers_do_not_depend_on_the_batch() -> None:
    args = {"form": FORM, "seed": 5, "value": FakeValue()}
    together = decode("vm-mcts", PROBLEMS, FakePolicy(), CFG, **args)  # type: ignore[arg-type]
    one_by_one = CFG.model_copy(update={"trees_in_flight": 1})
    alone = decode("vm-mcts", PROBLEMS, FakePolicy(), one_by_one, **args)  # type: ignore[arg-type]
    assert [a.program for a in together] == [a.program for a in alone]
    assert [a.generated_tokens for a in together] == [a.generated_tokens for a in alone]


def test_the_tree_uses_its_values() -> None:
    """With exact values at line ends, search finds better programs than the same number of samples."""
    many = [problem(f"q{i}") for i in range(40)]
    cfg = CFG.model_copy(update={"budget": 12, "k": 3, "num_decisions": 3})
    args = {"form": FORM, "seed": 0, "value": FakeValue()}

    def quality(method: str) -> float:
        got = decode(method, many, FakePolicy(), cfg, **args)  # type: ignore[arg-type]
        return float(np.mean([a.program.count("= 2") for a in got]))

    assert quality("vm-mcts") > quality("orm") > quality("sample")


def test_child_value_is_read_where_its_line_ends() -> None:
    state = "def f():\n"
    programs = [state + "  a\n  b\n", state + "  c\n", state + "  a\n  d\n"]
    expansion = Expansion("p", state, "p/0", [], programs, [state + "  a\n", state + "  c\n"], [0, 1, 0])
    n = len(state)
    values = [
        LineValues((n + 4, n + 8), (0.3, 0.9)),
        LineValues((n + 4,), (0.6,)),
        LineValues((n + 4, n + 8), (0.3, 0.1)),
    ]
    assert child_values(expansion, values) == [0.3, 0.6]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(RestrlError, match="needs a value model"):
        decode("orm", PROBLEMS, FakePolicy(), CFG, form=FORM, seed=0)
    with pytest.raises(RestrlError, match="needs a value model"):
        decode("vm-mcts", PROBLEMS, FakePolicy(), CFG, form=FORM, seed=0)
    with pytest.raises(RestrlError, match="needs a verifier"):
        decode("oracle", PROBLEMS, FakePolicy(), CFG, form=FORM, seed=0)
    with pytest.raises(RestrlError, match="unknown decoding method 'best'"):
        decode("best", PROBLEMS, FakePolicy(), CFG, form=FORM, seed=0)  # type: ignore[arg-type]

    class Silent(FakePolicy):
        def _one(self, request: Prompt, i: int, sampling: Sampling) -> Completion:
            return Completion("    return a\n")

    with pytest.raises(RestrlError, match="no log-probabilities"):
        decode("likelihood", PROBLEMS, Silent(), CFG, form=FORM, seed=0)
    draws = draw(PROBLEMS, FakePolicy(), CFG, 2, form=FORM, seed=0)
    with pytest.raises(ValueError, match="fewer than 12"):
        decode("vote", PROBLEMS, FakePolicy(), CFG, form=FORM, seed=0, draws=draws)
    with pytest.raises(ValueError, match="do not belong"):
        decode("vote", PROBLEMS[1:], FakePolicy(), CFG, form=FORM, seed=0, draws=draws)
