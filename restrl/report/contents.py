"""What a report shows, wherever it comes from, and the checks of the JSON it is read from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from restrl.errors import RestrlError

Number = float | None
Steps = list[dict[str, Any]]


class Part(BaseModel):
    """A piece of JSON: keys that the report does not show are left alone, NaN is a number."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Point(Part):
    """Accuracy of one policy and decoding at one budget (completions per problem)."""

    policy: str = "final policy"
    decoding: str
    value_head: str | None = None
    budget: Number = None
    accuracy: Number = None
    stderr: Number = None


class Result(Point):
    """A point with what it cost: sums over the problems."""

    problems: Number = None
    generated_tokens: Number = None
    value_tokens: Number = None
    verifier_seconds: Number = None
    seconds: Number = None


class Histogram(Part):
    edges: list[float]
    counts: list[float]


class Spread(Part):
    """Standard deviations of the rewards within groups: their mean and histogram."""

    mean: Number = None
    histogram: Histogram | None = None


class Node(Part):
    """A node of a search tree; see restrl.search.TreeNode."""

    parent: int
    depth: int
    N: Number = None
    V: Number = None
    terminal: bool = False
    expanded: bool = False
    visible: bool = True
    line: str


class TreeSample(Part):
    """A completion of a search tree; see restrl.search.TreeCompletion."""

    node: int = Field(ge=0)
    value: Number = None
    text: str


class Tree(Part):
    """A search tree as restrl.search.TreeResult.to_json writes it; nodes in pre-order."""

    key: str = ""
    params: dict[str, Any] = {}
    nodes: list[Node] = Field(min_length=1)
    completions: list[TreeSample] = []
    best: int | None = None
    stats: dict[str, Any] = {}


class DemoFile(Part):
    """report.json of a demo. `trees` gives the places of tree files in the folder."""

    rows: list[Result]
    seed: int | None = None
    curves: list[Point] = []
    reward_std: dict[str, Spread] = {}
    training: dict[str, Steps] = {}
    trees: dict[str, str] = {}
    settings: dict[str, Any] = {}
    seconds: dict[str, Number] = {}
    versions: dict[str, Any] = {}


class Contents(Part):
    """Everything on the page. Empty parts are left out of it.

    summary   sentences that say what was measured; missing  sentences that say what is not there
    training  rows of metrics.jsonl by arm; spread_of  what the groups of `reward_std` are
    tables    further small tables: title -> (explanation, rows of a header and cells)
    recipe    a config file (TOML) that the command reads
    """

    kind: Literal["demo", "run"]
    title: str
    summary: list[str] = []
    missing: list[str] = []
    results: list[Result] = []
    curves: list[Point] = []
    training: dict[str, Steps] = {}
    reward_std: dict[str, Spread] = {}
    spread_of: str = ""
    value_loss: Steps = []
    tables: dict[str, tuple[str, list[list[Any]]]] = {}
    trees: dict[str, Tree] = {}
    seconds: dict[str, Number] = {}
    settings: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    command: str = ""
    recipe: str = ""


AnyPart = TypeVar("AnyPart", bound=Part)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object. Raises RestrlError naming the file, what is wrong and the remedy."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RestrlError(f"{path}: no such file; {remedy}") from None
    except (ValueError, OSError) as error:
        raise RestrlError(f"{path}: damaged: {error}; {remedy}") from None
    if not isinstance(data, dict):
        raise RestrlError(f"{path}: damaged: not a JSON object; {remedy}")
    return data


def check(kind: type[AnyPart], data: dict[str, Any], path: Path, remedy: str) -> AnyPart:
    """`data` as a `kind`. Raises RestrlError naming the file, the key and the remedy."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise RestrlError(f"{path}: damaged: {key}: {first['msg']}; {remedy}") from None


def read_tree(path: Path, remedy: str) -> Tree:
    """A search tree whose indices lie inside it. Raises RestrlError."""
    tree = check(Tree, read_json(path, remedy), path, remedy)
    for i, node in enumerate(tree.nodes):
        if not (0 <= node.parent < i if i else node.parent == -1):
            raise RestrlError(f"{path}: damaged: nodes.{i}: parent {node.parent} is not before it; {remedy}")
    if any(sample.node >= len(tree.nodes) for sample in tree.completions):
        raise RestrlError(f"{path}: damaged: a completion names a node that is not there; {remedy}")
    if tree.best is not None and not 0 <= tree.best < len(tree.completions):
        raise RestrlError(f"{path}: damaged: best = {tree.best} names no completion; {remedy}")
    return tree
