"""The behaviour signature of the search engine, and the command that prints it.

The value below is that of every machine, compiler and path of the processor. Whoever alters it alters what
the search computes: the commit that does so says so, and why.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from restrl import bench
from restrl._core import Forest, SearchParams

SIGNATURE = 71025109785647
ROOT = Path(__file__).parents[1]


def test_the_search_computes_what_it_did() -> None:
    assert bench.search_signature() == SIGNATURE


def restrl_bench(*arguments: str) -> str:
    command = [sys.executable, "-m", "restrl", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_command_prints_the_number_alone() -> None:
    assert restrl_bench("signature") == f"{SIGNATURE}\n"


def test_the_command_alone_lists_what_there_is() -> None:
    listing = restrl_bench()
    assert "restrl bench signature" in listing
    scripts = re.findall(r"^python (benchmarks/\w+\.py) ", listing, re.MULTILINE)
    assert [script for script in scripts if not (ROOT / script).exists()] == []
    assert {f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("bench_*.py")} <= set(scripts)


@pytest.mark.parametrize(
    "changed",
    [
        {"c": 0.3},
        {"eps": 0.2},
        {"num_decisions": 2},
        {"ties": "first"},
        {"leaves_in_flight": 2},
        {"reuse": True},
        {"step_ends": ("\n\n",)},
        {"max_samples": 100},
        {"simulations": 61},
    ],
)
def test_any_knob_alters_it(monkeypatch: pytest.MonkeyPatch, changed: dict[str, object]) -> None:
    params = next(iter(bench.signature_params()))
    found = []
    for fields in (params.to_dict(), {**params.to_dict(), **changed}):
        monkeypatch.setattr(bench, "signature_params", lambda fields=fields: [SearchParams(**fields)])
        found.append(bench.search_signature())
    assert found[0] != found[1]


def test_its_searches_end_in_every_way() -> None:
    """Terminal visits, collisions, duplicate actions and reuse all occur; every tree comes to rest."""
    terminal = collisions = duplicates = reused = 0
    for params in bench.signature_params():
        forest = Forest(params, bench.SEED)
        tree = forest.add("tree 0", "")
        bench.run(forest)
        stats = forest.stats(tree)
        assert stats["simulations"] == params.simulations or stats["samples"] == params.max_samples
        assert stats["in_flight"] == forest.nodes_in_flight(tree) == 0
        terminal += stats["terminal_visits"]
        collisions += stats["collisions"]
        duplicates += stats["completions"] + 1 - stats["nodes"]
        reused += stats["reused"]
    assert min(terminal, collisions, duplicates, reused) > 0
