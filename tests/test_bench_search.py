"""The engine's benchmark: moments of full speed are told apart, and the script runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


class Machine:
    """A clock and cores: a probe takes what is next in its core's list."""

    def __init__(self, probes: dict[int, list[float]]) -> None:
        self.probes, self.core, self.now = probes, {-1}, 0.0
        self.ran_on: list[int] = []

    def probe(self) -> float:
        return self.probes[min(self.core)].pop(0)

    def pin(self, to: set[int]) -> None:
        self.core = to

    def run(self) -> float:
        self.now += 1.0
        self.ran_on += self.core
        return float(len(self.ran_on))


def measured(
    monkeypatch: pytest.MonkeyPatch, probes: dict[int, list[float]], repeats: int, patience: float
) -> tuple[list[float], list[float], list[int]]:
    import harness

    machine = Machine({-1: [9.0], **probes})  # before it is on any core
    monkeypatch.setattr(harness, "probe", machine.probe)
    monkeypatch.setattr(harness, "pin", machine.pin)
    monkeypatch.setattr(harness, "cores", lambda: set(probes))
    monkeypatch.setattr(harness.time, "monotonic", lambda: machine.now)
    values, fast = harness.Speed(seconds=0).measure(machine.run, repeats, patience)
    assert machine.core == set(probes)
    return values, fast, machine.ran_on


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_fast_repeat_lies_between_two_short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = [2.0, 2.1, 2.2, 4.0, 4.0, 2.1, 2.0, 2.2]  # before and after each of four
    assert measured(monkeypatch, {0: probes}, 4, 0) == ([1, 2, 3, 4], [1, 4], [0] * 4)


def test_it_waits_for_fast_repeats_as_long_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, {0: [2.0] + [4.0] * 20}, 2, 5) == ([1, 2], [], [0] * 7)
    soon = [2.0, 4.0, 4.0, 4.0, 4.0, 4.0, 2.0, 2.0, 2.0, 2.0, 9.0, 9.0]
    assert measured(monkeypatch, {0: soon}, 2, 5) == ([1, 2], [4, 5], [0] * 5)


def test_a_still_faster_moment_makes_those_before_it_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = [4.0, 4.0, 4.0, 4.0, 2.0, 2.0, 2.0, 2.0]
    assert measured(monkeypatch, {0: probes}, 4, 0) == ([1, 2, 3, 4], [3, 4], [0] * 4)


def test_a_repeat_runs_on_the_core_that_is_faster_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = {0: [4.0, 2.0, 2.0, 4.0], 1: [2.0, 2.0, 4.0, 2.0, 4.0]}
    assert measured(monkeypatch, probes, 3, 0) == ([1, 2, 3], [1, 2], [1, 0, 1])


def test_a_row_is_judged_by_its_median_and_says_what_full_speed_gives() -> None:
    import harness

    def verdict(must: float | None, fast: list[float], better: Literal["more", "less"] = "more") -> str:
        row = harness.row("it", "a/s", [1.0, 2.0, 9.0], must, better=better, fast=fast)
        assert (row.p50, row.fast_repeats) == (2.0, len(fast))
        assert row.fast == (4.0 if fast else None)
        return harness.table([row]).splitlines()[1].rpartition("  ")[2].strip()

    fast = [4.0, 3.0, 8.0]
    assert (verdict(2.0, fast), verdict(4.0, fast), verdict(4.1, fast)) == (
        "met",
        "met at full speed",
        "NOT MET",
    )
    assert (verdict(4.0, []), verdict(2.0, [])) == ("NOT MET", "met")
    assert (verdict(3.0, fast, "less"), verdict(1.9, fast, "less")) == ("met", "NOT MET")


def test_a_ratio_is_formed_with_both_neighbours() -> None:
    from bench_search import faster

    ones = [1.0, 3.0]
    assert faster(lambda: ones.pop(0), lambda: 4.0) == 0.5


def test_the_script_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench_search

    words = ["--only", "arrays, 64 trees", "--patience", "0", "--treequest", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["bench_search.py", *words])
    bench_search.main()
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Python, arrays, 64"))
    median = row.split("simulations/s")[1].split()[0]
    assert 1e4 < float(median[:-1]) * {"k": 1e3, "M": 1e6}[median[-1]] < 1e8


def test_threads_are_compared_with_processes() -> None:
    from bench_search import against_processes, workers

    against_processes(1000)
    assert 0.2 < against_processes(20_000) < 5
    workers().shutdown()
    workers.cache_clear()
