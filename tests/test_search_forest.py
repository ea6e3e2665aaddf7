"""The native forest under many leaves and threads: laws, timing, texts by reference."""

from __future__ import annotations

import math
import random
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restrl._core import AnswerError, Forest, ParamError, RequestError, SearchParams

sys.path.insert(0, str(Path(__file__).parent))
import oracle

KEYS = ("a", "b", "c")
ROOT = "def f():\n"


class Task:
    """Answers that depend on the tree and the simulation alone."""

    def __init__(self, params: SearchParams, seed: int, pool: list[str]) -> None:
        self.params, self.seed, self.pool = params, seed, pool

    def texts(self, request: Any) -> list[str]:
        draws = (
            oracle.mix(self.seed ^ request.tree << 32 ^ request.simulation << 8 ^ i) for i in range(99999)
        )
        return [self.pool[draw % len(self.pool)] for draw, _ in zip(draws, range(request.k), strict=False)]

    def scores(self, forest: Forest, request: Any) -> dict[str, list[list[float]]]:
        split = forest.expansion(request.id)
        assert split["reused"] == request.reused == self.params.k - request.k
        assert len(split["programs"]) == self.params.k
        fresh = split["programs"][request.reused :]
        scores = {"completion_values": [[oracle.toy_score(program) for program in fresh]]}
        if self.params.mode == "value":
            scores["child_values"] = [[oracle.toy_child_score(child) for child in split["children"]]]
        return scores

    def work(self, forest: Forest, shuffle: random.Random) -> None:
        """Asks and answers, in any order, in one call or two, until nothing is under way."""
        waiting: list[Any] = []
        while True:
            waiting += forest.next(shuffle.randint(1, 9))
            assert forest.in_flight() <= len(KEYS) * self.params.leaves_in_flight
            if not waiting:
                if forest.in_flight() == 0:
                    return
                continue
            request = waiting.pop(shuffle.randrange(len(waiting)))
            if shuffle.random() < 0.3 and self.params.mode != "value" and request.reused == 0:
                programs = [(request.state + text.rstrip() + "\n") for text in self.texts(request)]
                values = [[oracle.toy_score(program) for program in programs]]
                forest.fulfil([request.id], [self.texts(request)], values)
                continue
            forest.fulfil([request.id], completions=[self.texts(request)])
            forest.fulfil([request.id], **self.scores(forest, request))

    def grow(self, threads: int, shuffle: int) -> list[tuple[Any, Any]]:
        forest = Forest(self.params, self.seed)
        trees = [forest.add(key, ROOT) for key in KEYS]
        errors: list[BaseException] = []

        def run(number: int) -> None:
            try:
                self.work(forest, random.Random(100 * shuffle + number))
            except BaseException as error:
                errors.append(error)
                raise

        workers = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not errors
        assert sorted(forest.take_finished()) == trees
        assert forest.in_flight() == 0
        assert [forest.nodes_in_flight(tree) for tree in trees] == [0, 0, 0]
        return [(forest.view(tree), forest.stats(tree)) for tree in trees]


def check_laws(params: SearchParams, view: Any, stats: Any) -> None:
    """What each node's N and W must be, from its own completions and what went through its children."""
    by_value, k = params.mode == "value", params.k
    assert stats["simulations"] == stats["expansions"] + stats["terminal_visits"]
    assert stats["samples"] + stats["reused"] == stats["completions"] == k * stats["expansions"]
    assert len(view["completions"]) == stats["completions"]
    assert sum(row[4] >= 0 for row in view["completions"]) == stats["reused"]
    assert stats["reused"] == 0 or params.reuse
    assert stats["samples"] <= (params.max_samples or math.inf)
    nodes = view["nodes"]
    below, below_W = [0] * len(nodes), [0.0] * len(nodes)
    own, own_W = [0] * len(nodes), [0.0] * len(nodes)
    again, again_W = [0] * len(nodes), [0.0] * len(nodes)  # visits of a node that its ancestors do not count
    for node, child, value, text, source in view["completions"]:
        own[node] += 1
        own_W[node] += value
        assert text.startswith(nodes[child][-1])
        if source >= 0:
            again[node] += 1
            again_W[node] += value
            origin = view["completions"][source]
            assert (origin[1], origin[2]) == (node, value)
            assert origin[3] == nodes[node][-1] + text or (text, origin[3]) == ("\n", nodes[node][-1])
    for i in range(len(nodes) - 1, 0, -1):
        parent, _, _, N, W, *_ = nodes[i]
        below[parent] += N - (0 if by_value else again[i])
        below_W[parent] += W - (0 if by_value else again_W[i])
    for i, (_, _, simulation, N, W, V, terminal, expanded, *_) in enumerate(nodes):
        assert expanded == (own[i] == k) == (simulation >= 0)
        assert not (terminal and expanded)
        assert N == 0 or math.isclose(V, W / N, rel_tol=1e-15)
        if expanded and not by_value:
            assert below[i] + k == N
            assert math.isclose(W, below_W[i] + own_W[i], rel_tol=1e-9, abs_tol=1e-9)
        if expanded and by_value:  # its own score counts besides, but for the root, once for each sample
            assert below[i] < N if i else below[i] == N
    drawn = stats["completions"] if by_value else stats["samples"]
    assert nodes[0][3] == drawn + stats["terminal_visits"]


LINES = st.lists(st.sampled_from([*oracle.LINES, "x;y", "z"]), min_size=1, max_size=5).map("\n".join)


@settings(max_examples=60, deadline=None)
@given(
    pool=st.lists(LINES, min_size=1, max_size=30),
    seed=st.integers(0, 2**64 - 1),
    leaves_in_flight=st.integers(1, 32),
    simulations=st.integers(1, 50),
    mode=st.sampled_from(["collect", "value", "outcome"]),
    ties=st.sampled_from(["seeded", "first"]),
    virtual_loss=st.sampled_from(["loss", "unobserved"]),
    reuse=st.booleans(),
    k=st.integers(1, 7),
    max_samples=st.sampled_from([0, 0, 0, 60]),
    step_ends=st.sampled_from([("\n",), ("\n", ";")]),
)
def test_threads_and_the_order_of_answers_do_not_matter(pool, seed, **fields) -> None:
    params = SearchParams(**fields)
    task = Task(params, seed, pool)
    one = task.grow(1, 0)
    for view, stats in one:
        check_laws(params, view, stats)
        if not params.max_samples:
            assert stats["simulations"] == params.simulations
    assert task.grow(1, 1) == one
    assert task.grow(2, 2) == one
    assert task.grow(4, 3) == one


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    leaves=st.integers(1, 32),
    reuse=st.booleans(),
    mode=st.sampled_from(["collect", "value"]),
    in_order=st.booleans(),
    data=st.data(),
)
def test_cancels_failures_and_any_order_leave_nothing_in_flight(seed, leaves, reuse, mode, in_order, data):
    params = SearchParams(mode, simulations=30, leaves_in_flight=leaves, reuse=reuse, in_order=in_order)
    task = Task(params, seed, ["a\nb\nc\nd", "a\nb\ne", "a\nf\ng", "h\ni", "h\nj\nk", "l"])
    forest = Forest(params, seed)
    tree = forest.add("a", ROOT)
    waiting: list[Any] = []
    for action in [*data.draw(st.lists(st.sampled_from("nnaaaacCxw"), max_size=60)), "rest"]:
        waiting += forest.next(3)
        if action == "rest" or not waiting:
            break
        request = waiting[data.draw(st.integers(0, len(waiting) - 1))]
        before = forest.view(tree), forest.stats(tree)
        if action == "x":
            with pytest.raises(AnswerError, match="completions, not"):
                forest.fulfil([request.id], completions=[["x"] * (request.k + 1)])
        elif action == "w":
            with pytest.raises(RequestError):
                forest.fulfil([request.id, 12345], completions=[task.texts(request), []])
        elif action == "C":
            forest.cancel_all()
            waiting.clear()
            assert forest.in_flight() == forest.nodes_in_flight(tree) == 0
        elif action in "ac":
            waiting.remove(request)
            forest.fulfil([request.id], completions=[task.texts(request)])
            if action == "a":
                forest.fulfil([request.id], **task.scores(forest, request))
            else:
                forest.cancel([request.id])
        if action in "xw":
            assert (forest.view(tree), forest.stats(tree)) == before
    check_laws(params, forest.view(tree), forest.stats(tree))
    forest.cancel_all()
    assert forest.in_flight() == forest.nodes_in_flight(tree) == 0
    task.work(forest, random.Random(seed))
    assert forest.stats(tree)["simulations"] == 30
    assert forest.nodes_in_flight(tree) == 0
    check_laws(params, forest.view(tree), forest.stats(tree))


def test_arrays_and_flat_lists_are_the_lists_of_lists() -> None:
    views = []
    for form in ("rows", "flat", "arrays"):
        forest = Forest(SearchParams("value", simulations=40, leaves_in_flight=4, reuse=True), 1)
        for key in KEYS:
            forest.add(key, ROOT)
        task = Task(forest.params, 1, ["a\nb\nc", "a\nd", "e\nf", "g"])
        while True:
            ids, trees, simulations, k = forest.take(5)
            if not len(ids):
                break
            assert (ids.dtype, trees.dtype, simulations.dtype, k.dtype) == ("u8", "u4", "u4", "u4")
            requests = [
                _Request(*row) for row in zip(*map(np.ndarray.tolist, (trees, simulations, k)), strict=True)
            ]
            texts = [task.texts(request) for request in requests]
            flat = [text for row in texts for text in row]
            forest.fulfil(ids if form == "arrays" else ids.tolist(), texts if form == "rows" else flat)
            assert [split["state"] for split in map(forest.expansion, ids)] == forest.states(ids)
            children = [len(split["children"]) for split in map(forest.expansion, ids)]
            assert forest.children(ids).tolist() == children
            values = [[len(text) / 8 for text in row] for row in texts]
            scores = [[0.25 * i for i in range(count)] for count in children]
            if form == "rows":
                forest.fulfil(ids.tolist(), completion_values=values, child_values=scores)
            else:
                make = np.array if form == "arrays" else list
                columns = [make([x for row in rows for x in row]) for rows in (values, scores)]
                forest.fulfil(ids, completion_values=columns[0], child_values=columns[1])
        views.append([forest.view(tree) for tree in range(3)])
    assert views[0] == views[1] == views[2]


class _Request:
    def __init__(self, tree: int, simulation: int, k: int) -> None:
        self.tree, self.simulation, self.k = tree, simulation, k


def open_forest(**fields: Any) -> tuple[Forest, int]:
    forest = Forest(SearchParams(**{"k": 2, **fields}), 0)
    forest.add("a", "")
    return forest, forest.next(1)[0].id


def test_arguments_that_do_not_fit_are_named() -> None:
    forest, id = open_forest()
    for arguments, error, message in [
        (([id], [["a"]]), AnswerError, "needs 2 completions, not 1"),
        (([id], ["a"]), AnswerError, "need 2 completions in all, not 1"),
        (([id], [["a", "b"], []]), AnswerError, "1 requests got 2 lists of completions"),
        (([id], ["a", ["b"]]), TypeError, "expected str, not <class 'list'>"),
        (([id], [["a"], "b"]), TypeError, "rows or one flat list"),
        (([id], [["a", 3]]), TypeError, "expected str, not <class 'int'>"),
        (([id], 3), TypeError, "expected a sequence of completions"),
        (([id, id], [["a", "b"]] * 2), RequestError, "twice"),
        (([-1], [["a", "b"]]), RequestError, "request -1 is not open"),
        (([2**64], [["a", "b"]]), RequestError, "is not open"),
        ((["x"], [["a", "b"]]), TypeError, "int"),
        ((np.array([0.5]), [["a", "b"]]), TypeError, "array of integers"),
        (([id], ["a", "b"], [0.5]), AnswerError, "needs 2 completion values, not 1"),
        (([id], ["a", "b"], np.ones(3)), AnswerError, "need 2 completion values in all, not 3"),
        (([id], ["a", "b"], ["x", "y"]), TypeError, "real number"),
        (([id], ["a", "b"], [[0.5, math.inf]]), AnswerError, "not finite"),
        (([id], ["a", "b"], [[0.5, 1]], [[1.0]]), AnswerError, "needs 0 child values, not 1"),
        (([id], ["a", "b"], None, [[1.0]]), AnswerError, "child_values came without completion_values"),
    ]:
        with pytest.raises(error, match=message):
            forest.fulfil(*arguments)
        with pytest.raises(AnswerError, match="no completions yet"):
            forest.expansion(id)
    forest.fulfil([np.uint64(id)], ("a", "b"), [(0.5, np.float32(1))])
    assert forest.stats(0)["expansions"] == 1


@pytest.mark.parametrize("splitter", [None, len])
def test_texts_are_held_not_copied_and_let_go(splitter: Any) -> None:
    def fresh(number: int) -> str:
        return f"text {number} " * 3

    def held() -> list[int]:
        return [sys.getrefcount(text) for text in texts]

    texts = [fresh(i) for i in range(6)] + ["é " + fresh(7), "\ud800 " + fresh(8)]
    before = held()
    forest = Forest(SearchParams(k=4, simulations=5, leaves_in_flight=1), 0, splitter)
    first, second = forest.add("a", ""), forest.add("b", "")
    ids = [request.id for request in forest.next(2)]
    with pytest.raises(AnswerError):
        forest.fulfil(ids, completions=texts[:7])
    with pytest.raises(TypeError):
        forest.fulfil(ids, completions=[*texts[:7], 7])  # type: ignore[list-item]
    assert held() == before
    forest.fulfil(ids, completions=texts)
    assert [after - was for after, was in zip(held(), before, strict=True)] == [1] * 7 + [0]
    forest.cancel(ids[1:])
    assert [after - was for after, was in zip(held(), before, strict=True)] == [1] * 4 + [0] * 4
    forest.fulfil(ids[:1], completion_values=[1.0, 0.0, 0.0, 0.0])
    assert [row[3] for row in forest.view(first)["completions"]] == [t.rstrip() + "\n" for t in texts[:4]]
    assert forest.take_finished() == [first]
    forest.remove(first)
    assert held() == before
    (request,) = forest.next(1)
    forest.fulfil([request.id], completions=texts[4:], completion_values=[1.0] * 4)
    assert forest.view(second)["completions"][3][3] == texts[7].rstrip() + "\n"
    assert held() != before
    del forest
    assert held() == before


def test_cancelled_samples_go_back_to_the_budget() -> None:
    forest = Forest(SearchParams(k=5, max_samples=10, leaves_in_flight=4, simulations=100))
    tree = forest.add("a", "")
    texts = ["a\nx", "b\nx", "c\nx", "d\nx", "e\nx"]
    for answered in range(2):
        for _ in range(4):  # once the second leaf is selected there is no sample left for a third
            (request,) = forest.next(9)
            forest.cancel([request.id])
        (request,) = forest.next(9)
        forest.fulfil([request.id], texts, [0.5] * 5)
        assert forest.stats(tree)["samples"] == 5 * answered + 5
    assert forest.next(9) == []
    assert forest.take_finished() == [tree]


def test_leaves_in_flight_times_k_has_a_limit() -> None:
    SearchParams(leaves_in_flight=13107, k=5)
    with pytest.raises(ParamError, match="leaves_in_flight = 13108 must be at most 13107 with k = 5"):
        SearchParams(leaves_in_flight=13108)
    for ends in [(), ("",), ("a", "")]:
        with pytest.raises(ParamError, match="step_ends"):
            SearchParams(step_ends=ends)
    with pytest.raises(TypeError, match="step_ends"):
        SearchParams(step_ends="\n")
    assert SearchParams(step_ends=["\n", ";"]).step_ends == ("\n", ";")
