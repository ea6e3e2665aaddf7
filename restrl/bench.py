"""`restrl bench`: what shows that this build of the native core works, and how fast it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import product
from typing import Literal, get_args

from restrl._core import Forest, SearchParams, dummy_completions, dummy_score

LISTING = """\
restrl bench signature             one number of all the search engine computes: equal on every machine

and in a checkout, each with its figures beside a peer's of the same run:
python benchmarks/bench_search.py    the search engine: simulations per second, memory, threads
python benchmarks/search_builds.py   the same rows in two builds, in turns: what a change is worth
python benchmarks/bench_decode.py    VM-MCTS on a model: the published schedule against restrl's
python benchmarks/bench_leaves.py    what leaves in flight and reuse cost in quality
python benchmarks/bench_value.py     value scoring: tokens and CPU-seconds per expansion
python benchmarks/bench_kernels.py   losses and value scoring beside their peers: time, memory, error
python benchmarks/bench_training.py  CPU-seconds of the training half of a GRPO step
python benchmarks/bench_policy.py    decoding: tokens per CPU-second
python benchmarks/bench_verifier.py  the verifier: CPU-milliseconds per verdict
python benchmarks/demo_seeds.py      the demo over several seeds"""

SEED = 3
ROOTS = ("", "def f(x):\n")
Count = Literal["simulations", "expansions", "terminal_visits", "samples", "reused", "collisions"]
COUNTS: tuple[Count, ...] = get_args(Count)


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
            digest.update(repr((view["nodes"], view["completions"], counts)).encode())
    return int.from_bytes(digest.digest()[:6], "big")


def signature_params() -> Iterator[SearchParams]:
    """Every mode and tie rule, without and with reuse, one leaf in flight and many under either loss rule."""
    modes, ties, flights = (
        ("collect", "value", "outcome"),
        ("seeded", "first"),
        ((1, "loss"), (16, "loss"), (16, "unobserved")),
    )
    for mode, tie, reuse, (leaves, loss) in product(modes, ties, (False, True), flights):
        yield SearchParams(
            mode, simulations=60, ties=tie, reuse=reuse, leaves_in_flight=leaves, virtual_loss=loss
        )
    yield SearchParams(
        "value", simulations=60, k=9, num_decisions=6, c=1.0, leaves_in_flight=4, virtual_loss="loss",
        in_order=False,
    )  # fmt: skip
    yield SearchParams(
        "collect", simulations=60, k=3, max_samples=70, reuse=True, leaves_in_flight=4, virtual_loss="loss"
    )
    yield SearchParams("value", simulations=60, num_decisions=1, step_ends=("\n\n", "x\n"))


def run(forest: Forest) -> None:
    """Drives every tree to its end; batches of completions and of scores come back last request first."""
    by_value = forest.params.mode == "value"
    while batch := forest.next(24):
        batch.reverse()
        ids = [request.id for request in batch]
        texts = [
            dummy_completions(f"{request.tree}/{request.simulation}", request.k, SEED) for request in batch
        ]
        forest.fulfil(ids, completions=texts)
        splits = [forest.expansion(id) for id in ids]
        drawn = [split["programs"][split["reused"] :] for split in splits]
        values = [[score(program) for program in programs] for programs in drawn]
        children = [[score("child " + state) for state in split["children"]] for split in splits]
        forest.fulfil(ids, completion_values=values, child_values=children if by_value else None)


def score(text: str) -> float:
    """In [0, 1/3], a multiple of 1/48: scores tie, and sums of them round, so that their order counts."""
    return dummy_score(text, SEED) / 3
