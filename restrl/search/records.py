"""What a search asks of its backends, what they answer, and where its time went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from restrl.policy import Completion


@dataclass(frozen=True)
class Root:
    """Where a tree starts. `key` names it, unique in a call; `state` is the text its programs begin with."""

    key: str
    state: str


@dataclass(frozen=True, slots=True)
class Request:
    """A leaf to expand: `k` completions of `state`. `seed_key` is unique and the same in every run.

    reused  completions that the leaf has already: what follows from its parent's (they are not drawn)
    id      of the request in the forest
    """

    key: str
    state: str
    seed_key: str
    k: int
    reused: int = 0
    id: int = 0


@dataclass(frozen=True, slots=True)
class Expansion:
    """What has to be scored after an expansion: the new completions and, in value mode, all children.

    completions  the k objects that `complete` returned, unchanged
    programs     `[k]` whole programs of them: state + stripped completion + newline
    children     `[C]` states of the distinct children, in the order of their first completion; children that
                 only reused completions lead to are among them
    child_of     `[R + k]` completion -> child, the reused ones first
    reused       `[R]` whole programs of the reused completions: an ancestor's, scored there
    id           of the request in the forest
    """

    key: str
    state: str
    seed_key: str
    completions: list[Completion]
    programs: list[str]
    children: list[str]
    child_of: list[int]
    reused: list[str] = field(default_factory=list)
    id: int = 0

    @property
    def simulation(self) -> int:
        """The number of the simulation in its tree."""
        return int(self.seed_key.rpartition("/")[2])


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of one expansion: `[k]` of its programs and, in value mode, `[C]` of its children."""

    completion_values: Sequence[float]
    child_values: Sequence[float] = ()


Complete = Callable[[list[Request]], list[list[Completion]]]
Evaluate = Callable[[list[Expansion]], list[Evaluation]]
Answered = list[tuple[Request, list[Completion]]]


class Source(Protocol):
    """Completions from a running batch that requests join and leave."""

    @property
    def busy(self) -> bool:
        """Whether requests are under way."""
        ...

    @property
    def hungry(self) -> bool:
        """Whether more requests than it has would find a place."""
        ...

    def advance(self, requests: list[Request]) -> Answered:
        """Take these in, work until some requests are answered, and return those, in a fixed order."""
        ...


@dataclass
class Timing:
    """Where the wall time of searches went (seconds); pass one to `search`, it adds up over calls.

    wall      from the first request to the last tree
    generate  inside `complete` or the policy
    score     inside `evaluate`; runs beside `generate` where it has a thread of its own
    wait      the main thread waiting for scores
    engine    inside the C++ forest
    driver    what is left of the wall time: this package, and the callers of `grow`
    batches   calls of `complete` (of a streaming policy: times that requests joined)
    """

    wall: float = 0.0
    generate: float = 0.0
    score: float = 0.0
    wait: float = 0.0
    engine: float = 0.0
    batches: int = 0
    inline: float = 0.0  # the part of `score` that the main thread did

    @property
    def driver(self) -> float:
        return self.wall - self.generate - self.wait - self.inline - self.engine
