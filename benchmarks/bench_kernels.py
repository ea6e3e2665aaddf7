"""The losses and the value head beside their peers: time, memory and error, all in the same run.

    python benchmarks/bench_kernels.py [--only WORD] [--shape small large] [--dtype fp32 bf16]
        [--methods NAME ...] [--device cuda] [--repeats 5] [--no-compile] [--no-memory] [--no-chunks]
        [--quick] [--json FILE] [--history] [--plot FILE] [--page FILE]

Operations: hidden states to loss and gradients ("fused"), the same with a frozen head, log-probs only, the
loss on given logits, advantages with the loss on given log-probs ("token loss"), and scores of single
positions ("value"); then the fused loss over the rows of its chunks. Every repetition runs all methods one
after another; a ratio is formed within each repetition. On the CPU a time is CPU time of one thread (the
clock is in the JSON file), on a GPU it is the time between two events. Memory is the peak above the inputs in
a process of its own, results included. Errors are against float64 on the same inputs: relative norms of
gradients, largest absolute differences of the loss (which is of the size of an advantage), log-probs, values.

--only        operations whose name has this word: fused, frozen, log-probs, logits, token loss, value, chunks
--methods     these alone, beside the roof: naive "TRL chunked" restrl "restrl, with entropies" ...
--no-compile  leaves out torch.compile (25 s a shape; needs a C++ compiler), also inside Liger
--quick       the small shape, float32, 3 repetitions, no compiling, no chunks
--history     append the rows to benchmarks/history/kernels.json
--plot        a picture of the newest rows there, or of the JSON file's: docs/images/kernels.svg
--page        write them into a page: docs/kernels.md
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in child processes

import harness
import kernels_page
import torch
from harness import Row
from kernels_case import DTYPES, SHAPES
from kernels_measure import Times, in_child, interleaved
from kernels_methods import CHUNKED, COMPILED, ENTROPIES, MASKED, RESTRL, ROOF
from kernels_operations import OPERATIONS, Errors, Spec, peak, prepare, warm
from kernels_rows import COPY, FORWARD, ONE_SHOT

from restrl.ops import cpu, cpu_products

HISTORY = Path(__file__).parent / "history" / "kernels.json"
UNWEIGHED = (ROOF, COPY, MASKED)
WEIGHED = ("fused", "log-probs")  # operations whose memory is measured
OURS = (RESTRL, ENTROPIES, MASKED, FORWARD, ONE_SHOT)
MOST = {"fp32": 1.10, "bf16": 1.35}  # times the three matmuls


@dataclass(frozen=True)
class Measured(Row):
    """A method at an operation, in ms; ratios are medians over the repetitions."""

    operation: str = ""
    shape: str = ""
    dtype: str = ""
    method: str = ""
    wall_p50: float = 0.0
    times_roof: float | None = None
    times_best_peer: float | None = None
    memory_mb: float | None = None
    cold_s: float = 0.0
    errors: Errors = field(default_factory=dict)


def measure(spec: Spec, repeats: int, memory: bool, methods: Sequence[str] = ()) -> list[Row]:
    """A row for every method that can be measured (and is among `methods`, if there are any), then one for
    every figure that has to be reached.
    """
    prepared = prepare(spec)
    found = warm(prepared.only(methods), spec.device)
    times = interleaved(found.runs, prepared.clear, repeats, spec.device)
    for name, why in found.absent.items():
        print(f"  {spec}: {name} is absent: {why}", flush=True)
    roof = prepared.roof
    del prepared, found.runs  # their memory is not the children's
    peers = [name for name in times if name not in (*OURS, ROOF, CHUNKED, COPY)]
    best = min(peers, key=lambda name: statistics.median(times[name].seconds), default=None)
    rows = []
    for name, t in times.items():
        plain = harness.row(f"{spec}: {name}", "ms", [1e3 * s for s in t.seconds], better="less")
        rows.append(
            Measured(
                **asdict(plain),
                operation=spec.operation,
                shape=str(spec.shape),
                dtype=spec.dtype,
                method=name,
                wall_p50=1e3 * statistics.median(t.wall),
                times_roof=middle(ratios(t, times[roof])) if roof else None,
                times_best_peer=middle(ratios(t, times[best])) if best and name in OURS else None,
                memory_mb=memory_of(spec, name) if memory and name not in UNWEIGHED else None,
                cold_s=found.cold[name],
                errors=found.errors[name],
            )
        )
    return [*rows, *goals(spec, times, rows)]


def ratios(ours: Times, other: Times) -> list[float]:
    return [a / b for a, b in zip(ours.seconds, other.seconds, strict=True)]


def middle(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3)


def memory_of(spec: Spec, method: str, chunk_rows: int | None = None) -> float | None:
    found: float | str = in_child(peak, spec, method, chunk_rows)
    if isinstance(found, str):
        print(f"  {spec}: {method} has no memory figure: {found}", flush=True)
        return None
    return round(found, 1)


def goals(spec: Spec, times: dict[str, Times], rows: Sequence[Measured]) -> list[Row]:
    """The figures of the CPU that the fused loss has to reach."""
    if spec.operation != "fused" or spec.device != "cpu" or RESTRL not in times:
        return []
    ours = times[RESTRL]
    about = f"{spec}: "
    found = [
        harness.row(
            f"{about}over the matmuls alone",
            "times",
            ratios(ours, times[ROOF]),
            MOST.get(spec.dtype),
            better="less",
        ),
    ]
    if ENTROPIES in times:
        found.append(
            harness.row(
                f"{about}over the matmuls alone, with entropies",
                "times",
                ratios(times[ENTROPIES], times[ROOF]),
                MOST.get(spec.dtype),
                better="less",
            )
        )
    if MASKED in times:
        found.append(
            harness.row(
                f"{about}25 % masked over all", "times", ratios(times[MASKED], ours), 0.78, better="less"
            )
        )
    if COMPILED in times:
        most = 1.0 if spec.dtype == "fp32" else None
        found.append(
            harness.row(
                f"{about}over naive, compiled", "times", ratios(ours, times[COMPILED]), most, better="less"
            )
        )
    memory = next(r.memory_mb for r in rows if r.method == RESTRL)
    if memory is not None:
        own = next((r.memory_mb for r in rows if r.method == CHUNKED), None)
        note = "" if own is None else f"the matmuls alone with the same tensors: {own}"
        most = round(allowed_mb(spec), 1)
        found.append(harness.row(f"{about}memory", "MB", [memory], most, better="less", note=note))
    return found


def allowed_mb(spec: Spec) -> float:
    """The buffer of a chunk, dloss/dweight as it is summed, and dloss/dhidden, which is returned."""
    shape, dtype = spec.shape, DTYPES[spec.dtype]
    chunk = cpu.chunk_rows(shape.N, shape.V, shape.H, dtype)
    buffer = cpu_products.buffer_dtype(dtype, torch.device("cpu"))
    summed = dtype if chunk == shape.N else torch.float32
    sizes = (chunk * shape.V * buffer.itemsize, shape.V * shape.H * summed.itemsize)
    return (sum(sizes) + shape.N * shape.H * dtype.itemsize) / 1e6


def sweep(spec: Spec, repeats: int, memory: bool) -> list[Row]:
    """The fused loss over the rows of its buffer, beside the matmuls."""
    prepared = prepare(spec)
    sizes = [2**i for i in range(5, 20) if 2**i < spec.shape.N] + [spec.shape.N]
    chosen = {f"{n} rows": n for n in sizes}
    prepared = prepared.with_chunks(sizes)
    found = warm(prepared, spec.device)
    times = interleaved(found.runs, prepared.clear, repeats, spec.device)
    return [
        Measured(
            **asdict(harness.row(f"{spec}: {name}", "ms", [1e3 * s for s in t.seconds], better="less")),
            operation="chunks",
            shape=str(spec.shape),
            dtype=spec.dtype,
            method=name,
            wall_p50=1e3 * statistics.median(t.wall),
            times_roof=middle(ratios(t, times[ROOF])),
            memory_mb=memory_of(spec, name, chosen[name]) if memory and name in chosen else None,
            errors=found.errors[name],
        )
        for name, t in times.items()
    ]


HEADINGS = ("method", "ms", "p20 .. p80", "/ roof", "/ best peer", "MB", "cold s", "errors")


def table(rows: Sequence[Measured]) -> str:
    """The methods of one operation, a line each."""
    lines = [HEADINGS]
    for r in rows:
        ratio = ["" if x is None else f"{x:.2f}" for x in (r.times_roof, r.times_best_peer)]
        errors = " ".join(f"{name} {error:.1e}" for name, error in r.errors.items())
        spread = f"{r.p20:.4g} .. {r.p80:.4g}"
        memory = "" if r.memory_mb is None else f"{r.memory_mb:.0f}"
        lines.append((r.method, f"{r.p50:.4g}", spread, *ratio, memory, f"{r.cold_s:.1f}", errors))
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS) - 1)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, [*widths, 0], strict=True)).rstrip()
        for line in lines
    )


def specs(args: argparse.Namespace) -> list[Spec]:
    """What to measure, in this order: fused, log-probs and chunks at every shape, others at the first."""
    shapes, dtypes = [SHAPES[name] for name in args.shape], args.dtype
    found = []
    for operation in (*OPERATIONS, "chunks"):
        if args.only not in operation or (args.no_chunks and operation == "chunks"):
            continue
        for shape in shapes if operation in (*WEIGHED, "chunks") else shapes[:1]:
            for dtype in dtypes if operation not in ("token loss", "chunks") else dtypes[:1]:
                found.append(Spec(operation, shape, dtype, args.device, not args.no_compile))
    return found


def main() -> None:
    args = arguments()
    if args.device == "cpu":
        torch.set_num_threads(1)
    about = {
        "machine": machine(args.device),
        "versions": installed(),
        "torch_threads": torch.get_num_threads(),
    }
    print(f"commit {harness.commit()}; {about['machine']}; {about['versions']}", flush=True)
    rows: list[Row] = [harness.calibrate()]
    for spec in specs(args):
        print(f"  {spec} ...", flush=True)
        memory = not args.no_memory
        if spec.operation == "chunks":
            found = sweep(replace(spec, operation="fused"), args.repeats, memory)
        else:
            found = measure(spec, args.repeats, memory and spec.operation in WEIGHED, args.methods)
        torch._dynamo.reset()
        print(table([r for r in found if isinstance(r, Measured)]), flush=True)
        rows += found
    rows.append(harness.calibrate())
    print("", harness.table([r for r in rows if not isinstance(r, Measured)]), sep="\n")
    if args.json:
        args.json.unlink(missing_ok=True)  # one run, not a history
        harness.append(args.json, rows, about)
    if args.history:
        harness.append(HISTORY, rows, about)
        print(f"appended to {HISTORY}")
    if args.plot:
        from kernels_plot import plot

        plot(json.loads((args.json or HISTORY).read_text()), args.plot)
    if args.page:
        kernels_page.write(json.loads((args.json or HISTORY).read_text()), args.page)


def machine(device: str) -> dict[str, Any]:
    found = {**harness.machine(), "instructions": torch.backends.cpu.get_cpu_capability()}
    return {**found, "gpu": torch.cuda.get_device_name()} if device == "cuda" else found


def installed() -> dict[str, str]:
    found = harness.versions("torch")
    for name in ("triton", "trl", "liger_kernel", "transformers"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The losses and the value head beside their peers.")
    parser.add_argument("--only", default="", help="operations whose name has this word")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, help="default: small large; on a GPU 0.5B 7B")
    parser.add_argument("--dtype", nargs="+", choices=("fp32", "bf16"), help="default: both; on a GPU bf16")
    parser.add_argument("--methods", nargs="+", default=(), help="these alone, by their whole names")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="no torch.compile")
    parser.add_argument("--no-memory", action="store_true", help="no peak memory")
    parser.add_argument("--quick", action="store_true", help="small shape, fp32, 3 repetitions, no compiling")
    parser.add_argument("--no-chunks", action="store_true", help="not over the rows of a chunk")
    parser.add_argument("--plot", type=Path, help="picture of the newest rows")
    parser.add_argument("--page", type=Path, help="page to write the newest rows into")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--history", action="store_true", help=f"append to {HISTORY.name}")
    args = parser.parse_args()
    if args.quick:
        args.shape, args.dtype = args.shape or ["small"], args.dtype or ["fp32"]
        args.repeats, args.no_compile, args.no_chunks = 3, True, True
    args.shape = args.shape or (["small", "large"] if args.device == "cpu" else ["0.5B", "7B"])
    args.dtype = args.dtype or (["fp32", "bf16"] if args.device == "cpu" else ["bf16"])
    return args


if __name__ == "__main__":
    main()
