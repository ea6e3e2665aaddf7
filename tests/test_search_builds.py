"""Two builds in turns: the ratio, and the script with a second build that is a copy of this one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import restrl
import restrl._core

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Where a copy of this build is, whether it is installed or editable."""
    package = Path(restrl.__file__).parent
    shutil.copytree(package, tmp_path / "restrl", ignore=shutil.ignore_patterns("__pycache__"))
    for library in Path(restrl._core.__file__).parent.glob("*.so"):
        shutil.copy(library, tmp_path / "restrl")
    return tmp_path


def test_a_ratio_is_formed_with_both_neighbours_and_more_is_faster() -> None:
    from search_builds import ratios

    def found(more_is_better: bool) -> list[float]:
        other, this = [99.0, 2.0, 2.0, 4.0, 2.0], [99.0, 6.0, 3.0]
        values = ratios(lambda: other.pop(0), lambda: this.pop(0), 2, more_is_better)
        assert (other, this) == ([], [])
        return values

    assert found(more_is_better=True) == [3.0, 1.0]
    assert found(more_is_better=False) == [2 / 6, 1.0]


def test_the_script_runs_the_other_build_beside_this_one(
    copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import search_builds

    search_builds.main([str(copy), "--only", "arrays, 64 trees", "--pairs", "6"])
    out = capfd.readouterr().out.splitlines()
    assert out[:2] == [f"this: {Path(restrl.__file__).parent}", f"other: {copy / 'restrl'}"]
    (row,) = (line for line in out if line.startswith("Python, arrays, 64 trees x 1 leaf"))
    assert 0.4 < float(row.split("times the other")[1].split()[0]) < 2.5


def test_a_build_without_an_engine_is_not_given_this_ones(
    copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import search_builds

    for library in copy.glob("restrl/_core*.so"):
        library.unlink()
    with pytest.raises(SystemExit, match="process ended"):
        search_builds.main([str(copy), "--pairs", "1"])
    assert "restrl._core" in capfd.readouterr().err


def test_rows_of_peers_are_left_out_and_those_that_a_build_does_not_know_say_so(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import bench_search
    import search_builds

    names = ("no such row", "C++ over plain Python, 1e4", "TreeQuest, 1e3", "C++, 1e7", "two threads, ms")
    cases = [bench_search.Case(name, bench_search.PER_S, lambda: 1.0) for name in names]
    monkeypatch.setattr(bench_search, "cases", lambda _: cases)
    with search_builds.Build(copy) as build:
        with pytest.raises(LookupError, match="KeyError"):
            build.run("no such row")
        assert search_builds.compare(build, build, "", 2) == []
    (line,) = capfd.readouterr().out.splitlines()
    assert line.strip() == "no such row: one build cannot run it (KeyError: 'no such row')"


def test_a_folder_without_a_build_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import search_builds

    with pytest.raises(SystemExit) as stop:
        search_builds.main([str(tmp_path)])
    assert stop.value.code == 2
    assert f"no restrl in {tmp_path}" in capfd.readouterr().err
