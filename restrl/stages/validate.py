"""Do the reference solutions of a problem file pass its tests?"""

from __future__ import annotations

import collections
from pathlib import Path

from restrl.errors import RestrlError
from restrl.problems import load_problems
from restrl.sandbox import Verdict, Verifier

SLOWER = 4.0  # times its limit that a test of a reference solution may take when that runs alone


def validate_file(
    path: str | Path,
    *,
    format: str = "auto",
    timeout: float = 6.0,
    workers: int = 2,
    allow_unsafe: bool = False,
) -> bool:
    """Run every reference solution; print a line for each that does not pass, and the sums. True if all pass.

    One that ran out of time runs again when nothing else does, with `SLOWER` times the limit. If it passes
    then, it is right, and this machine slow or busy: that is printed, and is no failure.

    Raises RestrlError for a file that cannot be read or in which no problem has a reference solution.
    """
    problems = load_problems(path, format)
    items = [(p, p.reference) for p in problems if p.reference is not None]
    if not items:
        raise RestrlError(f"{path}: no problem has a reference solution to validate")
    with Verifier(workers=workers, timeout=timeout, allow_unsafe=allow_unsafe) as verifier:
        verdicts = verifier.verify(items)
        isolation = verifier.isolation
    late = [i for i, verdict in enumerate(verdicts) if verdict.status == "timeout"]
    slow: dict[int, Verdict] = {}
    if late:
        with Verifier(workers=1, timeout=SLOWER * timeout, allow_unsafe=allow_unsafe) as verifier:
            again = verifier.verify([items[i] for i in late], early_exit=True)
        slow = {i: verdict for i, verdict in zip(late, again, strict=True) if verdict.passed}
    for i, ((problem, _), verdict) in enumerate(zip(items, verdicts, strict=True)):
        if i in slow:
            print(
                f"{problem.task_id}: passed, slow: {slow[i].seconds:.1f} s in all when it ran alone, a test "
                f"before that more than the limit of {timeout:g} s; programs like it may time out"
            )
        elif not verdict.passed:
            bad = sum(t != "passed" for t in verdict.tests)
            tests = f", {bad} of {len(verdict.tests)} tests" if verdict.tests else ""
            print(f"{problem.task_id}: {verdict.status}{tests}: {verdict.detail}")
    for problem in problems:
        if problem.reference is None:
            print(f"{problem.task_id}: no reference solution")
    statuses = collections.Counter("passed slowly" if i in slow else v.status for i, v in enumerate(verdicts))
    counts = ", ".join(f"{name} {count}" for name, count in statuses.most_common())
    print(
        f"{len(problems)} problems, {len(items)} with a reference solution: {counts} (isolation {isolation})"
    )
    return len(items) == len(problems) and all(v.passed or i in slow for i, v in enumerate(verdicts))
