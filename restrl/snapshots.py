"""Snapshots of search trees for people: JSON, a result as of a finished search, value targets one by one.

A snapshot is what `Forest.save` returns (docs/formats.md, "Snapshots of trees"); `Forest.load` goes on
with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any, Literal

from restrl._core import Forest, snapshot_info
from restrl.errors import RestrlError
from restrl.search.result import TreeResult, TreeStats

__all__ = ["iter_value_targets", "snapshot_to_json", "snapshot_to_result"]


def snapshot_to_result(data: bytes, splitter: Callable[[str], int] | None = None) -> TreeResult:
    """The tree in a snapshot, as a finished search would give it, whatever is under way in it.

    A snapshot does not hold how many tokens were sampled: they are 0 here. `splitter` is needed for the
    snapshot of a search that had one. Raises SnapshotError (a RestrlError) for damaged bytes.
    """
    info = snapshot_info(data)
    if info["splitter"] and splitter is None:
        raise RestrlError("the snapshot is of a search with a splitter; give it here too")
    params, seed = info["params"], info["seed"]
    forest = Forest(params, seed, splitter=splitter) if info["splitter"] else Forest(params, seed)
    tree = forest.load(data)
    view, counts = forest.view(tree), forest.stats(tree)
    forest.cancel_all()
    return TreeResult(
        key=info["key"],
        params=params,
        seed=seed,
        stats=TreeStats(
            simulations=counts["simulations"],
            expansions=counts["expansions"],
            terminal_visits=counts["terminal_visits"],
            completions=counts["completions"],
            samples=counts["samples"],
            reused=counts["reused"],
            generated_tokens=0,
            collisions=counts["collisions"],
        ),
        node_rows=view["nodes"],
        completion_rows=[(*row[:4], 0, row[4]) for row in view["completions"]],
    )


def snapshot_to_json(data: bytes, splitter: Callable[[str], int] | None = None) -> dict[str, Any]:
    """The tree in a snapshot as plain data for `json.dumps`, in the form of tree.json (docs/formats.md)."""
    return snapshot_to_result(data, splitter).to_json()


def iter_value_targets(
    result: TreeResult, mode: Literal["dense", "reference"] = "dense"
) -> Iterator[dict[str, Any]]:
    """The rows of `value_targets(result, mode)` in its order, built one at a time.

    A program is put together when its row is asked for; until then 16 bytes stand for it, and for the
    state of every expanded node, so that memory does not grow with depth times length.

    Raises RestrlError for an unknown mode.
    """
    if mode not in ("dense", "reference"):
        raise RestrlError(f'value targets have the modes "dense" and "reference", not {mode!r}')
    return _dense(result) if mode == "dense" else _reference(result)


def _row(result: TreeResult, program: str, targets: list[tuple[int, float, int]]) -> dict[str, Any]:
    ends, values, visits = (list(column) for column in zip(*targets, strict=True))
    return {"task_id": result.key, "program": program, "ends": ends, "values": values, "visits": visits}


def _drawn(result: TreeResult) -> Iterator[tuple[int, float, str]]:
    """(node, value, text) of the completions that are not reused ones."""
    return ((node, value, text) for node, _, value, text, _, source in result.completion_rows if source < 0)


def _state(result: TreeResult, node: int) -> str:
    lines = []
    while node >= 0:
        lines.append(result.node_rows[node][9])
        node = result.node_rows[node][0]
    return "".join(reversed(lines))


def _expanded(result: TreeResult) -> Iterator[tuple[str, float, int]]:
    """(state, V, N) of the expanded nodes."""
    for index, row in enumerate(result.node_rows):
        if row[7]:
            yield _state(result, index), row[5], row[3]


def _reference(result: TreeResult) -> Iterator[dict[str, Any]]:
    for node, value, text in _drawn(result):
        program = _state(result, node) + text
        yield _row(result, program, [(len(program), value, 1)])
    for state, value, visits in _expanded(result):
        yield _row(result, state, [(len(state), value, visits)])


def _name(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _dense(result: TreeResult) -> Iterator[dict[str, Any]]:
    expanded = {_name(state): (value, visits) for state, value, visits in _expanded(result)}
    rewards: dict[bytes, float] = {}
    times: dict[bytes, int] = {}
    for node, value, text in _drawn(result):
        name = _name(_state(result, node) + text)
        rewards.setdefault(name, value)
        times[name] = times.get(name, 0) + 1
    start = len(result.node_rows[0][9])
    for node, _, text in _drawn(result):
        program = _state(result, node) + text
        name = _name(program)
        if name not in rewards:
            continue  # its row is out
        own = (rewards.pop(name), times[name])
        hashed = blake2b(program[:start].encode("utf-8", "surrogatepass"), digest_size=16)
        targets = []
        done = start
        end = program.find("\n", start) + 1
        while end:
            hashed.update(program[done:end].encode("utf-8", "surrogatepass"))
            targets.append((end, *expanded.get(hashed.digest(), own)))
            done, end = end, program.find("\n", end) + 1
        yield _row(result, program, targets)
