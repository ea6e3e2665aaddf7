"""Do the reference solutions of a problem file pass its tests?"""

from __future__ import annotations

import collections
from pathlib import Path

from restrl.errors import RestrlError
from restrl.problems import load_problems
from restrl.sandbox import Verifier


def validate_file(
    path: str | Path,
    *,
    format: str = "auto",
    timeout: float = 6.0,
    workers: int = 2,
    allow_unsafe: bool = False,
) -> bool:
    """Run every reference solution; print a line for each that does not pass, and the sums. True if all pass.

    Raises RestrlError for a file that cannot be read or in which no problem has a reference solution.
    """
    problems = load_problems(path, format)
    items = [(p, p.reference) for p in problems if p.reference is not None]
    if not items:
        raise RestrlError(f"{path}: no problem has a reference solution to validate")
    with Verifier(workers=workers, timeout=timeout, allow_unsafe=allow_unsafe) as verifier:
        verdicts = verifier.verify(items)
        isolation = verifier.isolation
    for (problem, _), verdict in zip(items, verdicts, strict=True):
        if not verdict.passed:
            bad = sum(t != "passed" for t in verdict.tests)
            tests = f", {bad} of {len(verdict.tests)} tests" if verdict.tests else ""
            print(f"{problem.task_id}: {verdict.status}{tests}: {verdict.detail}")
    for problem in problems:
        if problem.reference is None:
            print(f"{problem.task_id}: no reference solution")
    statuses = collections.Counter(v.status for v in verdicts)
    counts = ", ".join(f"{name} {count}" for name, count in statuses.most_common())
    print(
        f"{len(problems)} problems, {len(items)} with a reference solution: {counts} (isolation {isolation})"
    )
    return len(items) == len(problems) and all(v.passed for v in verdicts)
