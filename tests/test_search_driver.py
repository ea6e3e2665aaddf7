"""The driver: batches over trees, independence of neighbours, cancels, answers that do not fit, targets."""

from __future__ import annotations

import json
import math
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import restrl.search as driver
from restrl._core import Forest, ParamError, dummy_completions, dummy_score, run_dummy
from restrl.errors import RestrlError
from restrl.policy import Completion
from restrl.search import Evaluation, Expansion, Request, Root, SearchParams, search, value_targets

ROOTS = [Root(f"task/{i}", f"def f{i}(x):\n") for i in range(7)]


class Dummy:
    """A policy and an evaluator that record their calls; scores are by text, completions by seed key."""

    def __init__(self) -> None:
        self.batches: list[list[Request]] = []
        self.sampled: dict[int, Completion] = {}

    def complete(self, requests: list[Request]) -> list[list[Completion]]:
        self.batches.append(requests)
        answer = []
        for request in requests:
            texts = dummy_completions(request.seed_key, request.k)
            answer.append([Completion(text, np.arange(len(text))) for text in texts])
        self.sampled.update((id(sample), sample) for samples in answer for sample in samples)
        return answer

    def evaluate(self, expansions: list[Expansion]) -> list[Evaluation]:
        for expansion in expansions:
            assert all(id(sample) in self.sampled for sample in expansion.completions)
            for sample, program, child in zip(
                expansion.completions, expansion.programs, expansion.child_of, strict=True
            ):
                assert program == expansion.state + sample.text.rstrip() + "\n"
                assert program.startswith(expansion.children[child])
        return [Evaluation(scores(row.programs), scores(row.children)) for row in expansions]


def scores(texts: list[str]) -> list[float]:
    return [dummy_score(text) for text in texts]


def run(roots=ROOTS, mode="collect", simulations=30, **options: Any) -> list[driver.TreeResult]:
    dummy = Dummy()
    params = SearchParams(mode, simulations=simulations)
    return search(roots, params, complete=dummy.complete, evaluate=dummy.evaluate, **options)


@pytest.mark.parametrize("mode", ["collect", "value", "outcome"])
@pytest.mark.parametrize("leaves", [1, 4])
def test_a_tree_among_others_equals_the_tree_alone(mode: str, leaves: int) -> None:
    expected = [run([root], mode, leaves_in_flight=leaves)[0].to_json() for root in ROOTS]
    for trees_in_flight, max_batch in [(1, None), (3, 2), (64, 5), (64, None)]:
        together = run(
            ROOTS, mode, leaves_in_flight=leaves, trees_in_flight=trees_in_flight, max_batch=max_batch
        )
        assert [result.to_json() for result in together] == expected
    backwards = run(ROOTS[::-1], mode, leaves_in_flight=leaves)
    assert [result.to_json() for result in backwards] == expected[::-1]
    assert len({json.dumps(tree["nodes"]) for tree in expected}) == len(ROOTS)


def test_the_seed_counts_and_leaves_in_flight_change_the_tree() -> None:
    one = run(seed=1)
    assert [tree.to_json() for tree in one] == [tree.to_json() for tree in run(seed=1)]
    assert [tree.to_json()["nodes"] for tree in one] != [tree.to_json()["nodes"] for tree in run(seed=2)]


def test_one_call_serves_all_trees_and_a_finished_place_is_taken() -> None:
    dummy = Dummy()
    params = SearchParams(simulations=20, leaves_in_flight=4)
    search(ROOTS, params, complete=dummy.complete, evaluate=dummy.evaluate, trees_in_flight=3, overlap=False)
    assert {request.key for request in dummy.batches[0]} == {root.key for root in ROOTS[:3]}
    assert max(len(batch) for batch in dummy.batches) > 4
    trees = [len({request.key for request in batch}) for batch in dummy.batches]
    last = next(i for i, batch in enumerate(dummy.batches) if ROOTS[-1].key in {row.key for row in batch})
    assert set(trees[:last]) == {3}
    assert max(trees[last:]) <= 3
    keys = [request.seed_key for batch in dummy.batches for request in batch]
    assert len(set(keys)) == len(keys)
    assert all(key.rsplit("/", 1)[1].isdigit() for key in keys)
    assert all(len(batch) <= 2 for batch in (run_limited().batches))


def run_limited() -> Dummy:
    dummy = Dummy()
    params = SearchParams(simulations=9, leaves_in_flight=4)
    search(ROOTS, params, complete=dummy.complete, evaluate=dummy.evaluate, max_batch=2)
    return dummy


def test_results_come_as_trees_finish_and_count_what_was_sampled() -> None:
    seen: list[str] = []
    results = run(on_done=lambda result: seen.append(result.key), trees_in_flight=2)
    assert sorted(seen) == [root.key for root in ROOTS] == [result.key for result in results]
    for result in results:
        stats = result.stats
        assert stats.simulations == 30 == stats.expansions + stats.terminal_visits
        assert stats.completions == len(result.completions) == stats.expansions * 5
        root = result.nodes[0]
        assert stats.completions + stats.terminal_visits == root.N
        lengths = []
        for node in (node for node in result.nodes if node.expanded):
            lengths += [len(t) for t in dummy_completions(f"{result.key}/{node.simulation}", 5)]
        assert [sample.tokens for sample in result.completions] == lengths
        assert stats.generated_tokens == sum(lengths)
        assert result.best.value == max(sample.value for sample in result.completions)
        assert result.best_program == next(
            sample.program for sample in result.completions if sample.value == result.best.value
        )
        plain = json.loads(json.dumps(result.to_json()))
        assert plain["nodes"][0]["line"] == root.state
        assert plain["completions"][plain["best"]]["value"] == result.best.value


def test_the_root_is_never_scored() -> None:
    dummy = Dummy()
    scored: list[str] = []

    def evaluate(expansions: list[Expansion]) -> list[Evaluation]:
        scored.extend(child for expansion in expansions for child in expansion.children)
        return dummy.evaluate(expansions)

    search(ROOTS[:1], SearchParams("value"), complete=dummy.complete, evaluate=evaluate)
    assert scored
    assert ROOTS[0].state not in scored


class Watched(Forest):
    """Remembers the forests that the driver makes."""

    made: list[Forest] = []  # noqa: RUF012

    def __init__(self, params: SearchParams, seed: int, splitter: Any = None) -> None:
        super().__init__(params, seed, splitter)
        self.made.append(self)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["complete", "evaluate", "on_done"])
def test_an_exception_leaves_nothing_in_flight(monkeypatch, error, place: str) -> None:
    monkeypatch.setattr("restrl.search.grove.Forest", Watched)
    dummy = Dummy()
    calls = {"complete": dummy.complete, "evaluate": dummy.evaluate, "on_done": lambda result: None}
    done: list[str] = []

    def fails(argument: Any) -> Any:
        done.append(place)
        if len(done) == 4:
            raise error("stop")
        return calls[place](argument)

    with pytest.raises(error, match="stop"):
        search(ROOTS, SearchParams(simulations=12, leaves_in_flight=3), **{**calls, place: fails})
    forest = Watched.made[-1]
    assert forest.in_flight() == 0
    alive = 0
    for tree in range(len(ROOTS)):
        try:
            assert forest.nodes_in_flight(tree) == 0
            alive += 1
        except RestrlError:
            continue  # finished and removed
    assert alive


def test_answers_that_do_not_fit_are_a_clear_error() -> None:
    dummy = Dummy()
    good = {"complete": dummy.complete, "evaluate": dummy.evaluate}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"complete": lambda requests: []}, r"complete\(\) answered 0 of 2 requests"),
        ({"complete": lambda requests: None}, r"complete\(\) returned None for 2 requests"),
        ({"evaluate": lambda rows: None}, r"evaluate\(\) returned None for 2 expansions"),
        ({"complete": lambda requests: [[Completion("x")]] * len(requests)}, "needs 5 completions, not 1"),
        ({"evaluate": lambda rows: []}, r"evaluate\(\) answered 0 of 2 expansions"),
        ({"evaluate": lambda rows: [Evaluation([1.0] * 4)] * len(rows)}, "needs 5 completion values, not 4"),
        ({"evaluate": lambda rows: [Evaluation([math.nan] * 5)] * len(rows)}, "not finite"),
    ]
    for change, message in bad:
        with pytest.raises(RestrlError, match=message):
            search(ROOTS[:2], SearchParams(), overlap=False, **{**good, **change})
    for options, message in [
        ({"trees_in_flight": 0}, "trees_in_flight = 0"),
        ({"max_batch": 0}, "max_batch"),
        ({"evaluate_batch": 0}, "evaluate_batch"),
        ({"complete": None}, "complete or source"),
    ]:
        with pytest.raises(RestrlError, match=message):
            search(ROOTS[:2], SearchParams(), **{**good, **options})
    with pytest.raises(RestrlError, match="two roots have the key 'a'"):
        search([Root("a", ""), Root("a", "x")], SearchParams(), **good)
    assert search([], SearchParams(), **good) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[
            ("simulations", 0),
            ("k", 0),
            ("k", 65536),
            ("k", -1),
            ("num_decisions", 0),
            ("leaves_in_flight", 0),
        ],
        *[("max_samples", 2**40), ("c", -0.1), ("c", math.inf), ("eps", 0.0), ("eps", math.nan)],
        ("ties", "x"),
    ],
)
def test_a_parameter_out_of_range_is_named_with_its_value(field: str, value: Any) -> None:
    with pytest.raises(ParamError, match=f"search parameter {field} = .* must be"):
        SearchParams(**{field: value})


def test_parameters_have_the_published_defaults_and_compare() -> None:
    collect, decode = SearchParams("collect").to_dict(), SearchParams("value").to_dict()
    assert [collect[name] for name in ("simulations", "k", "num_decisions", "c", "eps")] == [
        100,
        5,
        3,
        0.2,
        0.1,
    ]
    assert [decode[name] for name in ("simulations", "k", "num_decisions", "c", "eps")] == [
        20,
        5,
        5,
        0.1,
        0.1,
    ]
    assert SearchParams(**collect) == SearchParams() != SearchParams("value")
    assert eval(repr(SearchParams("value", c=0.3))) == SearchParams("value", c=0.3)
    with pytest.raises(ParamError, match='mode = "train"'):
        SearchParams("train")


def one_tree() -> driver.TreeResult:
    """Two simulations by hand: the root gives a, b, b; then a (first of the tie) gives c, d, d."""
    answers = [["a\nc\nd", "b", "b  \n"], ["c", "d\ne", "d"]]
    rewards = [[1.0, 0.5, 0.5], [0.0, 0.25, 0.75]]

    def evaluate(rows: list[Expansion]) -> list[Evaluation]:
        return [Evaluation(rewards[int(rows[0].seed_key.split("/")[1])])]

    def complete(requests: list[Request]) -> list[list[Completion]]:
        return [[Completion(text) for text in answers[int(requests[0].seed_key.split("/")[1])]]]

    params = SearchParams(simulations=2, k=3, ties="first")
    return search([Root("t", "root\n")], params, complete=complete, evaluate=evaluate)[0]


def test_value_targets_dense() -> None:
    result = one_tree()
    assert [(node.state, node.N, node.W) for node in result.nodes] == [
        ("root\n", 6, 3.0),
        ("root\na\n", 3, 1.0),
        ("root\na\nc\n", 0, 0.0),
        ("root\na\nd\n", 0, 0.0),
        ("root\nb\n", 0, 0.0),
    ]
    third = 1.0 / 3
    expected = [
        ("root\na\nc\nd\n", [7, 9, 11], [third, 1.0, 1.0], [3, 1, 1]),
        ("root\nb\n", [7], [0.5], [2]),
        ("root\na\nc\n", [7, 9], [third, 0.0], [3, 1]),
        ("root\na\nd\ne\n", [7, 9, 11], [third, 0.25, 0.25], [3, 1, 1]),
        ("root\na\nd\n", [7, 9], [third, 0.75], [3, 1]),
    ]
    rows = value_targets(result)
    assert (
        rows
        == result.value_targets("dense")
        == [
            {"task_id": "t", "program": program, "ends": ends, "values": values, "visits": visits}
            for program, ends, values, visits in expected
        ]
    )


def test_visits_of_a_program_say_how_often_it_was_sampled() -> None:
    def complete(requests: list[Request]) -> list[list[Completion]]:
        return [[Completion(text=text) for text in ("a\nb", "a\nb", "c")] for _ in requests]

    def evaluate(expansions: list[Expansion]) -> list[Evaluation]:
        return [Evaluation([0.5, 0.5, 1.0]) for _ in expansions]

    params = SearchParams(simulations=1, k=3, ties="first")
    (tree,) = search([Root("t", "root\n")], params, complete=complete, evaluate=evaluate)
    assert [row["visits"] for row in value_targets(tree)] == [[2, 2], [1]]
    assert [row["visits"] for row in value_targets(tree, "reference")] == [[1], [1], [1], [3]]


def test_value_targets_reference() -> None:
    rows = one_tree().value_targets("reference")
    assert [(row["program"], row["ends"], row["values"], row["visits"]) for row in rows] == [
        ("root\na\nc\nd\n", [11], [1.0], [1]),
        ("root\nb\n", [7], [0.5], [1]),
        ("root\nb\n", [7], [0.5], [1]),
        ("root\na\nc\n", [9], [0.0], [1]),
        ("root\na\nd\ne\n", [11], [0.25], [1]),
        ("root\na\nd\n", [9], [0.75], [1]),
        ("root\n", [5], [0.5], [6]),
        ("root\na\n", [7], [1.0 / 3], [3]),
    ]
    with pytest.raises(RestrlError, match="sparse"):
        value_targets(one_tree(), "sparse")  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(["collect", "value", "outcome"]),
    leaves=st.integers(1, 12),
    simulations=st.integers(1, 60),
    data=st.data(),
)
def test_many_leaves_in_flight(mode: str, leaves: int, simulations: int, data) -> None:
    """Whatever the order in which answers arrive: one tree, its sums kept, nothing in flight."""
    params = SearchParams(mode, simulations=simulations, leaves_in_flight=leaves)
    views = []
    for order in ("as asked", "shuffled"):
        forest = Forest(params, 5)
        tree = forest.add("key", "root\n")
        waiting: list[tuple[int, list[str]]] = []
        while True:
            limit = 100 if order == "as asked" else data.draw(st.integers(1, 4))
            for request in forest.next(limit):
                waiting.append((request.id, dummy_completions(f"key/{request.simulation}", request.k)))
            assert forest.stats(tree)["in_flight"] <= leaves
            if not waiting:
                break
            place = 0 if order == "as asked" else data.draw(st.integers(0, len(waiting) - 1))
            answer_one(forest, *waiting.pop(place))
        assert forest.take_finished() == [tree]
        assert forest.in_flight() == 0 == forest.nodes_in_flight(tree)
        stats, view = forest.stats(tree), forest.view(tree)
        assert stats["simulations"] == simulations
        below = [0] * len(view["nodes"])
        for parent, _, _, N, *_ in view["nodes"][1:]:
            below[parent] += N
        for i, (_, _, _, N, W, V, terminal, expanded, *_) in enumerate(view["nodes"]):
            if expanded and mode != "value":
                assert below[i] + params.k == N
            if expanded and mode == "value":
                assert below[i] < N if i else below[i] == N
            assert not (terminal and expanded)
            assert N == 0 or math.isclose(V, W / N, rel_tol=1e-15)
        assert view["nodes"][0][3] == stats["completions"] + stats["terminal_visits"]
        views.append((view, stats["collisions"]))
    assert views[0] == views[1]


def answer_one(forest: Forest, request: int, texts: list[str]) -> None:
    forest.fulfil([request], completions=[texts])
    split = forest.expansion(request)
    children = [scores(split["children"])] if forest.params.mode == "value" else None
    forest.fulfil([request], completion_values=[scores(split["programs"])], child_values=children)


@pytest.mark.parametrize("mode", ["collect", "value"])
def test_threads_on_one_forest_grow_what_one_thread_grows(mode: str) -> None:
    def grow(threads: int) -> list[Any]:
        forest = Forest(SearchParams(mode, simulations=200, leaves_in_flight=4), 0)
        trees = [forest.add(root.key, root.state) for root in ROOTS]
        workers = [threading.Thread(target=run_dummy, args=(forest, 0, 1 + i)) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert sorted(forest.take_finished()) == trees
        assert forest.in_flight() == 0
        return [(forest.view(tree), forest.stats(tree)) for tree in trees]

    assert grow(4) == grow(1)


def test_wrong_types_are_type_errors() -> None:
    forest = Forest(SearchParams(k=1), 0)
    forest.add("a", "")
    (request,) = forest.next(1)
    with pytest.raises(TypeError, match="expected str"):
        forest.fulfil([request.id], completions=[[b"x"]])  # type: ignore[list-item]
    with pytest.raises(RestrlError, match="1 requests got 2 lists of completions"):
        forest.fulfil([request.id], completions=[["x"], ["y"]])
    with pytest.raises(TypeError):
        Forest(SearchParams(), -1)
    assert forest.in_flight() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"complete": lambda requests: [["x"] * 5 for _ in requests]}, "gave a/0 a str; it gives"),
        ({"complete": lambda requests: [None for _ in requests]}, "gave a/0 a NoneType; it gives"),
        ({"evaluate": lambda rows: [[0.5] * 5 for _ in rows]}, "gave a/0 a list; it gives"),
        ({"params": SearchParams("collect", max_samples=4)}, "max_samples = 4 must be 0 .* at least k = 5"),
    ],
)
def test_answers_of_another_kind_and_budgets_below_k_are_named(change: Any, message: str) -> None:
    calls: dict[str, Any] = {
        "params": SearchParams("collect"),
        "complete": lambda requests: [[Completion("x")] * 5 for _ in requests],
        "evaluate": lambda rows: [Evaluation([0.5] * 5) for _ in rows],
    } | change
    with pytest.raises(RestrlError, match=message):
        search([Root("a", "")], **calls)
