"""Tests whose expected results come from a gold solution: it runs first, in the same kind of sandbox."""

from __future__ import annotations

import functools
import time
from typing import Any

from restrl.sandbox import plain
from restrl.sandbox.compare import same_result
from restrl.sandbox.item import Item
from restrl.sandbox.link import Handle, Stopped
from restrl.sandbox.remote import Candidate, Unjudgeable


def judge_inputs(item: Item) -> None:
    """EvalPlus: one call per input, compared with what the gold solution returned."""
    tests = item.tests
    expected = item.once(functools.partial(_expected, item))
    inputs, name = tests["inputs"], tests["entry_point"]
    while len(item.statuses) < len(inputs):
        first = len(item.statuses)
        candidate = item.start(("batch", item.program, "", name, inputs[first:]))
        for arguments, want in zip(inputs[first:], expected[first:], strict=True):
            item.one(functools.partial(_same, candidate, want, arguments, tests))
            if not candidate.alive:
                break
        if not candidate.alive and item.spent:
            item.give_up(item.statuses[-1])


def _same(candidate: Candidate, want: Any, arguments: list[Any], tests: dict[str, Any]) -> bool:
    return same_result(candidate.answer(), want, tests["compare"], tests["atol"], arguments)


def _expected(item: Item) -> list[Any]:
    """The gold solution's results. Raises Unjudgeable if it fails, or an input breaks the contract."""
    tests = item.tests
    if tests["contract"]:
        for i, answer in enumerate(_results(item, tests["contract"], "contract")):
            # The original inputs are tests even where a contract that was written later says otherwise.
            if isinstance(answer, BaseException) and i >= tests["base"]:
                raise Unjudgeable(f"input {i} breaks the contract ({answer}): its types are not known")
    results = _results(item, tests["gold"], tests["entry_point"])
    for i, answer in enumerate(results):
        if isinstance(answer, BaseException):
            raise Unjudgeable(f"the gold solution fails at input {i}: {answer}")
        if isinstance(answer, Handle):
            raise Unjudgeable(f"the gold solution's result for input {i} is no plain data")
    return results


def _results(item: Item, program: str, name: str) -> list[Any]:
    """What `name` returns for every input, or the exception it raised."""
    results: list[Any] = []
    job = ("batch", program, "", name, item.tests["inputs"])
    candidate = Candidate(item.zygote, job, cpu_seconds=item.cpu_seconds)
    try:
        for _ in item.tests["inputs"]:
            candidate.arm(time.monotonic() + item.timeout, item.timeout)
            try:
                results.append(candidate.answer())
            except Stopped as stop:
                raise Unjudgeable(f"the gold solution stops at input {len(results)}: {stop}") from None
            except (Exception, plain.Unserialisable) as error:
                if not candidate.alive:
                    raise
                results.append(error)
    finally:
        candidate.end()
    return results
