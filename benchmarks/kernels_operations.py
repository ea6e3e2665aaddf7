"""The operations of the kernel benchmarks, each ready to run: methods, what to do between runs, errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial

import kernels_case
import kernels_methods as methods
import kernels_rows as rows
import torch
from kernels_case import Backend, Case, Shape, relative
from kernels_measure import peak_mb
from kernels_methods import Absent, Result, Run

OPERATIONS = {
    "fused": "hidden states to loss and gradients",
    "frozen": "the same, the head's weight not trained",
    "log-probs": "hidden states to log-probs, no gradients",
    "logits": "logits to loss and their gradient",
    "token loss": "rewards and log-probs to loss and derivatives",
    "value": "scores of one in 16 positions",
}
Errors = dict[str, float]


@dataclass(frozen=True)
class Spec:
    """What names a measurement; it travels to child processes."""

    operation: str
    shape: Shape
    dtype: str
    device: str
    compiler: bool
    scored: int | None = None  # positions of "value"; None: one in 16
    backend: Backend = "auto"  # of restrl

    def __str__(self) -> str:
        return f"{self.operation}, {self.dtype}, {self.shape}"


@dataclass(frozen=True)
class Prepared:
    """makers  method -> its maker; may raise Absent
    clear      what has to happen before every run, outside its time
    errors     of the result of a method that has just run, by name: relative norms of gradients, largest
               absolute differences of the loss, log-probs and values
    roof       the method that nobody gets below
    case       what they compute on, where it is a Case
    """

    makers: Mapping[str, Callable[[], Run]]
    clear: Callable[[], object]
    errors: Callable[[str, Result], Errors]
    roof: str | None
    case: Case | None = None

    def only(self, methods: Sequence[str]) -> Prepared:
        """These methods beside the roof; none named: all."""
        kept = {k: v for k, v in self.makers.items() if not methods or k in (*methods, self.roof)}
        return replace(self, makers=kept)

    def with_chunks(self, sizes: Sequence[int]) -> Prepared:
        """restrl's fused loss with each of these sizes of a chunk, beside the roof."""
        assert self.case is not None
        makers = {f"{n} rows": partial(methods.restrl, self.case, chunk_rows=n) for n in sizes}
        return replace(self, makers={methods.ROOF: self.makers[methods.ROOF], **makers})


@dataclass
class Warm:
    """Methods that ran: their functions, seconds of the first run, errors; and why others are missing."""

    runs: dict[str, Run] = field(default_factory=dict)
    cold: dict[str, float] = field(default_factory=dict)
    errors: dict[str, Errors] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def prepare(spec: Spec) -> Prepared:
    dtype = kernels_case.DTYPES[spec.dtype]
    shape = spec.shape
    if spec.operation == "value":
        return _value(spec, dtype)
    case = kernels_case.make(shape, dtype, spec.device, spec.backend)
    if spec.operation == "logits":
        return _logits(case, spec.compiler)
    if spec.operation == "token loss":
        return _token_loss(case, spec.compiler)
    if spec.operation == "frozen":
        case = case.frozen()
    kinds = {"fused": methods.fused, "frozen": methods.frozen_head, "log-probs": methods.log_probs_only}
    makers = kinds[spec.operation](spec.compiler)

    @cache
    def true(masked: bool) -> kernels_case.Truth:
        return kernels_case.truth(case.masked(methods.MASKED_SHARE) if masked else case)

    def errors(method: str, result: Result) -> Errors:
        if method in (methods.ROOF, methods.CHUNKED):
            return {}
        t = true(method == methods.MASKED)
        found = {
            "loss": apart(result.loss, t.loss),
            "d_hidden": relative(case.hidden.grad, t.d_hidden),
            "d_weight": relative(case.weight.grad, t.d_weight),
        }
        if result.log_probs is not None and method != methods.MASKED:
            found["log_probs"] = furthest(result.log_probs, t.log_probs)
        return {name: error for name, error in found.items() if error is not None}

    made = {name: partial(maker, case) for name, maker in makers.items()}
    return Prepared(made, case.clear, errors, methods.ROOF, case)


def _logits(case: Case, compiler: bool) -> Prepared:
    logits = rows.logits_of(case)
    fresh = logits.detach().clone()
    loss, log_probs, g = rows.logits_truth(case, logits)

    def clear() -> None:
        logits.grad = None
        logits.data.copy_(fresh)  # a run in place has overwritten them

    def errors(method: str, result: Result) -> Errors:
        found = {"loss": apart(result.loss, loss)}
        if result.d_logits is not None:
            found["d_logits"] = rows.d_logits_error(case, fresh, result.d_logits, g)
        if result.log_probs is not None:
            found["log_probs"] = furthest(result.log_probs, log_probs)
        return {name: error for name, error in found.items() if error is not None}

    return Prepared(rows.from_logits(case, logits, compiler), clear, errors, rows.COPY)


def _token_loss(case: Case, compiler: bool) -> Prepared:
    log_probs = kernels_case.leaf(case.ref.double())
    loss = rows.plain_advantages_and_loss(
        log_probs, *(x.double() for x in (case.rewards, case.mask, case.old, case.ref))
    )
    loss.backward()

    def errors(method: str, result: Result) -> Errors:
        found = {
            "loss": apart(result.loss, loss.detach()),
            "d_log_probs": relative(result.d_logits, log_probs.grad),
        }
        return {name: error for name, error in found.items() if error is not None}

    return Prepared(rows.token_loss(case, compiler), case.clear, errors, None)


def _value(spec: Spec, dtype: torch.dtype) -> Prepared:
    case = rows.value_case(
        spec.shape, spec.scored or max(1, spec.shape.N // 16), dtype, spec.device, spec.backend
    )
    true = rows.value_truth(case)

    def errors(method: str, result: Result) -> Errors:
        if method == rows.COPY or result.values is None:
            return {}
        return {"values": furthest(result.values, true)}

    return Prepared(rows.value(case), lambda: None, errors, rows.COPY)


def apart(value: torch.Tensor | None, true: torch.Tensor) -> float | None:
    return None if value is None else furthest(value, true)


def furthest(value: torch.Tensor, true: torch.Tensor) -> float:
    """The largest absolute difference."""
    return float((value.detach().double() - true).abs().max())


def warm(prepared: Prepared, device: str) -> Warm:
    """Makes every method and runs it twice: a first run compiles, the second one's result is judged."""
    found = Warm()
    for name, make in prepared.makers.items():
        start = time.perf_counter()
        try:
            run = make()
            prepared.clear()
            run()
        except Absent as why:
            found.absent[name] = str(why)
            continue
        except Exception as error:
            if name.startswith(methods.RESTRL):
                raise
            found.absent[name] = f"{type(error).__name__}: {error}"[
                :500
            ]  # a peer's, or its compiler's, trouble
            continue
        if device == "cuda":
            torch.cuda.synchronize()
        found.cold[name] = time.perf_counter() - start
        prepared.clear()
        found.errors[name] = prepared.errors(name, run())
        found.runs[name] = run
    prepared.clear()
    return found


def peak(spec: Spec, method: str, chunk_rows: int | None = None) -> float | str:
    """MB above the inputs, of restrl also with a given chunk; for a child process. A string says why not."""
    if spec.device == "cpu":
        torch.set_num_threads(1)
        prepare(replace(spec, shape=kernels_case.SHAPES["tiny"]))  # what starts with the first use
    prepared = prepare(spec)
    if chunk_rows is not None:
        prepared = prepared.with_chunks([chunk_rows])
    try:
        run = prepared.makers[method]()
    except Absent as why:
        return str(why)
    return peak_mb(run, prepared.clear, spec.device)
