"""`restrl bench`: what shows that this build of the native core works, and how fast it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import product
from typing import Literal

from restrl._core import Forest, SearchParams, dummy_completions, dummy_score

LISTING = """\
restrl bench signature             one number of all the search engine computes: equal on every machine

and in a checkout, each with its figures beside a peer's of the same run:
python benchmarks/bench_search.py    the search engine: simulations per second, memory, threads
python benchmarks/bench_policy.py    decoding: tokens per CPU-second
python benchmarks/bench_verifier.py  the verifier: CPU-milliseconds per verdict
python benchmarks/demo_seeds.py      the demo over several seeds"""

SEED = 3
ROOTS = ("", "def f(x):\n")
COUNTS: tuple[Literal["simulations", "expansions", "terminal_visits", "completions", "collisions"], ...] = (
    "simulations", "expansions", "terminal_visits", "completions", "collisions",
)  # fmt: skip


def search_signature() -> int:
    """48 bits over every node, completion and count of a fixed set of searches with the dummy policy.

    A change of what the search computes changes it, and says so in its commit; speed, memory layout, threads
    and the order of answers do not (tests/test_search_signature.py holds its value).
    """
    digest = hashlib.sha256()
    for params in signature_params():
        forest = Forest(params, SEED)
        trees = [forest.add(f"tree {i}", root) for i, root in enumerate(ROOTS)]
        run(forest)
        for tree in trees:
            view = forest.view(tree)
            stats = forest.stats(tree)
            counts = [stats[name] for name in COUNTS]
            rows = [row[:4] for row in view["completions"]]
            digest.update(repr((view["nodes"], rows, counts)).encode())
    return int.from_bytes(digest.digest()[:6], "big")


def signature_params() -> Iterator[SearchParams]:
    """Every mode and tie rule, with one and with many leaves in flight."""
    for mode, ties, leaves in product(("collect", "value", "outcome"), ("seeded", "first"), (1, 16)):
        yield SearchParams(mode, simulations=60, ties=ties, leaves_in_flight=leaves)
    yield SearchParams("value", simulations=60, k=9, num_decisions=4, c=1.0, leaves_in_flight=4)


def run(forest: Forest) -> None:
    """Drives every tree to its end; batches of completions and of scores come back last request first."""
    while batch := forest.next(24):
        batch.reverse()
        ids = [request.id for request in batch]
        keys = [f"{request.tree}/{request.simulation}" for request in batch]
        texts = [dummy_completions(key, request.k, SEED) for key, request in zip(keys, batch, strict=True)]
        forest.fulfil(ids, completions=texts)
        splits = [forest.expansion(id) for id in ids]
        values = [[score(program) for program in split["programs"]] for split in splits]
        children = [[score("child " + state) for state in split["children"]] for split in splits]
        by_value = forest.params.mode == "value"
        forest.fulfil(ids, completion_values=values, child_values=children if by_value else None)


def score(text: str) -> float:
    """In [0, 1/3], a multiple of 1/48: scores tie, and sums of them round, so that their order counts."""
    return dummy_score(text, SEED) / 3
