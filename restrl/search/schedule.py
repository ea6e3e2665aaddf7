"""The schedule of a search: who works on what, and when answers are taken.

    roots ──► places ──► leaves ──► source (one running batch) ──► scorer (one queue) ──► back-up
                ▲                     ▲                                                      │
                └──── finished ◄──────┴───────────── the tree selects again ◄────────────────┘

Generation runs in the caller's thread and scoring in one of its own. What is generated together is decided
by counts alone, never by the clock: scores that were handed in before the source last advanced are waited
for after it has, if it has room. So a batch holds the same requests in every run, and floating-point results
repeat to the last bit.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from restrl._core import SearchParams
from restrl.errors import RestrlError
from restrl.search.grove import Grove
from restrl.search.records import (
    Answered,
    Complete,
    Evaluate,
    Evaluation,
    Expansion,
    Request,
    Root,
    Source,
    Timing,
)
from restrl.search.result import TreeResult


def search(
    roots: Sequence[Root],
    params: SearchParams,
    *,
    complete: Complete | None = None,
    source: Source | None = None,
    evaluate: Evaluate,
    seed: int = 0,
    leaves_in_flight: int | None = None,
    trees_in_flight: int = 64,
    max_batch: int | None = None,
    evaluate_batch: int | None = None,
    overlap: bool = True,
    splitter: Callable[[str], int] | None = None,
    timing: Timing | None = None,
    on_done: Callable[[TreeResult], None] | None = None,
) -> list[TreeResult]:
    """Grows one tree per root and returns them in the order of `roots`; see `grow`.

    on_done   is called with each tree as soon as it has finished
    """
    results: dict[str, TreeResult] = {}
    trees = grow(
        roots, params, complete=complete, source=source, evaluate=evaluate, seed=seed,
        leaves_in_flight=leaves_in_flight, trees_in_flight=trees_in_flight, max_batch=max_batch,
        evaluate_batch=evaluate_batch, overlap=overlap, splitter=splitter, timing=timing,
    )  # fmt: skip
    try:
        for tree in trees:
            results[tree.key] = tree
            if on_done is not None:
                on_done(tree)
    finally:
        trees.close()
    return [results[root.key] for root in roots]


def grow(
    roots: Sequence[Root],
    params: SearchParams,
    *,
    complete: Complete | None = None,
    source: Source | None = None,
    evaluate: Evaluate,
    seed: int = 0,
    leaves_in_flight: int | None = None,
    trees_in_flight: int = 64,
    max_batch: int | None = None,
    evaluate_batch: int | None = None,
    overlap: bool = True,
    splitter: Callable[[str], int] | None = None,
    timing: Timing | None = None,
) -> Generator[TreeResult, None, None]:
    """Grows one tree per root and gives each as soon as it has finished.

    complete          one batch of requests over all trees -> `[len(batch)][k]` completions, cut at stops
    source            is asked instead of `complete` if it is there: a running batch that requests join and
                      leave (`Drawer.source`)
    evaluate          one batch of expansions over all trees -> their scores: verified rewards (collect mode),
                      value-model scores of completions and children (value), reward model's (outcome)
    leaves_in_flight  simulations of one tree under way at once; None keeps `params.leaves_in_flight`
    trees_in_flight   trees under way at once
    max_batch         most requests in one call of `complete`; None: no limit
    evaluate_batch    most expansions in one call of `evaluate`; None: no limit
    overlap           `evaluate` runs in a thread beside `complete`: while one half of the requests is being
                      completed, the other half is scored. False: in turns, all trees in one batch
    splitter          length in characters of the first step of a text, in place of `params.step_ends`
    timing            is added to

    Whatever ends it early (an exception of a callback, in whichever thread, Ctrl-C, close()) cancels the open
    requests and waits for the call of `evaluate` under way. Raises RestrlError for doubled keys, limits below
    1, fewer max_samples than k and answers of the wrong length or with scores not finite.
    """
    _check(roots, params, complete, source, trees_in_flight, max_batch, evaluate_batch)
    if leaves_in_flight is not None:
        params = SearchParams(**{**params.to_dict(), "leaves_in_flight": leaves_in_flight})
    timing = Timing() if timing is None else timing
    begin = time.perf_counter()
    grove = Grove(roots, params, seed, trees_in_flight, timing, splitter)
    try:
        with _Scorer(evaluate, evaluate_batch, overlap, timing) as scorer:
            if source is None:
                assert complete is not None
                source = _Batches(complete, max_batch, scorer if overlap else None)
            yield from _run(grove, source, scorer, timing)
    finally:
        grove.cancel()
        timing.wall += time.perf_counter() - begin


def _run(grove: Grove, source: Source, scorer: _Scorer, timing: Timing) -> Generator[TreeResult, None, None]:
    while grove.left:
        requests = grove.select()
        answered: Answered = []
        if requests or source.busy:
            begin = time.perf_counter()
            answered = source.advance(requests)
            timing.generate += time.perf_counter() - begin
            timing.batches += 1
        elif not (
            scorer.open or grove.provided
        ):  # every answer is in, so every tree under way has a leaf to expand
            raise RuntimeError("the search forest has trees under way and nothing to ask for")
        if source.hungry:
            scorer.take(grove)
        if answered or grove.provided:
            scorer.submit(grove.expand(answered))
            if scorer.inline:
                scorer.take(grove)
        yield from grove.finished()


def _check(
    roots: Sequence[Root],
    params: SearchParams,
    complete: Complete | None,
    source: Source | None,
    trees_in_flight: int,
    max_batch: int | None,
    evaluate_batch: int | None,
) -> None:
    if complete is None and source is None:
        raise RestrlError("a search needs a place that completions come from: complete or source")
    if trees_in_flight < 1:
        raise RestrlError(f"trees_in_flight = {trees_in_flight} must be at least 1")
    for name, batch in (("max_batch", max_batch), ("evaluate_batch", evaluate_batch)):
        if batch is not None and batch < 1:
            raise RestrlError(f"{name} = {batch} must be at least 1, or None")
    if 0 < params.max_samples < params.k:
        raise RestrlError(
            f"max_samples = {params.max_samples} must be 0 (no limit) or at least k = {params.k}, "
            "so that a root can be expanded"
        )
    seen: set[str] = set()
    for root in roots:
        if root.key in seen:
            raise RestrlError(f"two roots have the key {root.key!r}; a key names one tree")
        seen.add(root.key)


def _check_answers(call: str, answers: Sequence[object] | None, asked: int, of: str) -> None:
    if answers is None:
        raise RestrlError(f"{call} returned None for {asked} {of}, not a list with an answer for each")
    if len(answers) != asked:
        raise RestrlError(f"{call} answered {len(answers)} of {asked} {of}")


class _Scorer:
    """`evaluate` and its queue, in a thread of its own or inline."""

    def __init__(self, evaluate: Evaluate, largest: int | None, overlap: bool, timing: Timing) -> None:
        self._evaluate, self._largest, self._timing = evaluate, largest, timing
        self._thread = ThreadPoolExecutor(1, "restrl-evaluate") if overlap else None
        self._queue: deque[tuple[list[Expansion], Future[list[Evaluation]]]] = deque()
        self.open = 0  # expansions handed in and not taken

    @property
    def inline(self) -> bool:
        return self._thread is None

    def __enter__(self) -> _Scorer:
        if self._thread is not None:
            # Ctrl-C while a pool starts its thread leaves one that it does not wait for: let it be idle.
            self._thread.submit(int).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def submit(self, expansions: list[Expansion]) -> None:
        if self._thread is not None:
            scores = self._thread.submit(self._score, expansions)
        else:
            scores = Future()
            scores.set_result(self._score(expansions))
            self._timing.inline = self._timing.score
        self._queue.append((expansions, scores))
        self.open += len(expansions)

    def take(self, grove: Grove) -> None:
        """All scores that were asked for, oldest first, into the forest; waits for them."""
        while self._queue:
            expansions, scores = self._queue.popleft()
            begin = time.perf_counter()
            evaluations = scores.result()
            self._timing.wait += time.perf_counter() - begin
            self.open -= len(expansions)
            grove.back_up(expansions, evaluations)

    def _score(self, expansions: list[Expansion]) -> list[Evaluation]:
        begin = time.perf_counter()
        size = self._largest or len(expansions)
        evaluations: list[Evaluation] = []
        for start in range(0, len(expansions), size):
            part = expansions[start : start + size]
            scores = self._evaluate(part)
            _check_answers("evaluate()", scores, len(part), "expansions")
            evaluations += scores
        self._timing.score += time.perf_counter() - begin
        return evaluations


class _Batches:
    """A Source of a plain `complete`: one batch at a time.

    With a scorer that works beside it, a batch is half of all requests: the trees fall into two halves that
    take turns, the one being completed while the other is being scored.
    """

    def __init__(self, complete: Complete, largest: int | None, scorer: _Scorer | None) -> None:
        self._complete, self._largest, self._scorer = complete, largest, scorer
        self._waiting: deque[Request] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    @property
    def hungry(self) -> bool:
        return self._largest is None or len(self._waiting) < self._largest

    def advance(self, requests: list[Request]) -> Answered:
        self._waiting.extend(requests)
        size = len(self._waiting)
        if self._scorer is not None:
            size = min(size, (size + self._scorer.open + 1) // 2)
        if self._largest is not None:
            size = min(size, self._largest)
        batch = [self._waiting.popleft() for _ in range(size)]
        completions = self._complete(batch)
        _check_answers("complete()", completions, len(batch), "requests")
        return list(zip(batch, completions, strict=True))
