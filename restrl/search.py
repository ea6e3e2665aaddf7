"""The driver of the search forest: feeds `restrl._core.Forest` from a policy and an evaluator, in batches.

One call of `complete` and one of `evaluate` serve all trees that are under way; a finished tree's place is
taken by the next root. A tree's shape depends on its root, the parameters, the seed and the answers alone,
never on its neighbours or on the batches it was answered in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Literal

from restrl._core import Forest, SearchParams
from restrl._core import Request as _CoreRequest
from restrl.errors import RestrlError
from restrl.policy import Completion

__all__ = [
    "Evaluation",
    "Expansion",
    "Request",
    "Root",
    "SearchParams",
    "TreeCompletion",
    "TreeNode",
    "TreeResult",
    "TreeStats",
    "search",
    "value_targets",
]

TREE_SCHEMA = 1


@dataclass(frozen=True)
class Root:
    """Where a tree starts. `key` names it, unique in a call; `state` is the text its programs begin with."""

    key: str
    state: str


@dataclass(frozen=True)
class Request:
    """A leaf to expand: `k` completions of `state`. `seed_key` is unique and the same in every run."""

    key: str
    state: str
    seed_key: str
    k: int


@dataclass(frozen=True)
class Expansion:
    """What has to be scored after an expansion.

    completions  the k objects that `complete` returned, unchanged
    programs     `[k]` whole programs: state + stripped completion + newline
    children     `[C]` states of the distinct children, in the order of their first completion
    child_of     `[k]` completion -> child
    """

    key: str
    state: str
    seed_key: str
    completions: list[Completion]
    programs: list[str]
    children: list[str]
    child_of: list[int]


@dataclass(frozen=True)
class Evaluation:
    """Scores of one expansion: `[k]` of its programs and, in value mode, `[C]` of its children."""

    completion_values: Sequence[float]
    child_values: Sequence[float] = ()


Complete = Callable[[list[Request]], list[list[Completion]]]
Evaluate = Callable[[list[Expansion]], list[Evaluation]]


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
    """

    node: int
    child: int
    value: float
    text: str
    tokens: int
    at: TreeNode = field(repr=False)

    @property
    def state(self) -> str:
        return self.at.state

    @property
    def program(self) -> str:
        return self.at.state + self.text


@dataclass(frozen=True)
class TreeStats:
    """Counts of one tree; `simulations` = `expansions` + `terminal_visits`."""

    simulations: int
    expansions: int
    terminal_visits: int
    completions: int
    generated_tokens: int
    collisions: int


@dataclass(frozen=True)
class TreeResult:
    """A finished search: nodes in pre-order (children as they were created), completions node by node."""

    key: str
    params: SearchParams
    seed: int
    nodes: list[TreeNode]
    completions: list[TreeCompletion]
    stats: TreeStats

    @property
    def best(self) -> TreeCompletion:
        """The completion of highest value, on ties the first in pre-order."""
        return max(self.completions, key=lambda completion: completion.value)

    @property
    def best_program(self) -> str:
        return self.best.program

    def value_targets(self, mode: Literal["dense", "reference"] = "dense") -> list[dict[str, Any]]:
        return value_targets(self, mode)

    def to_json(self) -> dict[str, Any]:
        """The tree as plain data for `json.dumps`; every text once: a state is the lines on its path."""
        node_fields = (
            "parent",
            "depth",
            "simulation",
            "N",
            "W",
            "V",
            "terminal",
            "expanded",
            "visible",
            "line",
        )
        sample_fields = ("node", "child", "value", "text", "tokens")
        return {
            "schema": TREE_SCHEMA,
            "key": self.key,
            "seed": self.seed,
            "params": self.params.to_dict(),
            "nodes": [{name: getattr(node, name) for name in node_fields} for node in self.nodes],
            "completions": [{name: getattr(row, name) for name in sample_fields} for row in self.completions],
            "best": self.completions.index(self.best),
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

    Raises RestrlError for an unknown mode.
    """
    if mode not in ("dense", "reference"):
        raise RestrlError(f'value targets have the modes "dense" and "reference", not {mode!r}')
    expanded = {node.state: node for node in result.nodes if node.expanded}
    start = len(result.nodes[0].line)
    rewards: dict[str, float] = {}
    times: dict[str, int] = {}
    for completion in result.completions:
        rewards.setdefault(completion.program, completion.value)
        times[completion.program] = times.get(completion.program, 0) + 1

    def row(program: str, targets: list[tuple[int, float, int]]) -> dict[str, Any]:
        ends, values, visits = (list(column) for column in zip(*targets, strict=True))
        return {"task_id": result.key, "program": program, "ends": ends, "values": values, "visits": visits}

    if mode == "reference":
        programs = [row(c.program, [(len(c.program), c.value, 1)]) for c in result.completions]
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


@dataclass
class _Live:
    """A tree under way: its place in the results and the token counts of its completions by simulation."""

    index: int
    root: Root
    tokens: dict[int, list[int]] = field(default_factory=dict)


def search(
    roots: Sequence[Root],
    params: SearchParams,
    *,
    complete: Complete,
    evaluate: Evaluate,
    seed: int = 0,
    leaves_in_flight: int | None = None,
    trees_in_flight: int = 64,
    max_batch: int | None = None,
    on_done: Callable[[TreeResult], None] | None = None,
) -> list[TreeResult]:
    """Grows one tree per root and returns them in the order of `roots`.

    complete          one batch of requests over all trees -> `[len(batch)][k]` completions, cut at stops
    evaluate          one batch of expansions over all trees -> their scores: verified rewards (collect mode),
                      value-model scores of completions and children (value), reward model's (outcome)
    leaves_in_flight  simulations of one tree under way at once; None keeps `params.leaves_in_flight`
    trees_in_flight   trees under way at once
    max_batch         most requests in one call of `complete`; None: as many as there are
    on_done           is called with each tree as soon as it has finished

    Whatever ends the call early (an exception of a callback, Ctrl-C) cancels the open requests first. Raises
    RestrlError for doubled keys, limits below 1 and answers of the wrong length or with scores not finite.
    """
    _check(roots, trees_in_flight, max_batch)
    if leaves_in_flight is not None:
        params = SearchParams(**{**params.to_dict(), "leaves_in_flight": leaves_in_flight})
    forest = Forest(params, seed)
    waiting = iter(enumerate(roots))
    live: dict[int, _Live] = {}
    results: dict[int, TreeResult] = {}
    try:
        while len(results) < len(roots):
            for index, root in islice(waiting, trees_in_flight - len(live)):
                live[forest.add(root.key, root.state)] = _Live(index, root)
            batch = forest.next(max_batch or 1 << 31)
            if not batch:  # every answer is in, so every tree under way has a leaf to expand
                raise RuntimeError("the search forest has trees under way and nothing to ask for")
            _answer(forest, batch, live, complete, evaluate)
            for tree in forest.take_finished():
                done = live.pop(tree)
                result = _read(forest, tree, done)
                forest.remove(tree)
                results[done.index] = result
                if on_done is not None:
                    on_done(result)
    except BaseException:
        forest.cancel_all()
        raise
    return [results[index] for index in range(len(roots))]


def _check(roots: Sequence[Root], trees_in_flight: int, max_batch: int | None) -> None:
    if trees_in_flight < 1:
        raise RestrlError(f"trees_in_flight = {trees_in_flight} must be at least 1")
    if max_batch is not None and max_batch < 1:
        raise RestrlError(f"max_batch = {max_batch} must be at least 1, or None")
    seen: set[str] = set()
    for root in roots:
        if root.key in seen:
            raise RestrlError(f"two roots have the key {root.key!r}; a key names one tree")
        seen.add(root.key)


def _answer(
    forest: Forest, batch: list[_CoreRequest], live: dict[int, _Live], complete: Complete, evaluate: Evaluate
) -> None:
    """Has one batch completed and scored: expansion first, back-up when the scores are there."""
    requests = []
    for core in batch:
        key = live[core.tree].root.key
        requests.append(Request(key, core.state, f"{key}/{core.simulation}", core.k))
    completions = complete(requests)
    if len(completions) != len(requests):
        raise RestrlError(f"complete() answered {len(completions)} of {len(requests)} requests")
    ids = [core.id for core in batch]
    forest.fulfil(ids, completions=[[sample.text for sample in samples] for samples in completions])

    expansions = []
    for core, request, samples in zip(batch, requests, completions, strict=True):
        live[core.tree].tokens[core.simulation] = [len(sample.token_ids) for sample in samples]
        split = forest.expansion(core.id)
        expansions.append(
            Expansion(
                key=request.key,
                state=request.state,
                seed_key=request.seed_key,
                completions=samples,
                programs=split["programs"],
                children=split["children"],
                child_of=split["child_of"],
            )
        )
    evaluations = evaluate(expansions)
    if len(evaluations) != len(expansions):
        raise RestrlError(f"evaluate() answered {len(evaluations)} of {len(expansions)} expansions")
    children = [list(evaluation.child_values) for evaluation in evaluations]
    forest.fulfil(
        ids,
        completion_values=[list(evaluation.completion_values) for evaluation in evaluations],
        child_values=children if forest.params.mode == "value" else None,
    )


def _read(forest: Forest, tree: int, live: _Live) -> TreeResult:
    view = forest.view(tree)
    nodes: list[TreeNode] = []
    for row in view["nodes"]:
        nodes.append(TreeNode(*row, up=nodes[row[0]] if row[0] >= 0 else None))
    completions = []
    for i, (node, child, value, text) in enumerate(view["completions"]):
        # The k completions of a node stand side by side, in the order they were sampled.
        tokens = live.tokens[nodes[node].simulation][i % forest.params.k]
        completions.append(TreeCompletion(node, child, value, text, tokens, at=nodes[node]))
    counts = forest.stats(tree)
    stats = TreeStats(
        simulations=counts["simulations"],
        expansions=counts["expansions"],
        terminal_visits=counts["terminal_visits"],
        completions=counts["completions"],
        generated_tokens=sum(completion.tokens for completion in completions),
        collisions=counts["collisions"],
    )
    return TreeResult(live.root.key, forest.params, forest.seed, nodes, completions, stats)
