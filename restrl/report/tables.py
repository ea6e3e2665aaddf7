"""The tables of numbers: accuracy by policy and decoding, and what each answer cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from restrl.config import METHODS
from restrl.report import words
from restrl.report.contents import Number, Point, Result
from restrl.report.markup import any_value, finite, number, seconds, table, text, whole

POLICIES = ("base", "grpo", "filter-grpo", "rest-grpo")
Key = tuple[str, str | None]


def ordered(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Distinct names: the known ones in their order, then the others as they come."""
    distinct = list(dict.fromkeys(names))
    return [n for n in known if n in distinct] + [n for n in distinct if n not in known]


def policies(points: Sequence[Point]) -> list[str]:
    return ordered([p.policy for p in points], POLICIES)


def decodings(points: Sequence[Point]) -> list[Key]:
    """(decoding, value head) in the order of the methods, scalar before additive."""
    methods = ordered([p.decoding for p in points], METHODS)
    heads = [None, *ordered([p.value_head for p in points if p.value_head], ("scalar", "additive"))]
    there = {(p.decoding, p.value_head) for p in points}
    return [(m, h) for m in methods for h in heads if (m, h) in there]


def _name(key: Key) -> str:
    """`label` as HTML that may break after the comma only."""
    return re.sub(r"^([^,]+)", r'<span class="name">\1</span>', text(label(key)))


def label(key: Key) -> str:
    """How a decoding is named: "vm-mcts, additive"."""
    return key[0] if key[1] is None else f"{key[0]}, {key[1]}"


def largest(results: Sequence[Result]) -> dict[tuple[str, Key], Result]:
    """The result at the largest budget of every policy and decoding."""
    found: dict[tuple[str, Key], Result] = {}
    for row in results:
        key = (row.policy, (row.decoding, row.value_head))
        if key not in found or (finite(row.budget) or 0) >= (finite(found[key].budget) or 0):
            found[key] = row
    return found


def accuracies(results: Sequence[Result]) -> str:
    """A row for each decoding, a column for each policy: accuracy ± standard error."""
    best, columns = largest(results), policies(results)
    rows = []
    for key in decodings(results):
        cells = [best.get((policy, key)) for policy in columns]
        budgets = sorted({b for row in cells if row and (b := finite(row.budget)) is not None})
        budget = ", ".join(f"{b:g}" for b in budgets) or "-"
        rows.append([_name(key), budget, *(_accuracy(row) for row in cells)])
    return table(["decoding", "budget", *map(text, columns)], rows, name="accuracy")


def _accuracy(row: Result | None) -> str:
    if row is None or finite(row.accuracy) is None:
        return "-"
    return f'{number(row.accuracy)}<span class="error"> ± {number(row.stderr)}</span>'


def explained(results: Sequence[Result]) -> str:
    """What each decoding on the page does."""
    names = ordered([row.decoding for row in results], METHODS)
    items = "".join(
        f"<dt>{text(n)}</dt><dd>{text(words.DECODINGS[n])}</dd>" for n in names if n in words.DECODINGS
    )
    return f'<dl class="terms">{items}</dl>'


def problem_count(results: Sequence[Result]) -> str:
    """ "200", or "150 to 200" when not every row has as many; "" if unknown."""
    counts = sorted({int(c) for row in results if (c := finite(row.problems)) is not None})
    if not counts:
        return ""
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def costs(results: Sequence[Result]) -> str:
    """A row for each policy and decoding at its largest budget."""
    best = largest(results)
    rows = []
    for policy in policies(results):
        for key in decodings(results):
            row = best.get((policy, key))
            if row is not None:
                rows.append([text(policy), _name(key), *_cost(row)])
    header = (
        "policy", "decoding", "budget", "generated tokens", "per problem", "value-model tokens",
        "verifier seconds", "seconds",
    )  # fmt: skip
    return table(header, rows, labels=2, name="cost")


def _cost(row: Result) -> list[str]:
    tokens, problems = finite(row.generated_tokens), finite(row.problems)
    per = tokens / problems if tokens is not None and problems else None
    return [
        whole(row.budget),
        whole(tokens),
        number(per, 1),
        whole(row.value_tokens),
        seconds(row.verifier_seconds),
        seconds(row.seconds),
    ]


def job_seconds(jobs: dict[str, Number]) -> str:
    """Wall seconds of each job, the total last."""
    names = [name for name in jobs if name != "total"] + ["total"] * ("total" in jobs)
    return table(["job", "seconds"], [[text(name), seconds(jobs[name])] for name in names], name="jobs")


def settings(values: dict[str, Any], what: str = "setting") -> str:
    """Nested settings as one table of dotted keys; its class is `what` + s."""
    rows = [[text(key), any_value(value)] for key, value in _flat(values, "")]
    return table([what, "value"], rows, name=f"{what}s")


def _flat(values: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def plain(rows: Sequence[Sequence[Any]], name: str) -> str:
    """Raw cells, the first row the header: counts as counts, other numbers with three decimals."""
    body = [[text(row[0]), *(_cell(value) for value in row[1:])] for row in rows[1:]]
    return table([text(cell).replace("_", " ") for cell in rows[0]], body, name=name)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    return whole(value) if isinstance(value, int) else any_value(value)
