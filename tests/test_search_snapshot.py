"""Snapshots of trees: round trips in mid-search, damaged bytes, other searches, size, JSON, value targets."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restrl._core import Forest, SearchParams, SnapshotError, dummy_completions, dummy_score, snapshot_info
from restrl.errors import RestrlError
from restrl.search import TreeResult
from restrl.snapshots import iter_value_targets, snapshot_to_json, snapshot_to_result


def three_characters(text: str) -> int:
    """A splitter: steps of three characters."""
    return 3


PARAMS = st.builds(
    SearchParams,
    st.sampled_from(["collect", "value", "outcome"]),
    simulations=st.integers(1, 40),
    max_samples=st.sampled_from([0, 0, 30]),
    k=st.integers(1, 5),
    num_decisions=st.integers(1, 4),
    leaves_in_flight=st.sampled_from([1, 2, 8]),
    virtual_loss=st.sampled_from(["loss", "unobserved"]),
    reuse=st.booleans(),
    in_order=st.booleans(),
    ties=st.sampled_from(["seeded", "first"]),
    step_ends=st.sampled_from([("\n",), ("\n", " = ")]),
)


class Caller:
    """Answers a forest's requests in an order and in parts that a seed decides, by simulation alone."""

    def __init__(self, forest: Forest) -> None:
        self.forest = forest
        self.open: list[Any] = []
        self.completed: set[int] = set()

    def step(self, dice: random.Random) -> bool:
        for request in self.forest.next(1000):
            self.open.append(request)
            if request.completed:
                self.completed.add(request.simulation)
        if not self.open:
            return False
        self.open.sort(key=lambda request: request.simulation)
        request = dice.choice(self.open)
        both = dice.random() < 0.5
        if request.simulation not in self.completed:
            texts = dummy_completions(f"{request.simulation}", request.k)
            texts = [text[: 12 + 9 * i] + "é\ud800"[: i % 3] for i, text in enumerate(texts)]
            self.forest.fulfil([request.id], completions=[texts])
            self.completed.add(request.simulation)
            if not both:
                return True
        name = f"{request.state}/{request.simulation}"
        values = [dummy_score(f"{name}/{i}") / 3 for i in range(request.k)]
        children = None
        if self.forest.params.mode == "value":
            count = len(self.forest.expansion(request.id)["children"])
            children = [[dummy_score(f"{name}/c{i}") / 7 for i in range(count)]]
        self.forest.fulfil([request.id], completion_values=[values], child_values=children)
        self.open.remove(request)
        return True


def run(caller: Caller, steps: range) -> None:
    for step in steps:
        if not caller.step(random.Random(step)):
            return


def without_memory(stats: Any) -> dict[str, int]:
    return {name: count for name, count in stats.items() if name != "bytes"}


@given(params=PARAMS, cut=st.integers(0, 60), splitter=st.sampled_from([None, three_characters]))
@settings(max_examples=150, deadline=None)
def test_a_search_goes_on_as_it_would_have(params: SearchParams, cut: int, splitter: Any) -> None:
    forest, resumed = (Forest(params, 5, splitter=splitter) for _ in range(2))
    tree = forest.add("key é", "def f():\n")
    caller = Caller(forest)
    run(caller, range(cut))
    data = forest.save(tree)
    copy = resumed.load(data)
    assert resumed.save(copy) == data
    assert resumed.view(copy) == forest.view(tree)
    assert without_memory(resumed.stats(copy)) == without_memory(forest.stats(tree))
    assert resumed.nodes_in_flight(copy) == forest.nodes_in_flight(tree)
    later = range(cut, 1 << 20)
    run(caller, later)
    run(Caller(resumed), later)
    assert resumed.in_flight() == 0
    assert resumed.nodes_in_flight(copy) == 0
    assert resumed.view(copy) == forest.view(tree)
    assert resumed.save(copy) == forest.save(tree)
    assert resumed.take_finished() == [copy]
    info = snapshot_info(data)
    assert (info["key"], info["params"], info["seed"]) == ("key é", params, 5)
    assert info["splitter"] == (splitter is not None)


def some_snapshot(**fields: Any) -> tuple[SearchParams, bytes]:
    params = SearchParams("value", leaves_in_flight=4, reuse=True, **fields)
    forest = Forest(params, 5)
    tree = forest.add("key", "def f():\n")
    run(Caller(forest), range(12))
    return params, forest.save(tree)


def test_requests_come_again_with_what_they_have() -> None:
    params = SearchParams("collect", leaves_in_flight=4)
    forest, resumed = Forest(params), Forest(params)
    tree = forest.add("key", "")
    root = forest.next(1)[0]
    texts = [f"{i}\nx" for i in range(5)]
    forest.fulfil([root.id], completions=[texts], completion_values=[[0.5] * 5])
    first, second = forest.next(2)
    forest.fulfil([second.id], completions=[texts])
    copy = resumed.load(forest.save(tree))
    again = resumed.next(10)
    assert [(r.tree, r.simulation, r.state, r.k) for r in again] == [
        (copy, first.simulation, first.state, 5),
        (copy, second.simulation, second.state, 5),
        (copy, 3, again[2].state, 5),
    ]
    assert [r.completed for r in again] == [False, True, False]
    assert resumed.expansion(again[1].id) == forest.expansion(second.id)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_are_refused(data: st.DataObject) -> None:
    params, good = some_snapshot()
    at = data.draw(st.integers(0, len(good) - 1))
    change = data.draw(st.binary(max_size=4))
    bad = good[:at] + change + good[at + data.draw(st.integers(0, 4)) :]
    if bad == good:
        return
    forest = Forest(params, 5)
    with pytest.raises(SnapshotError):
        forest.load(bad)
    with pytest.raises(SnapshotError):
        snapshot_info(bad)
    assert forest.in_flight() == 0
    assert forest.next(10) == []
    assert forest.add("key", "") == 0


def test_another_search_is_refused() -> None:
    params, good = some_snapshot()
    for field, value, phrase in [
        ("c", 0.25, "c = 0.1"),
        ("k", 4, "k = 5, the forest's is 4"),
        ("reuse", False, "reuse = true, the forest's is false"),
        ("step_ends", (";",), 'step_ends = ("\\n"), the forest\'s is (";")'),
    ]:
        other = SearchParams(**{**params.to_dict(), field: value})
        with pytest.raises(SnapshotError, match=r"^the snapshot is of a search with ") as caught:
            Forest(other, 5).load(good)
        assert phrase in str(caught.value)
    with pytest.raises(SnapshotError, match="seed = 5, the forest's is 6"):
        Forest(params, 6).load(good)
    with pytest.raises(SnapshotError, match="splitter = false, the forest's is true"):
        Forest(params, 5, splitter=three_characters).load(good)
    with pytest.raises(TypeError):
        Forest(params, 5).load("text")  # type: ignore[arg-type]


def test_another_splitter_is_refused() -> None:
    params = SearchParams("collect", simulations=3)
    forest = Forest(params, 5, splitter=three_characters)
    tree = forest.add("key", "")
    run(Caller(forest), range(100))
    data = forest.save(tree)
    with pytest.raises(SnapshotError, match="the splitter ends a step of expansion 0 elsewhere"):
        Forest(params, 5, splitter=lambda text: 4).load(data)

    def broken(text: str) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Forest(params, 5, splitter=broken).load(data)


def collected(reuse: bool = False, simulations: int = 40) -> tuple[TreeResult, bytes]:
    """A searched tree, and the same one as a snapshot of a forest that got the same answers."""
    params = SearchParams("collect", simulations=simulations, reuse=reuse)
    snapshots = []

    def answer(forest: Forest, tree: int) -> None:
        while requests := forest.next(1):
            request = requests[0]
            texts = dummy_completions(f"{request.simulation}", request.k)
            forest.fulfil([request.id], completions=[texts])
            programs = forest.expansion(request.id)["programs"][request.reused :]
            forest.fulfil([request.id], completion_values=[[dummy_score(p) / 3 for p in programs]])
        snapshots.append(forest.save(tree))

    forest = Forest(params, 1)
    answer(forest, forest.add("task", "def f():\n"))
    return snapshot_to_result(snapshots[0]), snapshots[0]


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("mode", ["dense", "reference"])
def test_value_targets_one_by_one(reuse: bool, mode: Any) -> None:
    result, _ = collected(reuse)
    rows = result.value_targets(mode)
    assert list(iter_value_targets(result, mode)) == rows
    assert len(rows) > 40
    assert next(iter_value_targets(result, mode)) == rows[0]
    with pytest.raises(RestrlError, match="dense"):
        iter_value_targets(result, "sparse")  # type: ignore[arg-type]


def test_json() -> None:
    result, data = collected()
    tree = snapshot_to_json(data)
    assert tree == result.to_json()
    assert json.loads(json.dumps(tree)) == {
        **tree,
        "params": {**tree["params"], "step_ends": list(tree["params"]["step_ends"])},
    }
    assert tree["key"] == "task"
    assert tree["stats"]["simulations"] == 40
    assert tree["nodes"][0]["N"] == len(tree["completions"]) + tree["stats"]["terminal_visits"]


def test_a_tree_without_completions_has_no_best() -> None:
    forest = Forest(SearchParams())
    data = forest.save(forest.add("t", "root\n"))
    assert snapshot_to_json(data)["best"] is None
    with pytest.raises(RestrlError, match="'t' has no completion yet"):
        _ = snapshot_to_result(data).best


def test_a_splitter_is_needed_to_look_inside() -> None:
    forest = Forest(SearchParams(), 5, splitter=three_characters)
    tree = forest.add("key", "")
    run(Caller(forest), range(5))
    data = forest.save(tree)
    with pytest.raises(RestrlError, match="splitter; give it here too"):
        snapshot_to_result(data)
    assert snapshot_to_result(data, three_characters).node_rows == forest.view(tree)["nodes"]


def test_size() -> None:
    """At most 1.2 times the raw data, and 15 % more than the text of completions as long as programs are."""
    for mode in ("collect", "value"):
        params = SearchParams(mode, simulations=100, k=5, num_decisions=3)
        forest = Forest(params, 1)
        tree = forest.add("task", "def f():\n")
        while requests := forest.next(1):
            request = requests[0]
            dice = random.Random(request.simulation)
            texts = [
                "".join(f"    v{dice.randrange(99)} = w[{dice.random():.6f}] + g(x)\n" for _ in range(9))
                for _ in range(request.k)
            ]
            forest.fulfil([request.id], completions=[texts])
            count = len(forest.expansion(request.id)["children"]) if mode == "value" else 0
            forest.fulfil(
                [request.id],
                completion_values=[[dice.random() for _ in range(request.k)]],
                child_values=[[dice.random() for _ in range(count)]],
            )
        view = forest.view(tree)
        text = sum(len(row[3]) for row in view["completions"] if row[4] < 0)
        values = len(view["completions"]) + (len(view["nodes"]) - 1 if mode == "value" else 0)
        visited = sum(1 for row in view["nodes"] if row[7] or (row[6] and row[3] > 1))
        size = len(forest.save(tree))
        assert size <= 1.2 * (text + 8 * values + 12 * visited)
        assert size <= 1.15 * text
