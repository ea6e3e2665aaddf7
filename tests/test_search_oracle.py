"""The native forest against the plain-Python oracle: golden trees, and random trees node by node."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restrl._core import Forest, SearchParams

sys.path.insert(0, str(Path(__file__).parent))
import oracle

GOLDEN = sorted(oracle.GOLDEN.glob("*.json"))


def read(forest: Forest, tree: int) -> dict[str, Any]:
    """The tree in the oracle's form."""
    view = forest.view(tree)
    states: list[str] = []
    nodes = []
    for parent, _, simulation, N, W, V, terminal, expanded, visible, line in view["nodes"]:
        states.append((states[parent] if parent >= 0 else "") + line)
        row = dict(parent=parent, state=states[-1], simulation=simulation, N=N, W=W, V=V)
        nodes.append(row | dict(terminal=terminal, expanded=expanded, visible=visible))
    completions = [[node, states[node] + text, value] for node, _, value, text, _ in view["completions"]]
    for _, child, _, text, _ in view["completions"]:
        assert text.startswith(view["nodes"][child][-1])
    return {
        "nodes": nodes,
        "completions": completions,
        "sources": [source for *_, source in view["completions"]],
        "best": max(completions, key=lambda row: row[2])[1] if completions else None,
    }


def grow_native(key, root, params, seed, sample, score, score_child, splitter=None) -> dict[str, Any]:
    forest = Forest(SearchParams(**params), seed, splitter)
    tree = forest.add(key, root)
    while requests := forest.next(8):
        (request,) = requests
        texts = sample(request.state, request.simulation)[: request.k]
        assert request.k + request.reused == params["k"]
        forest.fulfil([request.id], completions=[texts])
        split = forest.expansion(request.id)
        assert split["reused"] == request.reused
        children = (
            [[score_child(child) for child in split["children"]]] if params["mode"] == "value" else None
        )
        forest.fulfil(
            [request.id],
            completion_values=[[score(program) for program in split["programs"][request.reused :]]],
            child_values=children if params["mode"] == "value" else None,
        )
    assert forest.take_finished() == [tree]
    stats = forest.stats(tree)
    if not params.get("max_samples"):
        assert stats["simulations"] == params["simulations"]
    assert stats["collisions"] == 0
    assert stats["samples"] + stats["reused"] == stats["completions"] == params["k"] * stats["expansions"]
    assert forest.nodes_in_flight(tree) == 0
    return read(forest, tree)


def assert_equal_trees(native: dict[str, Any], expected: dict[str, Any]) -> None:
    assert len(native["nodes"]) == len(expected["nodes"])
    for mine, theirs in zip(native["nodes"], expected["nodes"], strict=True):
        # An unvisited duplicate keeps its first score: V may differ from a recomputed one by one ulp.
        assert abs(mine["V"] - theirs["V"]) <= math.ulp(theirs["V"])
        assert {**mine, "V": 0} == {**theirs, "V": 0}
    assert native["completions"] == expected["completions"]
    assert native["sources"] == expected.get("sources", [-1] * len(native["completions"]))
    assert native["best"] == expected["best"]


@pytest.mark.parametrize("path", GOLDEN, ids=[path.stem for path in GOLDEN])
def test_golden_tree_is_matched_node_by_node(path: Path) -> None:
    case = json.loads(path.read_text(encoding="utf-8"))

    def sample(state: str, simulation: int) -> list[str]:
        assert [node["state"] for node in case["tree"]["nodes"] if node["simulation"] == simulation] == [
            state
        ]
        return case["answers"][str(simulation)]

    scores, child_scores = case["scores"].__getitem__, case["child_scores"].__getitem__
    task = (case["key"], case["root"], case["params"], case["seed"], sample, scores, child_scores)
    native = grow_native(*task)
    assert_equal_trees(native, case["tree"])


def test_there_are_golden_trees_of_every_mode_and_tie_rule() -> None:
    seen = {
        (case["params"]["mode"], case["params"]["ties"])
        for case in map(json.loads, map(Path.read_text, GOLDEN))
    }
    assert seen == {(m, t) for m in ("collect", "value", "outcome") for t in ("seeded", "first")}


ODD = ["\n", "\x85", "\x0b", "\u2029 ", "\ufeff", "\u200b", "\U00010fff"]
SPACES = "\n\r\t\x0b\x0c\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"
NO_SPACES = "ab\u200b\u180e\ud800\U0001d6fcé"
TEXT = st.lists(st.sampled_from([*oracle.LINES, *ODD]), max_size=4).map("\n".join)


def two_lines(text: str) -> int:
    """Cuts after two lines, blank lines not counted."""
    length, lines = 0, 0
    for line in text.splitlines(keepends=True):
        length += len(line)
        lines += bool(line.strip())
        if lines == 2:
            break
    return length


@settings(max_examples=300, deadline=None)
@given(
    pool=st.lists(TEXT, min_size=1, max_size=12),
    mode=st.sampled_from(["collect", "value", "outcome"]),
    ties=st.sampled_from(["seeded", "first"]),
    k=st.integers(1, 7),
    num_decisions=st.integers(1, 8),
    c=st.sampled_from([0.0, 0.05, 0.1, 0.2, 1.0, 3.0]),
    simulations=st.integers(1, 40),
    seed=st.integers(0, 2**64 - 1),
    root=TEXT,
    key=st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    reuse=st.booleans(),
    step_ends=st.sampled_from([("\n",), (" ",), ("\n", "x"), ("a =", "= 1\n"), ("é", "\r")]),
    splitter=st.sampled_from([None, None, None, two_lines, lambda text: 3]),
    max_samples=st.sampled_from([0, 0, 1, 7, 23]),
)
def test_random_trees_equal_the_oracle_bit_for_bit(
    pool, seed, root, key, splitter, simulations, **rest
) -> None:
    params = dict(eps=0.1, simulations=simulations, **rest)
    k = params["k"]

    def sample(state: str, simulation: int) -> list[str]:
        draw = oracle.mix(seed ^ simulation ^ len(state))
        return [pool[oracle.mix(draw + i) % len(pool)] for i in range(k)]

    task = (key, root, params, seed, sample, oracle.toy_score, oracle.toy_child_score, splitter)
    assert_equal_trees(grow_native(*task), oracle.as_rows(oracle.grow(*task)))


@settings(max_examples=500, deadline=None)
@given(st.text(st.sampled_from(SPACES + NO_SPACES), max_size=12))
def test_lines_are_cut_where_python_cuts_them(text: str) -> None:
    forest = Forest(SearchParams(simulations=1, k=1))
    forest.add("t", "root ")
    (request,) = forest.next(1)
    forest.fulfil([request.id], completions=[[text]])
    split = forest.expansion(request.id)
    stripped = text.rstrip()
    assert split["programs"] == ["root " + stripped + "\n"]
    assert split["children"] == ["root " + stripped.split("\n")[0] + "\n"]
    assert split["terminal"] == ["\n" not in stripped]


def test_every_character_python_strips_is_stripped() -> None:
    forest = Forest(SearchParams(simulations=1, k=5000))
    forest.add("t", "")
    (request,) = forest.next(1)
    # Every code point of the Basic Multilingual Plane below 5000, and all white space above it.
    characters = [chr(code) for code in range(4900)]
    characters += [chr(code) for code in range(4900, 0x110000) if chr(code).isspace()]
    characters += ["x"] * (5000 - len(characters))
    forest.fulfil([request.id], completions=[["a" + character for character in characters]])
    programs = forest.expansion(request.id)["programs"]
    assert programs == [("a" + character).rstrip() + "\n" for character in characters]
