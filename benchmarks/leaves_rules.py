"""Rules for simulations under way, in a plain Python search: where a rule is tried before the engine has it.

The search is the native forest's (value and outcome-like modes, answers applied in the order of the
requests, ties to the child created first); tests/test_bench_leaves.py holds the two equal for the rules that
both know. A rule says what the O visits under way at a child do to its (N, W, V) while others select:

    loss        N + O visits, those under way of value 0: V' = W / (N + O)
    unobserved  N + O visits in the exploration term alone: V' = V (WU-UCT)
    half        those under way have half the child's value: V' = (W + O V / 2) / (N + O)
    skip        unobserved, and a leaf under way is passed over: the best child with a free leaf below it

`weight` is what a leaf under way counts for in O, the k visits that it will bring or fewer.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal, Protocol

Rule = Literal["loss", "unobserved", "half", "skip"]


class Oracle(Protocol):
    """Policy and scores of one problem."""

    def completions(self, tree: int, state: str, k: int) -> list[str]: ...
    def score(self, state: str) -> float: ...


@dataclass(eq=False, slots=True)
class Node:
    state: str
    parent: Node | None
    depth: int
    terminal: bool = False
    N: int = 0
    W: float = 0.0
    V: float = 0.0
    O: int = 0  # noqa: E741  the literature's name
    children: list[Node] = field(default_factory=list)
    visible: list[Node] = field(default_factory=list)

    def path(self) -> list[Node]:
        """From here to the root."""
        out, node = [], self
        while node is not None:
            out.append(node)
            node = node.parent  # type: ignore[assignment]
        return out


@dataclass
class Search:
    """One tree in value mode. `programs` are (score, program) in the order of their nodes' expansion."""

    oracle: Oracle
    simulations: int
    leaves: int
    rule: Rule = "loss"
    max_expansions: int = 0
    weight: int | None = None
    k: int = 5
    num_decisions: int = 5
    c: float = 0.1
    eps: float = 0.1
    collisions: int = 0
    rounds: int = 0
    expansions: int = 0
    nodes: list[Node] = field(default_factory=list)
    programs: list[tuple[float, str]] = field(default_factory=list)

    def run(self) -> Search:
        """Grows the tree. A round is one answer of the policy to all that was asked since the last one."""
        root = Node("", None, 0, N=0)
        self.nodes = [root]
        window: deque[tuple[Node, int]] = deque()  # and the round in whose call it is answered
        started = expansions = 0
        while True:
            while len(window) < self.leaves and started < self.simulations:
                if self.max_expansions and expansions >= self.max_expansions:
                    break
                leaf = self._select(root)
                if leaf is None or (leaf.O and not leaf.terminal):
                    self.collisions += 1
                    break
                for node in leaf.path():
                    node.O += 1 if leaf.terminal else self.k if self.weight is None else self.weight
                # What is selected while the answers of a round come in belongs to the next round.
                window.append((leaf, self.rounds + 1))
                started += 1
                expansions += not leaf.terminal
            if not window:
                return self
            leaf, due = window.popleft()
            if not leaf.terminal:
                self.rounds = max(self.rounds, due)
            self._apply(leaf)

    def _select(self, node: Node) -> Node | None:
        """The leaf or terminal node a simulation comes to; None if all leaves are under way (rule "skip")."""
        while node.children:
            log_visits = math.log(node.N + node.O)
            open_ = [child for child in node.visible if _free(child)] if self.rule == "skip" else node.visible
            if not open_:
                return None
            node = max(open_, key=lambda child: self._uct(child, log_visits))
        return node

    def _uct(self, child: Node, log_visits: float) -> float:
        N, V = child.N + child.O, child.V
        if child.O and self.rule == "loss":
            V = child.W / N
        elif child.O and self.rule == "half":
            V = (child.W + 0.5 * child.O * child.V) / N
        return V + self.c * math.sqrt((1 + log_visits) / (self.eps + N))

    def _apply(self, leaf: Node) -> None:
        for node in leaf.path():
            node.O -= 1 if leaf.terminal else self.k if self.weight is None else self.weight
        if leaf.terminal:
            visits, total = 1, leaf.V
        else:
            visits, total = self._expand(leaf)
        for node in leaf.path():
            node.N += visits
            node.W += total
            node.V = node.W / node.N

    def _expand(self, leaf: Node) -> tuple[int, float]:
        self.expansions += 1
        by_line: dict[str, Node] = {}
        for text in self.oracle.completions(0, leaf.state, self.k):
            line, _, rest = text.partition("\n")
            child = by_line.get(line)
            if child is None:
                state = f"{leaf.state}{line}\n"
                child = by_line[line] = Node(
                    state, leaf, leaf.depth + 1, not rest, V=self.oracle.score(state)
                )
            child.N += 1
            child.W += child.V
            program = f"{leaf.state}{text}\n"
            self.programs.append((self.oracle.score(program), program))
        leaf.children = list(by_line.values())
        leaf.visible = sorted(leaf.children, key=lambda child: -child.V)[: self.num_decisions]
        leaf.visible.sort(key=leaf.children.index)
        self.nodes += leaf.children
        visits, total = 0, 0.0
        for child in leaf.children:
            visits += child.N
            total += child.W
        return visits, total


def _free(node: Node) -> bool:
    """Whether a simulation below `node` can end at a leaf that is not under way."""
    if node.children:
        return any(map(_free, node.visible))
    return node.terminal or not node.O
