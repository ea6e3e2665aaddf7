"""The parts of gpu.py: what is run on a GPU, and the figures to reach there (bf16, an H200)."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import harness
import torch
from harness import Row
from kernels_case import SHAPES, Shape, make, relative, truth
from kernels_measure import Times, interleaved, peak_mb
from kernels_methods import MASKED, RESTRL, ROOF, TRL, restrl
from kernels_operations import OPERATIONS, Prepared, Spec, Warm, prepare, warm
from kernels_rows import COPY, FORWARD, ONE_SHOT, ValueCase, value, value_case

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("test_reference*", "test_ops_*", "test_kernels_*", "test_value_score*")
MB = 1e6
Goal = tuple[float | None, float | None]  # must, stretch
COPIED = "copy of device memory"


@dataclass(frozen=True)
class Goals:
    """Milliseconds of N 8192 tokens in bf16 as (must, stretch); factor over TRL's chunked head."""

    fused: tuple[float, float]
    over_trl: float
    frozen: tuple[float, float]
    log_probs: tuple[float, float] | None


GOALS = {
    "7B": Goals((38.5, 36.0), 1.30, (26.0, 24.3), (13.3, 12.4)),
    "0.5B": Goals((10.9, 9.9), 1.40, (7.2, 6.6), None),
}


@dataclass
class Session:
    """Where the parts run, and the rows they found."""

    dry: bool
    until: float  # of time.time(): the part is stopped then
    rows: list[Row] = field(default_factory=list)
    report: Callable[[], object] = lambda: None  # called after every row

    @property
    def copy_gb_per_s(self) -> float | None:
        """As `ceilings` measured it."""
        return next((r.p50 for r in self.rows if r.name == COPIED), None)

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def repeats(self) -> int:
        return 1 if self.dry else 15

    def shape(self, name: str) -> Shape:
        return replace(SHAPES["tiny"], name=name, B=8, T=1, V=130) if self.dry else SHAPES[name]

    def spec(self, operation: str, shape: str, dtype: str = "bf16", scored: int | None = None) -> Spec:
        """A dry run computes in fp32: the interpreter's bf16 is wrong."""
        if self.dry:
            return Spec(operation, self.shape(shape), "fp32", "cpu", False, scored, "triton")
        return Spec(operation, self.shape(shape), dtype, "cuda", True, scored)

    def describe(self) -> dict[str, object]:
        found: dict[str, object] = harness.machine()
        if not self.dry:
            gpu = torch.cuda.get_device_properties(0)
            found |= {
                "gpu": gpu.name,
                "multiprocessors": gpu.multi_processor_count,
                "memory_gb": gpu.total_memory / 1e9,
            }
        return found

    def versions(self) -> dict[str, str]:
        found = harness.versions("torch") | {"cuda": str(torch.version.cuda)}
        for name in ("triton", "transformers", "trl", "liger_kernel"):
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "absent"
        return found

    def add(
        self, name: str, unit: str, values: Sequence[float], goal: Goal = (None, None), more: bool = False
    ) -> Row:
        goal = (None, None) if self.dry and unit else goal  # only errors mean something there
        row = harness.row(name, unit, values, *goal, better="more" if more else "less")
        self.rows.append(row)
        self.report()
        return row

    def time(self, prepared: Prepared) -> tuple[Warm, dict[str, Times]]:
        found = warm(prepared, self.device)
        return found, interleaved(found.runs, prepared.clear, self.repeats, self.device)


def ceilings(s: Session) -> str:
    """What the card can do: a copy, counted as bytes read and written, and a matrix product."""
    size = 1 << (20 if s.dry else 32)
    source = torch.randint(256, (size,), dtype=torch.uint8, device=s.device)
    into = torch.empty_like(source)
    n = 64 if s.dry else 8192
    a, b = (torch.randn(n, n, device=s.device).bfloat16() for _ in range(2))
    c = torch.empty_like(a)
    runs = {"copy": lambda: into.copy_(source), "product": lambda: torch.mm(a, b, out=c)}
    for run in runs.values():
        run()
    times = interleaved(runs, lambda: None, s.repeats, s.device)
    s.add(COPIED, "GB/s", [2e-9 * size / x for x in times["copy"].seconds], more=True)
    rates = [2e-12 * n**3 / x for x in times["product"].seconds]
    s.add(f"bf16 product of {n} x {n} x {n}", "TFLOP/s", rates, more=True)
    return "measured"


def compiled(s: Session) -> str:
    """Registers and spills on this card's architecture."""
    major, minor = (9, 0) if s.dry else torch.cuda.get_device_capability()
    words = ["-m", "restrl.kernels.compile", "--arch", str(10 * major + minor)]
    left = s.until - time.time() - 2
    return child([*words, *(["--only", "scale"] if s.dry else [])], left, TRITON_INTERPRET="0")


def tests(s: Session) -> str:
    """The tests of the losses and the kernels, on the GPU. test_kernels_compile is a part of its own."""
    paths = sorted(str(p) for pattern in TESTS for p in (ROOT / "tests").glob(f"{pattern}.py"))
    paths = [p for p in paths if not p.endswith("test_kernels_compile.py")]
    left = s.until - time.time() - 5  # it says what it has before it is stopped itself
    spread = ["-n", "8"] if find_spec("xdist") else []
    more = ["--collect-only"] if s.dry else ["--durations=5", *spread]
    said = child(["-m", "pytest", "-q", "-p", "no:cacheprovider", *more, *paths], left)
    return "\n".join(said.splitlines()[-40:])


def child(words: list[str], seconds: float, **environment: str) -> str:
    """Output of a Python process that must succeed."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    try:
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, timeout=seconds, env=env, check=False
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        raise RuntimeError(f"{said[-3000:]}\nnot done after {seconds:.0f} s") from error
    said = done.stdout + done.stderr
    if done.returncode:
        raise RuntimeError(f"{said[-6000:]}\nexit code {done.returncode}")
    return said


def accuracy(s: Session, dtype: str) -> str:
    """Errors against float64 of the same inputs, at vocabularies that end in the middle of a block."""
    said = []
    shapes = [Shape("odd", 8, 16, 896, 50257), Shape("0.5B", 8, 64, 896, 151936)]
    for shape in [s.shape("odd")] if s.dry else shapes:
        for operation in ("fused",) if s.dry and dtype == "bf16" else OPERATIONS:
            spec = replace(s.spec(operation, "7B", dtype), shape=shape, compiler=False)
            found = warm(prepare(spec), s.device)
            for method in (RESTRL, MASKED, FORWARD, ONE_SHOT):
                for name, error in found.errors.get(method, {}).items():
                    most = limit(dtype, operation, name)
                    s.add(f"{spec}: {method}: error of {name}", "", [error], (most, None))
            others = {name: errors for name, errors in found.errors.items() if not name.startswith("restrl")}
            said.append(f"{spec}: {others}; absent {found.absent}")
        if dtype == "bf16":
            said.append(storage(s, replace(shape, name="storage")))
    return "\n".join(said)


def limit(dtype: str, operation: str, name: str) -> float:
    """The most an error may be. Gradients of bf16 matmuls are rounded to bf16 once."""
    if name in ("log_probs", "values", "loss"):
        return {"log_probs": 2e-5, "values": 1e-5, "loss": 1e-5}[name]
    return 5e-3 if dtype == "bf16" and operation != "token loss" else 2e-5


def storage(s: Session, shape: Shape) -> str:
    """Gradients beside the best that matmuls of bf16 dloss/dlogits can give."""
    case = make(shape, torch.float32 if s.dry else torch.bfloat16, s.device, "triton" if s.dry else "auto")
    true, floor = truth(case), truth(case, storage=torch.bfloat16)
    restrl(case)()
    for name, got in (("d_hidden", case.hidden.grad), ("d_weight", case.weight.grad)):
        exact, best = getattr(true, name), getattr(floor, name)
        least = relative(best.bfloat16(), exact)
        error = relative(got, exact)
        assert least
        assert error
        s.add(f"{shape}: error of {name} over that of bf16 storage", "times", [error / least], (1.5, None))
    return "beside bf16 storage: done"


def repeatability(s: Session) -> str:
    """The same call twice gives the same bits, whatever was in the memory before."""
    for dtype in ("fp32",) if s.dry else ("fp32", "bf16"):
        spec = s.spec("fused", "0.5B", dtype)
        prepared = prepare(replace(spec, compiler=False))
        case = prepared.case
        assert case is not None
        run = prepared.makers[RESTRL]()
        results = []
        for _ in range(2):
            prepared.clear()
            junk = torch.full((case.shape.N, case.shape.V), torch.nan, device=s.device)
            del junk
            out = run()
            assert out.loss is not None
            assert out.log_probs is not None
            results.append([out.loss.detach(), out.log_probs, case.hidden.grad, case.weight.grad])
        same = all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        finite = all(bool(x.isfinite().all()) for x in results[0])
        s.add(f"{spec}: equal bits twice", "", [float(same and finite)], (1, None), more=True)
    return "done"


def head(s: Session, name: str, operation: str) -> str:
    """An operation on hidden states, all methods in the same repetitions; memory and masked rows."""
    goals = GOALS[name]
    goal = {"fused": goals.fused, "frozen": goals.frozen, "log-probs": goals.log_probs}[operation]
    spec = s.spec(operation, name)
    prepared = prepare(spec)
    found, times = s.time(prepared)
    for method, t in times.items():
        asked = goal if method == RESTRL and goal else (None, None)
        s.add(f"{spec}: {method}", "ms", [1e3 * x for x in t.seconds], asked)
    s.add(f"{spec}: roof over restrl", "times", per(times[ROOF], times[RESTRL]), more=True)
    if TRL in times:
        least = goals.over_trl if operation == "fused" else None
        faster = per(times[TRL], times[RESTRL])
        s.add(f"{spec}: TRL chunked over restrl", "times", faster, (least, None), more=True)
    if operation == "fused":
        s.add(f"{spec}: 25 % masked over all", "times", per(times[MASKED], times[RESTRL]), (0.78, None))
        memory(s, spec, prepared, times[RESTRL])
    return f"errors {found.errors}; absent {found.absent}; first runs {found.cold}"


def per(a: Times, b: Times) -> list[float]:
    return [x / y for x, y in zip(a.seconds, b.seconds, strict=True)]


def memory(s: Session, spec: Spec, prepared: Prepared, default: Times) -> None:
    """Beyond inputs and returned gradients, as the goals count it; time at other sizes of the chunk."""
    shape, case = spec.shape, prepared.case
    assert case is not None
    returned = case.hidden.nbytes + case.weight.nbytes
    wide = 4 * shape.V * shape.H / MB
    sizes = [4, 8] if s.dry else [512, 1024, 2048, 4096]
    chunks = prepared.with_chunks(sizes)
    found, times = s.time(chunks)
    for method in (RESTRL, *(f"{n} rows" for n in sizes)):
        run = found.runs.get(method) or prepared.makers[method]()
        most = {RESTRL: 1300 + wide, "1024 rows": 350 + wide}.get(method)
        extra = peak_mb(run, prepared.clear, s.device) - returned / MB
        s.add(f"{spec}: memory, {method}", "MB", [extra], (most, None))
    base = statistics.median(default.seconds)
    for n in sizes:
        slower = [x / base for x in times[f"{n} rows"].seconds]
        s.add(f"{spec}: {n} rows over default", "times", slower, (1.2 if n == 1024 else None, None))


def from_logits(s: Session) -> str:
    """On logits that are there: forward alone, loss and gradient in new memory, and in place."""
    spec = s.spec("logits", "7B")
    goals = {FORWARD: (0.68, 0.63), RESTRL: (2.05, None), ONE_SHOT: (1.5, 1.3)}
    found, times = s.time(prepare(spec))
    for method, t in times.items():
        s.add(f"{spec}: {method}", "ms", [1e3 * x for x in t.seconds], goals.get(method, (None, None)))
    s.add(f"{spec}: copy over restrl, in place", "", per(times[COPY], times[ONE_SHOT]), more=True)
    return f"errors {found.errors}; absent {found.absent}"


def values(s: Session) -> str:
    """Bytes a second beside the copy's, from replays of a graph: calls must not wait for the GPU."""
    said = []
    large, middle = ("tiny", "tiny") if s.dry else ("value 262144", "value 65536")
    cases = (
        (Shape(large, 64, 4096, 3584, 0), 262144, 0.51, 1),
        (Shape(middle, 16, 4096, 3584, 0), 4096, 0.012, 16),
        (Shape(middle, 16, 4096, 3584, 0), 64, None, 16),
    )
    for shape, scored, most, sets in cases:
        shape, scored = (replace(shape, B=2, T=8, H=64), min(scored, 8)) if s.dry else (shape, scored)
        dtype = torch.float32 if s.dry else torch.bfloat16
        case = value_case(shape, scored, dtype, s.device, "triton" if s.dry else "auto")
        calls = [value(case)[RESTRL]() for case in indices(case, sets, shape.N)]
        label = f"value, {scored} of {shape.N} positions, H{shape.H}"
        seconds = graph_seconds(calls) if not s.dry else [once_each(calls)]
        s.add(label, "ms", [1e3 * x for x in seconds], (most, None))
        moved = scored * shape.H * dtype.itemsize * 1e-9
        rate = [moved / x for x in seconds]
        s.add(f"{label}: bytes read", "GB/s", rate, more=True)
        if s.copy_gb_per_s:
            least = 0.85 if scored >= 65536 else None
            s.add(
                f"{label}: over the copy", "", [r / s.copy_gb_per_s for r in rate], (least, None), more=True
            )
        eager = {name: make() for name, make in value(case).items() if name not in (RESTRL, COPY)}
        for run in eager.values():
            run()
        for name, t in interleaved(eager, lambda: None, s.repeats, s.device).items():
            s.add(f"{label}: {name}", "ms", [1e3 * x for x in t.seconds])
        said.append(f"{label}: done")
        del case, calls, eager
    return "\n".join(said)


def indices(case: ValueCase, sets: int, positions: int) -> list[ValueCase]:
    """The case with other positions, so that a row is not in the cache because the last call read it."""
    shifts = [(case.index + k * (positions // sets)) % positions for k in range(sets)]
    return [replace(case, index=index.sort().values) for index in shifts]


def once_each(calls: Sequence[Callable[[], object]]) -> float:
    start = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - start) / len(calls)


def graph_seconds(calls: Sequence[Callable[[], object]], repeats: int = 15) -> list[float]:
    """Seconds of a call, from replays of a graph of all of them, several times over."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph, rounds = torch.cuda.CUDAGraph(), max(1, 32 // len(calls))
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    graph.replay()
    times = interleaved({"graph": graph.replay}, lambda: None, repeats, "cuda")["graph"]
    return [x / (rounds * len(calls)) for x in times.seconds]


def profile(s: Session) -> str:
    """Where the fused loss spends its time."""
    from torch.profiler import ProfilerActivity

    said = []
    for name in GOALS:
        prepared = prepare(replace(s.spec("fused", name), compiler=False))
        run = prepared.makers[RESTRL]()
        run()
        prepared.clear()
        kinds = [ProfilerActivity.CPU, *([] if s.dry else [ProfilerActivity.CUDA])]
        with torch.profiler.profile(activities=kinds) as found:
            run()
            if not s.dry:
                torch.cuda.synchronize()
        key = "self_cpu_time_total" if s.dry else "self_device_time_total"
        said.append(
            f"{name}\n{found.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=60)}"
        )
    return "\n".join(said)


class Part(NamedTuple):
    """A part and the seconds it may take, the start of its process included."""

    run: Callable[[Session], str]
    seconds: float

    def __call__(self, s: Session) -> str:
        return self.run(s)


PARTS = {
    "ceilings": Part(ceilings, 45),
    "accuracy in fp32": Part(partial(accuracy, dtype="fp32"), 60),
    "accuracy in bf16": Part(partial(accuracy, dtype="bf16"), 60),
    "repeatability": Part(repeatability, 45),
    **{
        f"{name} {operation}": Part(partial(head, name=name, operation=operation), 75)
        for operation in ("fused", "frozen", "log-probs")
        for name in GOALS
    },
    "logits": Part(from_logits, 60),
    "values": Part(values, 45),
    "tests": Part(tests, 200),
    "profile": Part(profile, 45),
    "compiled": Part(compiled, 60),
}
