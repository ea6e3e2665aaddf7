"""A plain-Python search, written from the algorithm's description alone: the oracle of the native forest.

One leaf in flight, no virtual loss, no recursion. `python tests/oracle.py --write` regenerates tests/golden.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden"
M = (1 << 64) - 1


def mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & M
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & M
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & M
    return x ^ (x >> 31)


def tie_draw(seed: int, key: str, simulation: int, depth: int) -> int:
    stream = 0xCBF29CE484222325
    for byte in key.encode():
        stream = ((stream ^ byte) * 0x100000001B3) & M
    return mix(mix(mix(mix(seed) ^ stream) ^ simulation) ^ depth)


@dataclass(eq=False)
class Sample:
    """A completion at a node: `text` follows its state, `step` is what leads to `child`."""

    text: str
    value: float
    step: str
    child: Node
    source: Sample | None


@dataclass(eq=False)
class Node:
    state: str
    parent: Node | None = None
    terminal: bool = False
    visible: bool = False
    simulation: int = -1
    N: int = 0
    W: float = 0.0
    V: float = 0.0
    children: dict[str, Node] = field(default_factory=dict)
    completions: list[Sample] = field(default_factory=list)


def first_step(text: str, ends: tuple[str, ...]) -> int:
    """Length of the first step: the shortest beginning that ends in one of `ends`, else all of `text`."""
    lengths = [text.index(end) + len(end) for end in ends if end in text]
    return min(lengths, default=len(text))


def grow(
    key: str,
    root_state: str,
    params: dict[str, Any],
    seed: int,
    sample: Callable[[str, int], list[str]],
    score: Callable[[str], float],
    score_child: Callable[[str], float],
    splitter: Callable[[str], int] | None = None,
) -> Node:
    """The tree after `params["simulations"]` simulations; `score` judges whole programs."""
    by_value = params["mode"] == "value"
    k, reuse, limit = params["k"], params.get("reuse", False), params.get("max_samples", 0)
    ends = params.get("step_ends", ("\n",))
    splitter = splitter or (lambda text: first_step(text, ends))
    root = Node(root_state, visible=True)
    drawn = 0
    for simulation in range(params["simulations"]):
        node, depth = root, 0
        while node.children:
            visible = [child for child in node.children.values() if child.visible]
            bonus = 1 + math.log(node.N)
            uct = [child.V + params["c"] * math.sqrt(bonus / (params["eps"] + child.N)) for child in visible]
            best = [child for child, value in zip(visible, uct, strict=True) if value == max(uct)]
            seeded = params["ties"] == "seeded" and len(best) > 1
            node = best[tie_draw(seed, key, simulation, depth) % len(best) if seeded else 0]
            depth += 1

        own, own_total = 0, 0.0  # for the node
        path, path_total = 0, 0.0  # for its ancestors
        if node.terminal:
            # The first completion's value: a reused one keeps its source's, which may lack the newline that
            # stands for its empty rest.
            first = next(sample for sample in node.parent.completions if sample.child is node)
            own, own_total = 1, first.value if node.N == 0 else node.V
            path, path_total = own, own_total
        else:
            above = node.parent.completions if reuse and node.parent else []
            inherited = [sample for sample in above if sample.child is node]
            fresh = k - len(inherited)
            if limit and drawn + fresh > limit:
                return root
            drawn += fresh
            node.simulation = simulation
            texts = [sample.text[len(sample.step) :] or "\n" for sample in inherited]
            texts += [text.rstrip() + "\n" for text in sample(node.state, simulation)[:fresh]]
            for i, text in enumerate(texts):
                step = text[: splitter(text)]
                source = inherited[i] if i < len(inherited) else None
                value = source.value if source else score(node.state + text)
                new = step not in node.children
                child = node.children.setdefault(step, Node(node.state + step, node, step == text))
                node.completions.append(Sample(text, value, step, child, source))
                if by_value:
                    if new:
                        child.V = score_child(child.state)
                    child.N += 1
                    child.W += child.V
                else:
                    own, own_total = own + 1, own_total + value
                    if source is None:
                        path, path_total = path + 1, path_total + value
            for child in sorted(node.children.values(), key=lambda child: -child.V)[
                : params["num_decisions"]
            ]:
                child.visible = True
            if by_value:
                for child in node.children.values():
                    own, own_total = own + child.N, own_total + child.W
                path, path_total = own, own_total

        up: Node | None = node
        while up is not None:
            up.N += own if up is node else path
            up.W += own_total if up is node else path_total
            up.V = up.W / up.N
            up = up.parent
    return root


def preorder(root: Node) -> list[Node]:
    nodes, stack = [], [root]
    while stack:
        nodes.append(stack.pop())
        stack.extend(reversed(nodes[-1].children.values()))
    return nodes


def as_rows(root: Node) -> dict[str, Any]:
    """Nodes in pre-order, completions and the answer, as plain data."""
    nodes = preorder(root)
    rows = [
        {
            "parent": -1 if node.parent is None else nodes.index(node.parent),
            "state": node.state,
            "N": node.N,
            "W": node.W,
            "V": node.V,
            "terminal": node.terminal,
            "expanded": bool(node.children),
            "visible": node.visible,
            "simulation": node.simulation,
        }
        for node in nodes
    ]
    samples = [(i, node, sample) for i, node in enumerate(nodes) for sample in node.completions]
    order = {id(sample): row for row, (_, _, sample) in enumerate(samples)}
    completions = [[i, node.state + sample.text, sample.value] for i, node, sample in samples]
    return {
        "nodes": rows,
        "completions": completions,
        "sources": [order[id(sample.source)] if sample.source else -1 for _, _, sample in samples],
        "best": max(completions, key=lambda row: row[2])[1] if completions else None,
    }


# Lines that try the text rules: white space of every kind at the end, blank lines, repeats, lone carriage
# returns, a line separator that is no newline, characters of one to four bytes.
LINES = [
    "a = 1",
    "b += a",
    "",
    "  ",
    "\tx",
    "a = 1 ",
    "c\u00a0",
    "d\u2003",
    "e\x1c",
    "é\u3000",
    "f\r",
    "𝛼\u2028",
]


def toy_sample(key: str, k: int, ends: float) -> Callable[[str, int], list[str]]:
    """k programs of a few lines, by state and simulation; each is one line with probability `ends`."""

    def sample(state: str, simulation: int) -> list[str]:
        draw = random.Random(f"{key}/{simulation}/{state}")
        lengths = [1 if draw.random() < ends else draw.randrange(2, 6) for _ in range(k)]
        return ["\n".join(draw.choice(LINES) for _ in range(length)) for length in lengths]

    return sample


def toy_score(text: str) -> float:
    """One of 0, 1/7 ... 1: sums of them round, and they tie often."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[0] % 8 / 7


def toy_child_score(state: str) -> float:
    """Differs from the score of the same text as a whole program."""
    return toy_score("child " + state)


def golden_cases() -> list[dict[str, Any]]:
    base = {"simulations": 40, "k": 5, "num_decisions": 3, "c": 0.2, "eps": 0.1}
    cases = []
    for mode in ("collect", "value", "outcome"):
        for ties in ("seeded", "first"):
            params = {**base, "mode": mode, "ties": ties}
            cases.append({"name": f"{mode}-{ties}", "params": params, "root": "def f():\n", "ends": 0.03})
    wide = {**base, "mode": "value", "ties": "seeded", "num_decisions": 9, "k": 9, "c": 1.0}
    cases.append({"name": "value-wide", "params": wide, "root": "", "ends": 0.05})
    last = {**base, "mode": "collect", "ties": "seeded", "simulations": 30}
    cases.append({"name": "collect-terminal-only", "params": last, "root": "# é\n", "ends": 1.0})
    return cases


def main() -> None:
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/oracle.py --write")
    GOLDEN.mkdir(exist_ok=True)
    for seed, case in enumerate(golden_cases()):
        answers: dict[str, list[str]] = {}
        scores: dict[str, float] = {}
        child_scores: dict[str, float] = {}
        inner = toy_sample(case["name"], case["params"]["k"], case["ends"])

        def sample(state: str, simulation: int, answers=answers, inner=inner) -> list[str]:
            return answers.setdefault(str(simulation), inner(state, simulation))

        def score(text: str, scores=scores) -> float:
            return scores.setdefault(text, toy_score(text))

        def score_child(state: str, scores=child_scores) -> float:
            return scores.setdefault(state, toy_child_score(state))

        root = grow(case["name"], case["root"], case["params"], seed, sample, score, score_child)
        record = {"key": case["name"], "seed": seed, "root": case["root"], "params": case["params"]}
        record |= {"answers": answers, "scores": scores, "child_scores": child_scores, "tree": as_rows(root)}
        record["tree"].pop("sources")  # no reuse in the golden trees
        path = GOLDEN / f"{case['name']}.json"
        path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{path}: {len(record['tree']['nodes'])} nodes")


if __name__ == "__main__":
    main()
