"""The kernels' benchmark: its truth is autograd's, its memory figures count, and the script runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("masked", [0.0, 0.25])
def test_the_truth_is_what_autograd_says(masked: float) -> None:
    from kernels_case import SHAPES, make, relative, truth
    from kernels_methods import naive

    case = make(SHAPES["tiny"], torch.float64)
    case = case.masked(masked) if masked else case
    assert case.mask.mean() == pytest.approx(1 - masked, abs=0.02)
    true, found = truth(case, chunk=7), naive(case)()
    assert found.loss is not None
    assert float(found.loss - true.loss) == pytest.approx(0, abs=1e-6)
    for got, expected in (
        (found.log_probs, true.log_probs),
        (case.hidden.grad, true.d_hidden),
        (case.weight.grad, true.d_weight),
    ):
        assert relative(got, expected) == pytest.approx(0, abs=1e-5)  # naive's log-softmax is float32


def test_what_storage_costs_is_known() -> None:
    from kernels_case import SHAPES, make, relative, truth

    case = make(SHAPES["tiny"], torch.float32)
    error = relative(truth(case, storage=torch.bfloat16).d_hidden, truth(case).d_hidden)
    assert error is not None
    assert 1e-4 < error < 5e-3


def test_every_method_computes_the_same_thing() -> None:
    from kernels_case import SHAPES
    from kernels_operations import OPERATIONS, Spec, prepare, warm

    for operation in OPERATIONS:
        spec = Spec(operation, SHAPES["tiny"], "fp32", "cpu", compiler=False)
        found = warm(prepare(spec), "cpu")
        assert "restrl" in found.runs
        judged = {name: errors for name, errors in found.errors.items() if errors}
        assert len(judged) >= 2
        for errors in judged.values():
            assert max(errors.values()) < 1e-4


def test_a_wrong_method_has_a_large_error() -> None:
    from kernels_case import SHAPES
    from kernels_methods import Result
    from kernels_operations import Spec, prepare

    prepared = prepare(Spec("fused", SHAPES["tiny"], "fp32", "cpu", compiler=False))
    result = prepared.makers["restrl"]()()
    assert prepared.case is not None
    assert prepared.case.weight.grad is not None
    prepared.case.weight.grad[0] += 1
    errors = prepared.errors("restrl", Result(result.loss, result.log_probs))
    assert errors["d_weight"] > 1e-2 > errors["d_hidden"]


def test_peak_memory_is_what_a_run_holds_at_once() -> None:
    from kernels_measure import in_child, peak_mb
    from memory_held import hold_80_mb

    assert in_child(peak_mb, hold_80_mb, int, "cpu") == pytest.approx(80, abs=4)


def test_the_script_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench_kernels
    import kernels_page

    out, picture, page = tmp_path / "rows.json", tmp_path / "rows.svg", tmp_path / "page.md"
    page.write_text(f"title\n---\n{kernels_page.BEGIN}\nold\n{kernels_page.END}\n---\nrest\n")
    words = ["--quick", "--shape", "tiny", "--no-memory", "--json", str(out), "--plot", str(picture)]
    words += ["--page", str(page)]
    monkeypatch.setattr("sys.argv", ["bench_kernels.py", *words])
    bench_kernels.main()
    (run,) = json.loads(out.read_text())
    rows = [row for row in run["rows"] if row.get("method") == "restrl"]
    assert {row["operation"] for row in rows} == set(bench_kernels.OPERATIONS)
    assert all(row["p20"] <= row["p50"] <= row["p80"] and row["errors"] for row in rows)
    assert "over the matmuls alone" in capsys.readouterr().out
    assert picture.read_text().startswith("<?xml")
    _, figures, end = page.read_text().split("---\n")
    assert end == "rest\n"
    assert "| restrl | " in figures
    assert "| token loss, fp32, N32 H32 V300 | " in figures


def test_the_page_has_the_newest_rows_of_the_history() -> None:
    import kernels_page

    history = json.loads((BENCHMARKS / "history" / "kernels.json").read_text("utf-8"))
    page = (BENCHMARKS.parent / "docs" / "kernels.md").read_text("utf-8")
    assert kernels_page.figures(kernels_page.newest(history)) in page
