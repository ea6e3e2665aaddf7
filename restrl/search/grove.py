"""The forest of one search and what is kept beside it: places for trees, token counts, finished trees."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

from restrl._core import Forest, SearchParams
from restrl.errors import RestrlError
from restrl.policy import Completion
from restrl.search.records import Answered, Evaluation, Expansion, Request, Root, Timing
from restrl.search.result import TreeResult, TreeStats

_ALL = 1 << 31


def _texts(request: Request, samples: Sequence[Completion]) -> list[str]:
    """The texts of an answer of `complete`. Raises RestrlError for one that is no list of Completion."""
    try:
        return [sample.text for sample in samples]
    except (AttributeError, TypeError):
        odd = (
            [s for s in samples if not hasattr(s, "text")] if isinstance(samples, list | tuple) else [samples]
        )
        raise RestrlError(
            f"complete() gave {request.seed_key} a {type(odd[0]).__name__}; "
            "it gives every request a list of k Completion"
        ) from None


@dataclass(slots=True)
class _Live:
    """A tree under way: its root and, by simulation, the token counts of its completions."""

    root: Root
    tokens: dict[int, list[int]] = field(default_factory=dict)


class Grove:
    """At most `trees_in_flight` trees at once; a finished one's place is taken by the next root."""

    def __init__(
        self,
        roots: Sequence[Root],
        params: SearchParams,
        seed: int,
        trees_in_flight: int,
        timing: Timing,
        splitter: Callable[[str], int] | None,
    ) -> None:
        self.forest = Forest(params, seed, splitter=splitter)
        self.params = params
        self.left = len(roots)  # trees that have not finished
        self._roots = iter(roots)
        self._places = trees_in_flight
        self._live: dict[int, _Live] = {}
        self.provided: list[Request] = []  # leaves that need no new completion
        self._open: dict[int, tuple[_Live, int]] = {}  # request -> its tree and simulation
        self._timing = timing

    @contextmanager
    def _engine(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._timing.engine += time.perf_counter() - begin

    def select(self) -> list[Request]:
        """Every leaf that can be expanded now and needs completions, over all trees; places are refilled.

        Leaves that have all their completions from an ancestor wait for `expand`.
        """
        with self._engine():
            for root in islice(self._roots, self._places - len(self._live)):
                self._live[self.forest.add(root.key, root.state)] = _Live(root)
            leaves = self.forest.next(_ALL)
        requests: list[Request] = []
        for leaf in leaves:
            live, simulation, key = self._live[leaf.tree], leaf.simulation, self._live[leaf.tree].root.key
            self._open[leaf.id] = (live, simulation)
            request = Request(key, leaf.state, f"{key}/{simulation}", leaf.k, leaf.reused, leaf.id)
            (requests if leaf.k else self.provided).append(request)
        return requests

    def expand(self, answered: Answered) -> list[Expansion]:
        """Completions into the forest; what of them has to be scored, and of the leaves that needed none."""
        with self._engine():
            self.forest.fulfil(
                [request.id for request, _ in answered],
                completions=[_texts(request, samples) for request, samples in answered],
            )
            answered = [*answered, *((request, []) for request in self.provided)]
            self.provided = []
            splits = [self.forest.expansion(request.id) for request, _ in answered]
        expansions = []
        for (request, samples), split in zip(answered, splits, strict=True):
            live, simulation = self._open.pop(request.id)
            reused = split["reused"]
            live.tokens[simulation] = [0] * reused + [len(sample.token_ids) for sample in samples]
            expansions.append(
                Expansion(
                    key=request.key,
                    state=request.state,
                    seed_key=request.seed_key,
                    completions=samples,
                    reused=split["programs"][:reused],
                    programs=split["programs"][reused:],
                    children=split["children"],
                    child_of=split["child_of"],
                    id=request.id,
                )
            )
        return expansions

    def back_up(self, expansions: list[Expansion], evaluations: list[Evaluation]) -> None:
        """Their scores into the forest."""
        for expansion, evaluation in zip(expansions, evaluations, strict=True):
            if not hasattr(evaluation, "completion_values"):
                raise RestrlError(
                    f"evaluate() gave {expansion.seed_key} a {type(evaluation).__name__}; "
                    "it gives every expansion an Evaluation"
                )
        children = [list(evaluation.child_values) for evaluation in evaluations]
        with self._engine():
            self.forest.fulfil(
                [expansion.id for expansion in expansions],
                completion_values=[list(evaluation.completion_values) for evaluation in evaluations],
                child_values=children if self.params.mode == "value" else None,
            )

    def finished(self) -> list[TreeResult]:
        """The trees that have ended since the last call; their places are free."""
        results = []
        with self._engine():
            for tree in self.forest.take_finished():
                results.append(self._read(tree, self._live.pop(tree)))
                self.forest.remove(tree)
        self.left -= len(results)
        return results

    def cancel(self) -> None:
        """Take back all open requests: nothing is in flight afterwards."""
        self.forest.cancel_all()

    def _read(self, tree: int, live: _Live) -> TreeResult:
        view, counts = self.forest.view(tree), self.forest.stats(tree)
        nodes, rows, k = view["nodes"], [], self.params.k
        for i, (node, child, value, text, source) in enumerate(view["completions"]):
            # The k completions of a node stand side by side, the reused ones first.
            tokens = live.tokens[nodes[node][2]][i % k] if source < 0 else 0
            rows.append((node, child, value, text, tokens, source))
        stats = TreeStats(
            simulations=counts["simulations"],
            expansions=counts["expansions"],
            terminal_visits=counts["terminal_visits"],
            completions=counts["completions"],
            samples=counts["samples"],
            reused=counts["reused"],
            generated_tokens=sum(row[4] for row in rows),
            collisions=counts["collisions"],
        )
        return TreeResult(live.root.key, self.params, self.forest.seed, stats, nodes, rows)
