"""Type stubs of the native core, one section per csrc/bindings/register_*.cpp."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from restrl.errors import RestrlError

# ---- register_search.cpp, register_forest.cpp ----

class SearchError(RestrlError):
    """Base of the search engine's errors."""

class ParamError(SearchError):
    """A field of SearchParams is out of range."""

class RequestError(SearchError):
    """An id names no open request or no tree of this forest."""

class AnswerError(SearchError):
    """An answer does not fit its request."""

class LimitError(SearchError):
    """A tree outgrew its 32-bit indices."""

class SnapshotError(SearchError):
    """Bytes are no snapshot, a damaged one, or one of another search."""

class SearchParams:
    """Knobs of a search (csrc/search/params.h). What is left out has the mode's published value:
    collect 100 simulations, num_decisions 3, c 0.2; value and outcome 20, 5, 0.1; k 5 and eps 0.1 in all."""

    def __init__(
        self,
        mode: Literal["collect", "value", "outcome"] | str = "collect",
        *,
        simulations: int | None = None,
        max_samples: int | None = None,
        k: int | None = None,
        num_decisions: int | None = None,
        c: float | None = None,
        eps: float | None = None,
        ties: Literal["seeded", "first"] | str | None = None,
        leaves_in_flight: int | None = None,
        virtual_loss: Literal["loss", "unobserved"] | str | None = None,
        reuse: bool | None = None,
        in_order: bool | None = None,
        step_ends: Sequence[str] | None = None,
    ) -> None: ...
    @property
    def mode(self) -> str: ...
    @property
    def simulations(self) -> int: ...
    @property
    def max_samples(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def num_decisions(self) -> int: ...
    @property
    def c(self) -> float: ...
    @property
    def eps(self) -> float: ...
    @property
    def ties(self) -> str: ...
    @property
    def leaves_in_flight(self) -> int: ...
    @property
    def virtual_loss(self) -> str: ...
    @property
    def reuse(self) -> bool: ...
    @property
    def in_order(self) -> bool: ...
    @property
    def step_ends(self) -> tuple[str, ...]: ...
    def to_dict(self) -> dict[str, Any]: ...
    def __eq__(self, other: object) -> bool: ...

class Request:
    """A leaf to expand: k completions of `state` to draw, the `simulation`-th of its tree.

    `reused` completions it has already; k is 0 where it needs no more and only its children want scores.
    `completed`: all its completions are there (reused, or from a snapshot), so that only scores are asked.
    """

    @property
    def id(self) -> int: ...
    @property
    def tree(self) -> int: ...
    @property
    def simulation(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def reused(self) -> int: ...
    @property
    def completed(self) -> bool: ...
    @property
    def state(self) -> str: ...

_Ids = Sequence[int] | NDArray[np.integer[Any]]
_Values = Sequence[Sequence[float]] | Sequence[float] | NDArray[np.floating[Any]]

class _Expansion(TypedDict):
    state: str
    programs: list[str]  # [params.k], the reused ones first
    reused: int
    children: list[str]
    terminal: list[bool]
    child_of: list[int]

class _View(TypedDict):
    # (parent, depth, simulation, N, W, V, terminal, expanded, visible, line), -1 for none; pre-order
    nodes: list[tuple[int, int, int, int, float, float, bool, bool, bool, str]]
    # (node, child, value, text, source), node by node; source: row it was reused from, -1 if it was drawn
    completions: list[tuple[int, int, float, str, int]]

class _Stats(TypedDict):
    simulations: int
    expansions: int
    terminal_visits: int
    completions: int  # samples + reused
    samples: int
    reused: int
    collisions: int
    in_flight: int
    nodes: int
    text_bytes: int
    bytes: int  # memory besides text

class Forest:
    """Many search trees; any method may be called from any thread (contract: csrc/search/forest.h).

    `splitter` takes the place of params.step_ends: text -> length in characters of its first step, at least
    1, len(text) or more for one last step. Its text is a completion without the white space at its end, and
    a newline, or what is left of one; it must depend on the text alone. It is called by fulfil(), in the
    thread that calls that and with no lock held; what it raises comes out there, with nothing changed.

    Ids are a list, a tuple or an array of integers. Scores are a list with a row for each request, a flat
    list, or an array of float64 of any shape, the rows one after the other; completions a list with a row of
    str for each request, or a flat list. Without rows every request gets as many as it needs. Completions
    are held by reference, not copied.
    """

    def __init__(
        self, params: SearchParams, seed: int = 0, splitter: Callable[[str], int] | None = None
    ) -> None: ...
    @property
    def params(self) -> SearchParams: ...
    @property
    def seed(self) -> int: ...
    def add(self, key: str, state: str) -> int: ...
    def next(self, max_requests: int) -> list[Request]: ...
    def take(
        self, max_requests: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]]:
        """next() as arrays: ids, trees, simulations, k."""

    def fulfil(
        self,
        ids: _Ids,
        completions: Sequence[Sequence[str]] | Sequence[str] | None = None,
        completion_values: _Values | None = None,
        child_values: _Values | None = None,
    ) -> None: ...
    def states(self, ids: _Ids) -> list[str]:
        """The states of the requests' leaves."""

    def children(self, ids: _Ids) -> NDArray[np.uint32]:
        """How many children each request's expansion has: so many child_values it needs."""

    def cancel(self, ids: _Ids) -> None: ...
    def cancel_all(self) -> None: ...
    def expansion(self, id: int) -> _Expansion: ...
    def take_finished(self) -> list[int]: ...
    def in_flight(self) -> int: ...
    def nodes_in_flight(self, tree: int) -> int: ...
    def stats(self, tree: int) -> _Stats: ...
    def view(self, tree: int) -> _View: ...
    def remove(self, tree: int) -> None: ...
    def save(self, tree: int) -> bytes: ...
    def load(self, data: bytes) -> int: ...

def dummy_completions(text: str, k: int, seed: int = 0) -> list[str]: ...
def dummy_score(text: str, seed: int = 0) -> float: ...
def run_dummy(forest: Forest, seed: int = 0, batch: int = 64, ends: int = 16) -> int: ...

# ---- register_snapshot.cpp (Forest.save and Forest.load stand above) ----

class _SnapshotInfo(TypedDict):
    key: str
    params: SearchParams
    seed: int
    splitter: bool  # whether the search had one
    simulations: int  # applied
    in_flight: int

def snapshot_info(data: bytes) -> _SnapshotInfo: ...

# ---- register_bench.cpp ----

class _Synthetic(TypedDict):
    walks: Literal["avx2", "scalar"]
    seconds: float  # growth; wall
    cpu_seconds: float  # growth
    gather_seconds: float  # of the fastest round
    gather_cpu_seconds: float
    round_seconds: float
    round_cpu_seconds: float
    simulations: int
    terminal_visits: int
    collisions: int
    nodes: int
    bytes: int  # memory besides text
    round_simulations: int
    mean_depth: float

def bench_tree(
    simulations: int,
    *,
    leaves_in_flight: int = 1,
    trees: int = 1,
    threads: int = 1,
    seed: int = 0,
    rounds: int = 0,
    mode: str = "collect",
    k: int = 5,
    num_decisions: int = 3,
    depth: int = 60,
    scalar: bool = False,
) -> _Synthetic: ...

# ---- register_bench_forest.cpp ----

class _ForestTimes(TypedDict):
    seconds: float  # growth; wall
    cpu_seconds: float  # growth
    simulations: int
    collisions: int
    nodes: int
    next_cpu_seconds: float  # of the fastest round
    round_cpu_seconds: float
    round_requests: int

def bench_forest(
    simulations: int,
    *,
    leaves_in_flight: int = 1,
    trees: int = 1,
    threads: int = 1,
    batch: int = 64,
    rounds: int = 0,
    text_bytes: int = 0,
    mode: str = "collect",
    reuse: bool = False,
    prepared: bool = True,
    copied: bool = False,
    seed: int = 0,
) -> _ForestTimes: ...
