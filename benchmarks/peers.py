"""Peers of the search engine: what the same search costs without it. Used by bench_search.py.

plain      the algorithm of docs/method.md as a careful Python program: slots, local names, no text handling
           (the five actions of an expansion are given, as they are to the C++ driver)
prefix     the pattern of the published implementation: a child holds its whole prefix, a node all of its
           programs as whole texts, children in a dict by state, ties drawn at random
treequest  TreeQuest's StandardMCTS by ask_batch and tell; five generations are one simulation

All grow the tree of csrc/search/synthetic.h: k = 5, the best 3 visible, c = 0.2, eps = 0.1, no node deeper
than 61, rewards 0 or 1, the same for simulation i of every engine and drawn beforehand.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

K, VISIBLE, C, EPS, DEPTH_LIMIT = 5, 3, 0.2, 0.1, 61
TREEQUEST = "0.3.3"

Rewards = Sequence[tuple[float, ...]]  # one tuple of K per simulation


def mix(x: int) -> int:
    """csrc/search/random.h."""
    mask = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def draw_rewards(simulations: int) -> list[tuple[float, ...]]:
    """Fair coins, K for each simulation: those of tree 0 of seed 0 in csrc/search/synthetic.cpp."""
    bits = (mix(mix(simulation)) for simulation in range(simulations))
    return [tuple(float(word >> i & 1) for i in range(K)) for word in bits]


class PlainNode:
    __slots__ = ("N", "V", "W", "children", "depth", "line", "parent", "rewards", "visible")

    def __init__(self, line: str, parent: PlainNode | None, depth: int) -> None:
        self.line = line
        self.parent = parent
        self.depth = depth
        self.N = 0
        self.W = 0.0
        self.V = 0.0
        self.children: list[PlainNode] = []
        self.visible: list[PlainNode] = []
        self.rewards: tuple[float, ...] = ()


def _value(node: PlainNode) -> float:
    return node.V


def plain(simulations: int, rewards: Rewards) -> PlainNode:
    """Collect mode, ties to the first child."""
    log, sqrt = math.log, math.sqrt
    lines = [f"line {i}\n" for i in range(K)]
    root = PlainNode("", None, 0)
    for simulation in range(simulations):
        node = root
        while node.visible:
            bonus = 1.0 + log(node.N)
            best = -1.0
            for child in node.visible:
                uct = child.V + C * sqrt(bonus / (EPS + child.N))
                if uct > best:
                    best, chosen = uct, child
            node = chosen
        if node.depth < DEPTH_LIMIT:
            drawn = rewards[simulation]
            depth = node.depth + 1
            node.rewards = drawn
            node.children = [PlainNode(line, node, depth) for line in lines]
            node.visible = sorted(node.children, key=_value, reverse=True)[:VISIBLE]
            visits, total = K, sum(drawn)
        else:
            visits, total = 1, node.V
        up: PlainNode | None = node
        while up is not None:
            up.N += visits
            up.W += total
            up.V = up.W / up.N
            up = up.parent
    return root


class PrefixNode:
    def __init__(self, state: str, parent: PrefixNode | None = None, depth: int = 0) -> None:
        self.state = state
        self.parent = parent
        self.depth = depth
        self.N = 0
        self.W = 0.0
        self.V = 0.0
        self.terminal = False
        self.expanded = False
        self.visible = True
        self.children: dict[str, PrefixNode] = {}
        self.programs: list[str] = []
        self.rewards: list[float] = []

    def uct(self) -> float:
        assert self.parent is not None
        return self.V + C * math.sqrt((1 + math.log(self.parent.N)) / (EPS + self.N))

    def best_child(self) -> PrefixNode:
        best, value = [], -math.inf
        for child in self.children.values():
            if not child.visible:
                continue
            uct = child.uct()
            if uct > value:
                best, value = [child], uct
            elif uct == value:
                best.append(child)
        return random.choice(best)

    def expand(self, completions: Sequence[str], rewards: Sequence[float]) -> None:
        for text, reward in zip(completions, rewards, strict=True):
            text = text.rstrip()
            first, newline, _ = text.partition("\n")
            state = self.state + first + "\n"
            self.programs.append(self.state + text + "\n")
            self.rewards.append(reward)
            if state not in self.children:
                self.children[state] = PrefixNode(state, self, self.depth + 1)
                self.children[state].terminal = not newline
        ranked = sorted(self.children.values(), key=lambda child: child.V, reverse=True)
        for child in ranked[VISIBLE:]:
            child.visible = False
        self.expanded = True

    def back_up(self, visits: int, total: float) -> None:
        node: PrefixNode | None = self
        while node is not None:
            node.N += visits
            node.W += total
            node.V = node.W / node.N
            node = node.parent


# Five completions of one expansion: 30 characters a line, four lines, different first lines.
COMPLETIONS = [
    f"    value_{i} = previous + {i:05d}\n" + "    value = value * 2 + 1  # rest\n" * 3 for i in range(K)
]


def prefix(simulations: int, rewards: Rewards) -> PrefixNode:
    """Collect mode, the text in every node."""
    root = PrefixNode("def f(previous):\n")
    for simulation in range(simulations):
        node = root
        while node.expanded:
            node = node.best_child()
        if node.depth < DEPTH_LIMIT:
            drawn = rewards[simulation]
            node.expand(COMPLETIONS, drawn)
            node.back_up(K, sum(drawn))
        else:
            node.back_up(1, node.V)
    return root


def mean_depth(root: PlainNode | PrefixNode) -> float:
    """Mean depth of the expanded nodes."""
    depths, stack = [], [root]
    while stack:
        node = stack.pop()
        if node.children:
            depths.append(node.depth)
            children = node.children
            stack.extend(children.values() if isinstance(children, dict) else children)
    return sum(depths) / len(depths)


def find_treequest(folder: Path | None) -> str | None:
    """Why TreeQuest cannot be used, or None; `folder` is where `pip install --target` put it."""
    if folder is not None:
        sys.path.append(str(folder))  # last: numpy and the rest stay those of this environment
    try:
        found = distribution("treequest").version
    except PackageNotFoundError:
        return (
            f"not installed: pip install --target /tmp/treequest treequest=={TREEQUEST}, "
            "then --treequest /tmp/treequest"
        )
    return None if found == TREEQUEST else f"version {found} is installed, {TREEQUEST} is compared"


def treequest(simulations: int, rewards: Rewards) -> int:
    """Simulations of K generations each through the public interface; returns the nodes it made."""
    algorithm = import_module("treequest").StandardMCTS(samples_per_action=K)
    state = algorithm.init_tree()
    for simulation in range(simulations):
        state, trials = algorithm.ask_batch(state, K, ["line"])
        for trial, text, reward in zip(trials, COMPLETIONS, rewards[simulation], strict=True):
            state = algorithm.tell(state, trial.trial_id, (text, reward))
    return len(algorithm.get_state_score_pairs(state))
