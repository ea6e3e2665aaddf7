"""What attacks on the search engine found; each of these crashed it, or left it changed by a failed call."""

from __future__ import annotations

import gc
import math
import sys
from typing import Any

import numpy as np
import pytest

from restrl._core import AnswerError, Forest, SnapshotError
from restrl.search import SearchParams


def asked(k: int = 2, splitter: Any = None) -> tuple[Forest, int, int]:
    """A forest of one tree, the tree and its open request."""
    forest = Forest(SearchParams(k=k), splitter=splitter)
    tree = forest.add("a", "S\n")
    return forest, tree, forest.next(1)[0].id


def test_a_failed_call_leaves_a_request_without_samples_as_it_was() -> None:
    forest = Forest(SearchParams("value", k=2, reuse=True, leaves_in_flight=4))
    tree, other = forest.add("a", "S\n"), forest.add("b", "S\n")
    requests = {request.tree: request.id for request in forest.next(10)}
    forest.fulfil([requests[tree]], [["x\ny\nz"] * 2], [[0.5, 0.5]], [[0.5]])
    (reused,) = forest.next(10)
    assert (reused.tree, reused.k) == (tree, 0)
    before = forest.expansion(reused.id)
    ids = [reused.id, requests[other]]
    with pytest.raises(AnswerError, match="not finite"):
        forest.fulfil(ids, [[], ["p\nq", "r\ns"]], [[], [0.1, math.nan]], [[0.3], [0.1, 0.2]])
    assert forest.expansion(reused.id) == before
    with pytest.raises(AnswerError, match="needs 1 child values"):
        forest.fulfil([reused.id], None, np.zeros(0), np.zeros(0))
    forest.fulfil(ids, [[], ["p\nq", "r\ns"]], [[], [0.1, 0.4]], [[0.3], [0.1, 0.2]])


def test_an_answer_with_nothing_in_it_is_none() -> None:
    """It made the request look completed, with the texts of whichever request had its place before."""
    forest, _, first = asked()
    texts = [f"an answer\n{i}" for i in range(2)]
    counts = [sys.getrefcount(text) for text in texts]
    forest.fulfil([first], [texts], [[0.0, 1.0]])
    (second,) = forest.next(1)
    with pytest.raises(AnswerError, match=f"request {second.id} got neither completions nor scores"):
        forest.fulfil([second.id])
    with pytest.raises(AnswerError, match="has no completions yet"):
        forest.expansion(second.id)
    with pytest.raises(AnswerError, match="before its completions"):
        forest.fulfil([second.id], None, [[0.0, 1.0]])
    forest.cancel([second.id])
    del forest
    gc.collect()
    assert [sys.getrefcount(text) for text in texts] == counts
    Forest(SearchParams()).fulfil([])


def test_lists_that_change_while_they_are_read() -> None:
    values: list[Any] = []

    class Clears:
        def __float__(self) -> float:
            values.clear()
            return 1.0

    forest, _, request = asked(k=2000)
    values += [Clears(), *range(1999)]
    with pytest.raises(AnswerError):
        forest.fulfil([request], [["a"] * 2000], values)

    rows: list[Any] = []

    class Row:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, i: int) -> str:
            rows.clear()
            if i > 1:
                raise IndexError
            return "a"

    rows += [Row() for _ in range(500)]
    with pytest.raises(AnswerError):
        forest.fulfil([request] * 500, rows)


def test_arrays_that_a_splitter_changes() -> None:
    arrays: list[np.ndarray[Any, Any]] = []

    def splitter(text: str) -> int:
        for array in arrays:
            array[:] = array[::-1].copy() if array.dtype.kind == "u" else math.nan
        return 1

    forest = Forest(SearchParams(k=1), splitter=splitter)
    trees = [forest.add(f"{i}", "S\n") for i in range(3)]
    ids, of, _, _ = forest.take(10)
    arrays += [ids, np.array([0.0, 1.0, 2.0])]
    forest.fulfil(ids, ["0bc", "1bc", "2bc"], arrays[1])
    assert [forest.view(tree)["completions"][0][2] for tree in trees] == [float(i) for i in np.argsort(of)]
    arrays.clear()
    again, _, _, _ = forest.take(10)
    forest.fulfil(again, ["0bc", "1bc", "2bc"], np.zeros(3))
    assert [forest.stats(tree)["simulations"] for tree in trees] == [2, 2, 2]
    forest.cancel_all()
    assert [forest.nodes_in_flight(tree) for tree in trees] == [0, 0, 0]


@pytest.mark.parametrize("values", ["ab", {1.0, 2.0}, {0: 1.0}, iter([1.0, 2.0])])
def test_values_of_other_types(values: Any) -> None:
    forest, _, request = asked()
    with pytest.raises(TypeError, match="completion_values are rows of floats"):
        forest.fulfil([request], [["a", "b"]], values)


def test_a_snapshot_of_a_splitter_that_differs_in_reused_steps_only() -> None:
    def lines(text: str) -> int:
        return text.index("\n") + 1

    def other(text: str) -> int:
        return lines(text) if text.startswith("a") else 1

    params = SearchParams(k=2, reuse=True, leaves_in_flight=2, simulations=30)
    forest = Forest(params, splitter=lines)
    tree = forest.add("a", "S\n")
    for answer in ["ab\ncd\nef\ngh\nij", "al\nkl\nmn\nop\nqr"]:
        if requests := forest.next(1):
            forest.fulfil([requests[0].id], [[answer] * requests[0].k], [[0.5] * requests[0].k])
    data = forest.save(tree)
    assert Forest(params, splitter=lines).load(data) == 0
    with pytest.raises(SnapshotError, match="elsewhere"):
        Forest(params, splitter=other).load(data)


def test_a_terminal_node_of_an_empty_rest_is_worth_what_its_source_is() -> None:
    forest = Forest(SearchParams(k=2, num_decisions=1, reuse=True, simulations=3))
    tree = forest.add("a", "S\n")
    forest.fulfil([forest.next(1)[0].id], [["a", "a\nb"]], [[0.25, 1.0]])
    # "a" ends where the step does, but came first: its child is terminal and worth 0.25.
    assert forest.take_finished() == [tree]
    assert forest.view(tree)["nodes"][1][3:7] == (2, 0.5, 0.25, True)

    forest = Forest(SearchParams(k=2, num_decisions=2, reuse=True, simulations=4, c=100.0))
    tree = forest.add("a", "S\n")
    forest.fulfil([forest.next(1)[0].id], [["a\nb", "a"]], [[1.0, 0.25]])
    # Both are reused: "b", and nothing, which is a newline and keeps the value of "a".
    assert forest.take_finished() == [tree]
    assert {row[9]: row[5] for row in forest.view(tree)["nodes"][2:]} == {"b\n": 1.0, "\n": 0.25}
