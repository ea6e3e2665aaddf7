"""A finished search: its tree, its counts, and the value targets in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from restrl._core import SearchParams
from restrl.errors import RestrlError

TREE_SCHEMA = 1


@dataclass(slots=True, eq=False)
class TreeNode:
    """A node of a finished tree; `parent` is an index into `TreeResult.nodes`, -1 at the root.

    N visits, W sum of values, V = W / N (as of the last back-up); `line` is what it adds to its parent's
    state (the root's is its whole state); `simulation` is the one that expanded it, -1 if none did.
    """

    parent: int
    depth: int
    simulation: int
    N: int
    W: float
    V: float
    terminal: bool
    expanded: bool
    visible: bool
    line: str
    up: TreeNode | None = field(default=None, repr=False)

    @property
    def state(self) -> str:
        """The partial program, put together from the lines on the path."""
        lines = []
        node: TreeNode | None = self
        while node is not None:
            lines.append(node.line)
            node = node.up
        return "".join(reversed(lines))


@dataclass(slots=True, eq=False)
class TreeCompletion:
    """One completion of a tree: sampled at node `node`, its first line leads to node `child`.

    `text` follows the node's state; `value` is its reward or score; `tokens` counts what the policy sampled.
    `source` is the place of the completion that it was reused from (its tokens are counted there), -1 if it
    was drawn here.
    """

    node: int
    child: int
    value: float
    text: str
    tokens: int
    source: int
    at: TreeNode = field(repr=False)

    @property
    def state(self) -> str:
        return self.at.state

    @property
    def program(self) -> str:
        return self.at.state + self.text


@dataclass(frozen=True)
class TreeStats:
    """Counts of one tree.

    `simulations` = `expansions` + `terminal_visits`; `completions` = `samples` + `reused`, which were drawn
    from the policy and taken from an ancestor's; `generated_tokens` are those of the drawn ones.
    """

    simulations: int
    expansions: int
    terminal_visits: int
    completions: int
    samples: int
    reused: int
    generated_tokens: int
    collisions: int


_NODE_FIELDS = (
    "parent", "depth", "simulation", "N", "W", "V", "terminal", "expanded", "visible", "line",
)  # fmt: skip
_SAMPLE_FIELDS = ("node", "child", "value", "text", "tokens", "source")


@dataclass(frozen=True)
class TreeResult:
    """A finished search; its nodes and completions become objects when they are first asked for.

    node_rows        rows of `TreeNode`'s first ten fields
    completion_rows  rows (node, child, value, text, tokens, source)
    """

    key: str
    params: SearchParams
    seed: int
    stats: TreeStats
    node_rows: list[tuple[Any, ...]] = field(repr=False)
    completion_rows: list[tuple[int, int, float, str, int, int]] = field(repr=False)

    @cached_property
    def nodes(self) -> list[TreeNode]:
        """In pre-order, children as they were created."""
        nodes: list[TreeNode] = []
        for row in self.node_rows:
            node = TreeNode(*row)
            node.up = nodes[node.parent] if node.parent >= 0 else None
            nodes.append(node)
        return nodes

    @cached_property
    def completions(self) -> list[TreeCompletion]:
        """Node by node, those of a node in the order they were drawn, after the reused ones."""
        return [TreeCompletion(*row, at=self.nodes[row[0]]) for row in self.completion_rows]

    @cached_property
    def _best(self) -> int:
        values = [row[2] for row in self.completion_rows]
        return values.index(max(values)) if values else -1

    @property
    def best(self) -> TreeCompletion:
        """The completion of highest value, on ties the first in pre-order. RestrlError if there is none."""
        if self._best < 0:
            raise RestrlError(f"the tree {self.key!r} has no completion yet: nothing of it was answered")
        return self.completions[self._best]

    @property
    def best_program(self) -> str:
        return self.best.program

    def value_targets(self, mode: Literal["dense", "reference"] = "dense") -> list[dict[str, Any]]:
        return value_targets(self, mode)

    def to_json(self) -> dict[str, Any]:
        """The tree as plain data for `json.dumps`; every text once: a state is the lines on its path."""
        return {
            "schema": TREE_SCHEMA,
            "key": self.key,
            "seed": self.seed,
            "params": self.params.to_dict(),
            "nodes": [dict(zip(_NODE_FIELDS, row, strict=True)) for row in self.node_rows],
            "completions": [dict(zip(_SAMPLE_FIELDS, row, strict=True)) for row in self.completion_rows],
            "best": self._best if self._best >= 0 else None,
            "stats": asdict(self.stats),
        }


def value_targets(result: TreeResult, mode: Literal["dense", "reference"] = "dense") -> list[dict[str, Any]]:
    """Targets for the value model from one collected tree.

    Rows {"task_id", "program", "ends", "values", "visits"}: `values[i]` is the target of `program[:ends[i]]`,
    `visits[i]` how many completions stand behind it.

    dense      one row per distinct program with every line end past the root state: V of the node (visits
               N) where that is an expanded node, elsewhere its reward (visits: how often it was sampled)
    reference  one row per completion with its reward at its end, and one row per expanded node, the root
               included, with its V
    A reused completion gives nothing of its own: it is the program that it was reused from.

    Raises RestrlError for an unknown mode.
    """
    if mode not in ("dense", "reference"):
        raise RestrlError(f'value targets have the modes "dense" and "reference", not {mode!r}')
    expanded = {node.state: node for node in result.nodes if node.expanded}
    start = len(result.nodes[0].line)
    rewards: dict[str, float] = {}
    times: dict[str, int] = {}
    drawn = [completion for completion in result.completions if completion.source < 0]
    for completion in drawn:
        rewards.setdefault(completion.program, completion.value)
        times[completion.program] = times.get(completion.program, 0) + 1

    def row(program: str, targets: list[tuple[int, float, int]]) -> dict[str, Any]:
        ends, values, visits = (list(column) for column in zip(*targets, strict=True))
        return {"task_id": result.key, "program": program, "ends": ends, "values": values, "visits": visits}

    if mode == "reference":
        programs = [row(c.program, [(len(c.program), c.value, 1)]) for c in drawn]
        return programs + [row(state, [(len(state), node.V, node.N)]) for state, node in expanded.items()]
    rows = []
    for program, reward in rewards.items():
        targets = []
        for end in _line_ends(program, start):
            node = expanded.get(program[:end])
            targets.append((end, reward, times[program]) if node is None else (end, node.V, node.N))
        rows.append(row(program, targets))
    return rows


def _line_ends(program: str, start: int) -> Iterator[int]:
    """Offsets after each newline at or past `start`; a program ends in one."""
    end = program.find("\n", start) + 1
    while end:
        yield end
        end = program.find("\n", end) + 1
