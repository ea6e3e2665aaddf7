"""Verify a file of samples: one verdict per row, and pass@k."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from restrl.errors import RestrlError
from restrl.metrics import mean_pass_at_k, pass_table
from restrl.problems import find_problem, held_between, load_problems
from restrl.problems.files import Fields, read_fields
from restrl.progress import Progress
from restrl.records import Problem
from restrl.rows import Row, disk, write_rows
from restrl.sandbox import Verdict, Verifier


def verify_file(
    problems: str | Path,
    samples: str | Path,
    out: str | Path,
    *,
    format: str = "auto",
    timeout: float = 6.0,
    workers: int = 2,
    allow_unsafe: bool = False,
    ks: Sequence[int] | None = None,
    quiet: bool = False,
    since: date | None = None,
    until: date | None = None,
) -> dict[str, float]:
    """Verify samples in EvalPlus' form ({"task_id", "solution" | "completion"}) and write one row for each.

    A row of `out`, in the order of `samples`: {"task_id", "sample" (its number within the task), "status",
    "passed", "reward" (null for infrastructure_error), "tests", "seconds", "isolation", "mode"}. It appears
    whole or not at all. Returns and prints {"pass@k"}: for `ks`, or for those of 1, 10, 100 that every
    problem has samples for. `since` and `until` choose problems by the date of their contest; samples of the
    others are passed over.

    Raises RestrlError for unknown ids (file and line), unreadable files, or a k above a problem's samples.
    """
    known = {p.task_id: p for p in load_problems(problems, format)}
    chosen = {p.task_id for p in held_between(list(known.values()), since, until, problems)}
    items = [_item(row, known, Path(problems)) for row in read_fields(Path(samples))]
    items = [item for item in items if item[0].task_id in chosen]
    if not items:
        raise RestrlError(f"{samples}: no sample is of a problem whose contest was held then")
    numbers: collections.Counter[str] = collections.Counter()
    rows: list[Row] = []
    for k in ks or ():
        least = min(collections.Counter(p.task_id for p, _ in items).values())
        if k > least:
            raise RestrlError(f"{samples}: pass@{k} needs {k} samples of every problem, and one has {least}")
    _make_folder(Path(out))
    with (
        Verifier(workers=workers, timeout=timeout, allow_unsafe=allow_unsafe) as verifier,
        Progress("verify", len(items)) as bar,
    ):
        verdicts: list[Verdict | None] = [None] * len(items)
        for position, verdict in verifier.stream(items):
            verdicts[position] = verdict
            bar.update(1)
        stats = verifier.stats
    for (problem, _), verdict in zip(items, filter(None, verdicts), strict=True):
        rows.append(_row(problem.task_id, numbers[problem.task_id], verdict))
        numbers[problem.task_id] += 1
    write_rows(out, rows)
    counts = _counts(rows)
    table = {f"pass@{k}": mean_pass_at_k(counts, k) for k in ks} if ks else pass_table(counts)
    if not quiet:
        _print(rows, len(chosen), table)
        if stats.retries:
            print(
                f"{stats.retries} programs were judged again after a failure of the machinery, "
                f"{stats.infrastructure_errors} could not be judged at all"
            )
    return table


def _make_folder(out: Path) -> None:
    """Before the work, so that a bad place is known at once."""
    if out.parent.is_file():
        raise RestrlError(f"{out}: cannot be written: {out.parent} is a file")
    with disk(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir():
        raise RestrlError(f"{out}: cannot be written: it is a folder")


def _item(row: Fields, problems: dict[str, Problem], path: Path) -> tuple[Problem, str]:
    task_id = row.identifier("task_id")
    problem = find_problem(problems, task_id)
    if problem is None:
        raise RestrlError(f"{row.where}: task_id {task_id!r} is in no problem of {path}")
    if row.row.get("solution") is not None:
        return problem, row.text("solution")
    if row.row.get("completion") is None:
        raise row.fail("solution", "is missing, and so is 'completion'")
    return problem, problem.prefix + row.text("completion")


def _row(task_id: str, sample: int, verdict: Verdict) -> Row:
    return {
        "task_id": task_id,
        "sample": sample,
        "status": verdict.status,
        "passed": verdict.passed,
        "reward": verdict.reward,
        "tests": list(verdict.tests),
        "seconds": round(verdict.seconds, 6),
        "isolation": verdict.isolation,
        "mode": verdict.mode,
    }


def _counts(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """(samples, correct) of every task; what could not be verified counts as neither."""
    known = [r for r in rows if r["reward"] is not None]
    samples = collections.Counter(r["task_id"] for r in known)
    correct = collections.Counter(r["task_id"] for r in known if r["passed"])
    return [(n, correct[task]) for task, n in samples.items()]


def _print(rows: Sequence[Row], problems: int, table: dict[str, float]) -> None:
    statuses = collections.Counter(r["status"] for r in rows)
    tasks = len({r["task_id"] for r in rows})
    print(
        f"{len(rows)} samples of {tasks} problems ({problems} in the file), isolation {rows[0]['isolation']}"
    )
    print("  ".join(f"{name} {count}" for name, count in statuses.most_common()))
    for name, value in table.items():
        print(f"{name}:\t{value:.3f}")
