"""The schedule: what overlaps, what shares a batch, what ends it; the tree must not notice any of it."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import traceback
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restrl._core import Forest, dummy_completions, dummy_score
from restrl.errors import RestrlError
from restrl.policy import Completion
from restrl.search import Evaluation, Expansion, Request, Root, SearchParams, Timing, TreeResult, grow, search
from restrl.search.records import Answered

ROOTS = [Root(f"task/{i}", f"def f{i}(x):\n") for i in range(7)]
PATIENCE = 20.0  # seconds until an event that must come counts as missing


def draw(request: Request) -> list[Completion]:
    texts = dummy_completions(request.seed_key, request.k)
    return [Completion(text, np.arange(len(text))) for text in texts]


def complete(requests: list[Request]) -> list[list[Completion]]:
    assert all(request.k > 0 for request in requests)
    return [draw(request) for request in requests]


def evaluate(expansions: list[Expansion]) -> list[Evaluation]:
    return [
        Evaluation([dummy_score(p) for p in e.programs], [dummy_score(c) for c in e.children])
        for e in expansions
    ]


class Trickle:
    """A Source with `places` that answers some of its requests at a time, in an order drawn from a seed."""

    def __init__(self, seed: int = 0, places: int = 5) -> None:
        self.random, self.places = random.Random(seed), places
        self.open: list[Request] = []
        self.calls: list[list[str]] = []

    @property
    def busy(self) -> bool:
        return bool(self.open)

    @property
    def hungry(self) -> bool:
        return len(self.open) < self.places

    def advance(self, requests: list[Request]) -> Answered:
        self.open += requests
        self.calls.append([request.seed_key for request in self.open])
        self.random.shuffle(self.open)
        count = self.random.randint(1, min(len(self.open), self.places))
        done, self.open = self.open[:count], self.open[count:]
        return [(request, draw(request)) for request in done]


def threads_left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("restrl-evaluate")]


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(["collect", "value", "outcome"]),
    leaves=st.integers(1, 6),
    simulations=st.integers(1, 25),
    reuse=st.booleans(),
    virtual_loss=st.sampled_from(["loss", "unobserved"]),
    trees=st.integers(1, 8),
    max_batch=st.none() | st.integers(1, 5),
    evaluate_batch=st.none() | st.integers(1, 3),
    how=st.sampled_from(["in turns", "overlap", "stream", "stream in turns"]),
    seed=st.integers(0, 9),
)
def test_a_tree_is_the_serial_tree_whatever_the_schedule(
    mode: str, leaves: int, simulations: int, reuse: bool, virtual_loss: str, trees: int,
    max_batch: int | None, evaluate_batch: int | None, how: str, seed: int,
) -> None:  # fmt: skip
    params = SearchParams(
        mode, simulations=simulations, leaves_in_flight=leaves, reuse=reuse, virtual_loss=virtual_loss
    )

    def run(roots: list[Root], **options: Any) -> list[Any]:
        found = search(roots, params, complete=complete, evaluate=evaluate, **options)
        return [tree.to_json() for tree in found]

    serial = [run([root], overlap=False)[0] for root in ROOTS]
    got = run(
        ROOTS, trees_in_flight=trees, max_batch=max_batch, evaluate_batch=evaluate_batch,
        overlap=not how.endswith("in turns"), source=Trickle(seed) if how.startswith("stream") else None,
    )  # fmt: skip
    assert got == serial
    assert threads_left() == []


@pytest.mark.parametrize("stream", [False, True])
def test_scoring_runs_beside_generation(stream: bool) -> None:
    """The second batch is not completed before scoring of the first has begun, nor that ended before it."""
    generating, scoring = threading.Event(), threading.Event()
    calls: list[int] = []

    def waits(requests: list[Request]) -> list[list[Completion]]:
        calls.append(len(requests))
        if len(calls) == 2:
            generating.set()
            assert scoring.wait(PATIENCE)
        return complete(requests)

    def scores(expansions: list[Expansion]) -> list[Evaluation]:
        scoring.set()
        assert generating.wait(PATIENCE)
        return evaluate(expansions)

    class Halves(Trickle):
        def advance(self, requests: list[Request]) -> Answered:
            self.open += requests
            done, self.open = self.open[: (len(self.open) + 1) // 2], self.open[(len(self.open) + 1) // 2 :]
            return list(zip(done, waits(done), strict=True))

    found = search(
        ROOTS, SearchParams(simulations=6), complete=waits, source=Halves() if stream else None,
        evaluate=scores,
    )  # fmt: skip
    assert calls[0] == 4
    assert len(found) == len(ROOTS)


def test_the_trees_fall_into_two_halves_that_take_turns() -> None:
    batches: list[set[str]] = []

    def records(requests: list[Request]) -> list[list[Completion]]:
        batches.append({request.key for request in requests})
        return complete(requests)

    search(ROOTS[:6], SearchParams(simulations=8), complete=records, evaluate=evaluate)
    assert [len(batch) for batch in batches[:6]] == [3] * 6
    assert batches[0] == batches[2] == batches[4] != batches[1] == batches[3]


@pytest.mark.parametrize("stream", [False, True])
def test_batches_do_not_depend_on_the_clock(stream: bool) -> None:
    """Scores that take no time, or a long time now and then: the same requests share a batch."""

    def run(slow: random.Random | None) -> list[list[str]]:
        source, batches = Trickle(3), []

        def records(requests: list[Request]) -> list[list[Completion]]:
            batches.append([request.seed_key for request in requests])
            return complete(requests)

        def scores(expansions: list[Expansion]) -> list[Evaluation]:
            if slow is not None:
                time.sleep(slow.choice([0, 0, 0.02]))
            return evaluate(expansions)

        search(
            ROOTS, SearchParams(simulations=12, leaves_in_flight=2), complete=records, evaluate=scores,
            source=source if stream else None, trees_in_flight=4, max_batch=3,
        )  # fmt: skip
        return source.calls if stream else batches

    assert run(None) == run(random.Random(1)) == run(random.Random(2))


def test_a_finished_trees_place_is_taken_while_the_others_go_on() -> None:
    """One completion that is longer than all others together: the other trees pass by it."""

    class FirstIsLong(Trickle):
        def advance(self, requests: list[Request]) -> Answered:
            self.open += requests
            self.calls.append([request.key for request in self.open])
            count = 1 if len(self.open) > 1 else 0
            done, self.open = self.open[count:], self.open[:count]
            return [(request, draw(request)) for request in done]

    source, order = FirstIsLong(), []
    search(
        ROOTS, SearchParams(simulations=1), source=source, evaluate=evaluate, overlap=False,
        trees_in_flight=3, on_done=lambda tree: order.append(tree.key),
    )  # fmt: skip
    assert order == [root.key for root in (*ROOTS[1:], ROOTS[0])]
    assert [len(call) for call in source.calls] == [3, 3, 3, 1]
    assert all("task/0" in call for call in source.calls)


def test_each_backend_has_its_own_largest_batch() -> None:
    asked: list[int] = []
    scored: list[int] = []

    def asks(requests: list[Request]) -> list[list[Completion]]:
        asked.append(len(requests))
        return complete(requests)

    def scores(expansions: list[Expansion]) -> list[Evaluation]:
        scored.append(len(expansions))
        return evaluate(expansions)

    params = SearchParams(simulations=10, leaves_in_flight=4)
    search(ROOTS, params, complete=asks, evaluate=scores, max_batch=6, evaluate_batch=4)
    assert max(asked) == 6
    assert max(scored) == 4
    assert sum(asked) == sum(scored)


class Watched(Forest):
    made: list[Forest] = []  # noqa: RUF012

    def __init__(self, params: SearchParams, seed: int, splitter: Any) -> None:
        super().__init__(params, seed)
        self.made.append(self)


@pytest.mark.parametrize("place", ["advance", "evaluate", "on_done"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_any_thread_reaches_the_caller_with_its_traceback(monkeypatch, place, error) -> None:
    monkeypatch.setattr("restrl.search.grove.Forest", Watched)
    source = Trickle()
    calls = {"advance": source.advance, "evaluate": evaluate, "on_done": lambda tree: None}
    count = 0

    def fails_here(argument: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise error("stop")
        return calls[place](argument)

    calls = {**calls, place: fails_here, "advance": calls["advance"]}
    if place == "advance":
        original = source.advance
        calls["advance"] = original
        source.advance = fails_here  # type: ignore[method-assign]
    with pytest.raises(error, match="stop") as caught:
        search(
            ROOTS, SearchParams(simulations=6, leaves_in_flight=2), source=source,
            evaluate=calls["evaluate"], on_done=calls["on_done"],
        )  # fmt: skip
    assert "fails_here" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert Watched.made[-1].in_flight() == 0
    assert threads_left() == []


def test_ctrl_c_while_scores_are_waited_for() -> None:
    """The signal arrives in the main thread, which waits for the other one; the call under way is let end."""
    ended = threading.Event()

    def scores(expansions: list[Expansion]) -> list[Evaluation]:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        ended.set()
        return evaluate(expansions)

    with pytest.raises(KeyboardInterrupt):
        search(ROOTS[:1], SearchParams(simulations=9), complete=complete, evaluate=scores)
    assert ended.is_set()
    assert threads_left() == []


def test_leaving_the_generator_early_ends_the_search(monkeypatch) -> None:
    monkeypatch.setattr("restrl.search.grove.Forest", Watched)
    trees = grow(ROOTS, SearchParams(simulations=8), complete=complete, evaluate=evaluate, trees_in_flight=2)
    first = next(trees)
    assert first.key in {"task/0", "task/1"}
    assert Watched.made[-1].in_flight() > 0
    trees.close()
    assert Watched.made[-1].in_flight() == 0
    assert threads_left() == []
    assert [tree.key for tree in trees] == []


def test_answers_that_do_not_fit_are_errors_in_a_thread_too() -> None:
    bad: list[tuple[Any, str]] = [
        (lambda rows: [], r"evaluate\(\) answered 0 of 1 expansions"),
        (lambda rows: [Evaluation([1.0] * 4)] * len(rows), "needs 5 completion values, not 4"),
        (lambda rows: [Evaluation([float("nan")] * 5)] * len(rows), "not finite"),
    ]
    for scores, message in bad:
        with pytest.raises(RestrlError, match=message):
            search(ROOTS[:2], SearchParams(), complete=complete, evaluate=scores)
    with pytest.raises(RestrlError, match="complete or source"):
        search(ROOTS[:2], SearchParams(), evaluate=evaluate)
    assert threads_left() == []


@pytest.mark.parametrize("overlap", [False, True])
def test_timing_says_where_the_seconds_went(overlap: bool) -> None:
    timing = Timing()

    def scores(expansions: list[Expansion]) -> list[Evaluation]:
        time.sleep(0.03)
        return evaluate(expansions)

    def slow(requests: list[Request]) -> list[list[Completion]]:
        time.sleep(0.01)
        return complete(requests)

    begin = time.perf_counter()
    params = SearchParams(simulations=3)
    for _ in range(2):
        search(ROOTS[:2], params, complete=slow, evaluate=scores, overlap=overlap, timing=timing)
    wall = time.perf_counter() - begin
    assert timing.wall == pytest.approx(wall, rel=0.2)
    assert timing.generate >= 0.01 * timing.batches
    assert timing.score >= 0.03 * (12 if overlap else 6)
    assert 0 < timing.engine < timing.wall / 2
    assert timing.inline == (0 if overlap else timing.score)
    assert (timing.wait > 0.03) == overlap
    assert 0 <= timing.driver < timing.wall / 2


def reused(mode: str, simulations: int, leaves: int = 1) -> tuple[list[TreeResult], list[TreeResult], int]:
    """Trees with reuse and without, and how many completions the former asked for."""
    asked = 0

    def counts(requests: list[Request]) -> list[list[Completion]]:
        nonlocal asked
        asked += sum(request.k for request in requests)
        return complete(requests)

    both = []
    for reuse in (True, False):
        params = SearchParams(mode, simulations=simulations, leaves_in_flight=leaves, reuse=reuse)
        both.append(search(ROOTS, params, complete=counts if reuse else complete, evaluate=evaluate))
    return both[0], both[1], asked


@pytest.mark.parametrize("mode", ["collect", "value", "outcome"])
@pytest.mark.parametrize("leaves", [1, 4])
def test_reuse_asks_for_less_and_gives_whole_expansions(mode: str, leaves: int) -> None:
    trees, plain, asked = reused(mode, 30, leaves)
    assert asked == sum(tree.stats.samples for tree in trees)
    assert sum(tree.stats.reused for tree in trees) > 0
    for tree, other in zip(trees, plain, strict=True):
        stats, rows = tree.stats, tree.completions
        assert stats.completions == len(rows) == 5 * stats.expansions == stats.samples + stats.reused
        assert stats.samples == sum(row.source < 0 for row in rows)
        assert other.stats.reused == 0
        assert {row.source for row in other.completions} == {-1}
        lengths = []
        for node in (node for node in tree.nodes if node.expanded):
            own = [row for row in rows if row.at is node]
            fresh = [row.tokens for row in own if row.source < 0]
            assert [row.source < 0 for row in own] == sorted(row.source < 0 for row in own)
            texts = dummy_completions(f"{tree.key}/{node.simulation}", len(fresh)) if fresh else []
            assert fresh == [len(text) for text in texts]
            lengths += fresh
        assert stats.generated_tokens == sum(lengths)
        for row in rows:
            if row.source >= 0:
                source = rows[row.source]
                assert (row.tokens, row.value) == (0, source.value)
                assert row.program.rstrip() == source.program.rstrip()
        assert tree.best.value == max(row.value for row in rows)
        assert tree.best.source == -1
        programs = [row["program"] for row in tree.value_targets("dense")]
        assert len(set(programs)) == len(programs)
        assert set(programs) == {row.program for row in rows if row.source < 0}
        assert len(tree.value_targets("reference")) == stats.samples + stats.expansions


def test_a_leaf_with_all_its_completions_asks_the_policy_for_nothing() -> None:
    """Five equal completions of four lines: one draw gives four expansions."""

    def same(requests: list[Request]) -> list[list[Completion]]:
        assert all(request.k == 5 and not request.reused for request in requests)
        return [[Completion("a\nb\nc\nd", np.arange(4))] * request.k for request in requests]

    for mode in ("collect", "value"):
        params = SearchParams(mode, simulations=4, reuse=True)
        for tree in search(ROOTS[:3], params, complete=same, evaluate=evaluate):
            assert (tree.stats.samples, tree.stats.reused, tree.stats.generated_tokens) == (5, 15, 20)
            assert (tree.stats.expansions, tree.stats.terminal_visits) == (4, 0)


def test_a_splitter_takes_the_place_of_the_line_rule() -> None:
    def by_statement(text: str) -> int:
        return text.find(";") + 1 or len(text)

    def statements(requests: list[Request]) -> list[list[Completion]]:
        return [[Completion(f"a;b{request.seed_key};c{i}") for i in range(request.k)] for request in requests]

    trees = [
        search(
            ROOTS[:2], SearchParams("value", simulations=6, reuse=True, step_ends=ends),
            complete=statements, evaluate=evaluate, splitter=splitter,
        )
        for ends, splitter in ((("\n",), by_statement), ((";",), None))
    ]  # fmt: skip
    lines = [[node.line for node in tree.nodes] for tree in trees[0]]
    assert lines == [[node.line for node in tree.nodes] for tree in trees[1]]
    assert lines[0][1] == "a;"
    assert f"b{ROOTS[0].key}/0;" in lines[0]
