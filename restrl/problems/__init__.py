"""Problem files of all formats as one kind of record.

A new format is a function from a row to a `Problem` (None: no tests, leave it out) and one line in `FORMATS`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path

from pydantic import ValidationError

from restrl.errors import RestrlError
from restrl.problems import apps, bigcodebench, ds1000, evalplus, humaneval, livecodebench, mbpp
from restrl.problems.files import Fields, LeftOut, read_fields
from restrl.records import Problem

__all__ = ["FORMATS", "find_problem", "held_between", "load_problems"]


def _record(row: Fields) -> Problem:
    """restrl's own form: one Problem per line, as `Problem.model_dump()` gives it."""
    try:
        return Problem.model_validate(row.row)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "task_id"
        raise row.fail(key, f"is wrong: {first['msg']}") from None


# format -> (keys by which a row of it is known, row -> problem); the first that fits the first row is taken.
FORMATS: dict[str, tuple[set[str], Callable[[Fields], Problem | None]]] = {
    "restrl": ({"task_id", "source", "tests"}, _record),
    "evalplus": (evalplus.KEYS, evalplus.humanevalplus),
    "mbppplus": (evalplus.KEYS_WITH_TEST, evalplus.mbppplus),
    "bigcodebench": (bigcodebench.KEYS, bigcodebench.bigcodebench),
    "ds1000": (ds1000.KEYS, ds1000.ds1000),
    "livecodebench": (livecodebench.KEYS, livecodebench.livecodebench),
    "mbpp": (mbpp.KEYS, mbpp.mbpp),
    "humaneval": (humaneval.KEYS, humaneval.humaneval),
    "apps": (apps.KEYS, apps.apps),
    "apps-with-test": (apps.KEYS_WITH_TEST, apps.apps_with_test),
}
_ALIASES = {"pipelines": "restrl"}


def load_problems(
    path: str | Path, format: str = "auto", *, since: date | None = None, until: date | None = None
) -> list[Problem]:
    """The problems of a file, in its order.

    `format` is "auto" (told from the first row) or one of `FORMATS`; JSONL or a JSON array, gzipped or not.
    `since` and `until` (inclusive) keep the problems whose contest was held then: what a model may have seen
    in training says nothing about it.
    Raises RestrlError naming file, line and key for a damaged row, an empty file, an unknown format or an id
    that occurs twice. Problems without tests are left out with a warning.
    """
    path = Path(path)
    name = _ALIASES.get(format, format)
    if name != "auto" and name not in FORMATS:
        raise RestrlError(f"unknown problem format {format!r}: one of auto, {', '.join(FORMATS)}")
    problems: list[Problem] = []
    places: dict[str, str] = {}
    untested = 0
    for row in read_fields(path):
        if name == "auto":
            name = _detect(row)
        try:
            problem = FORMATS[name][1](row)
        except LeftOut as reason:
            warnings.warn(f"{row.where}: left out: {reason}", stacklevel=2)
            continue
        if problem is None:
            untested += 1
            continue
        if problem.task_id in places:
            raise RestrlError(
                f"{row.where}: id {problem.task_id!r} occurs twice (first at {places[problem.task_id]})"
            )
        places[problem.task_id] = row.where
        problems.append(problem)
    if not problems:
        raise RestrlError(f"{path}: no problem in it has tests")
    problems = held_between(problems, since, until, path)
    if untested:
        warnings.warn(f"{path}: {untested} problems have no tests and are left out", stacklevel=2)
    return problems


def held_between(
    problems: list[Problem], since: date | None, until: date | None, path: str | Path
) -> list[Problem]:
    """The problems of contests held from `since` to `until`; all where neither is given.

    Raises RestrlError, naming the file, for a problem without a date, and where none is left.
    """
    if since is None and until is None:
        return problems
    since, until = since or date.min, until or date.max
    kept = []
    for problem in problems:
        if "contest_date" not in problem.meta:
            raise RestrlError(f"{path}: {problem.task_id} has no contest_date to choose it by")
        if since <= date.fromisoformat(problem.meta["contest_date"]) <= until:
            kept.append(problem)
    if not kept:
        raise RestrlError(f"{path}: no contest in it was held from {since} to {until}")
    return kept


def _detect(row: Fields) -> str:
    for name, (keys, _) in FORMATS.items():
        if keys <= row.row.keys():
            return name
    shown = ", ".join(map(repr, list(row.row)[:8]))
    raise RestrlError(
        f"{row.where}: no known problem format has these keys ({shown}); "
        f"name one with --format or problems.format: {', '.join(FORMATS)}"
    )


def find_problem(problems: dict[str, Problem], task_id: str) -> Problem | None:
    """The problem of an id; ids match with and without their `Name/` prefix."""
    if task_id in problems:
        return problems[task_id]
    short = task_id.rpartition("/")[2]
    if short in problems and "/" in task_id:
        return problems[short]
    matches = [p for i, p in problems.items() if i.rpartition("/")[2] == short] if "/" not in task_id else []
    return matches[0] if len(matches) == 1 else None
