"""The page: sections in the order of reading, each "" when there is nothing to show in it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from restrl.report import plots, tables, words
from restrl.report.contents import Contents, Point
from restrl.report.markup import Style, finite, folded, legend, paragraph, section, text
from restrl.report.trees import tree_view

ARMS = {
    "base": Style("s0"),
    "grpo": Style("s1"),
    "filter-grpo": Style("s3", dash=(5, 2)),
    "rest-grpo": Style("s2"),
}
DECODINGS = {
    "vote": ("s5", "v"),
    "likelihood": ("s4", "D"),
    "orm": ("s3", "s"),
    "prm": ("s6", "P"),
    "orm-mcts": ("s1", "^"),
    "vm-mcts": ("s2", "o"),
    "oracle": ("s0", "X"),
}
REFERENCES = {"greedy": Style("ink", dash=(6, 3)), "sample": Style("ink", dash=(1.5, 2.5))}
SPARE = ("s1", "s2", "s3", "s4", "s5", "s6", "s0")


def render(contents: Contents) -> str:
    """The whole page as HTML."""
    sections = [
        _accuracy(contents), _training(contents), _spread(contents), _budgets(contents), _tables(contents),
        _trees(contents), _cost(contents), _reproduce(contents),
    ]  # fmt: skip
    here = files("restrl.report")
    style, script = (here.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    notes = "".join(paragraph(text(line), kind="missing") for line in contents.missing)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{text(contents.title)}</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<header><h1>{text(contents.title)}</h1>"
        f"{''.join(paragraph(text(line)) for line in contents.summary)}{notes}</header>\n<main>\n"
        + "\n".join(part for part in sections if part)
        + f"\n</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _accuracy(contents: Contents) -> str:
    if not contents.results:
        return ""
    count = tables.problem_count(contents.results)
    return section(
        "accuracy",
        "Accuracy",
        paragraph(words.ACCURACY.format(count=count)),
        tables.accuracies(contents.results),
        paragraph(words.STDERR, kind="note"),
        folded("What the decodings do", tables.explained(contents.results)),
    )


def _training(contents: Contents) -> str:
    """Reward and dead groups over steps; for a run, the value model's loss too."""
    styles = arm_styles(list(contents.training))
    shown = [
        plots.steps("plot-reward", "mean reward", contents.training, "reward", styles)
        or plots.steps("plot-policy-loss", "loss", contents.training, "loss", styles),  # SFT has no rewards
        plots.steps(
            "plot-dead", "share of groups without spread", contents.training, "frac_reward_zero_std", styles
        ),
        plots.steps(
            "plot-loss", "value model's loss", {"value": contents.value_loss}, "loss", {"value": Style("s4")}
        ),
    ]
    if not any(shown):
        return ""
    widths = {plots.window(len(rows)) for rows in [*contents.training.values(), contents.value_loss] if rows}
    width = " or ".join(str(w) for w in sorted(widths)) + (" steps" if max(widths) > 1 else " step")
    return section(
        "training",
        "Rewards over training",
        paragraph(words.TRAINING.format(width=width)),
        legend([(arm, styles[arm]) for arm in contents.training]) if contents.training else "",
        _panels(shown),
    )


def _spread(contents: Contents) -> str:
    styles = arm_styles(list(contents.reward_std))
    plot = plots.histograms("plot-spread", contents.reward_std, styles)
    means = [
        f"{text(arm)} {tables.number(spread.mean)}"
        for arm, spread in contents.reward_std.items()
        if finite(spread.mean) is not None
    ]
    if not plot and not means:
        return ""
    return section(
        "spread",
        "Spread of rewards within groups",
        paragraph(words.SPREAD.format(what=text(contents.spread_of), means=", ".join(means) or "-")),
        legend([(arm, styles[arm]) for arm in contents.reward_std], bars=True) if plot else "",
        _panels([plot]),
    )


def _budgets(contents: Contents) -> str:
    points = [p for p in contents.curves if finite(p.accuracy) is not None and (finite(p.budget) or 0) > 0]
    points = [p for p in points if p.decoding not in REFERENCES]
    if not points:
        return ""
    results = tables.largest(contents.results)
    names = tables.policies(points)
    references = {
        policy: [
            (style, row)
            for name, style in REFERENCES.items()
            if (row := results.get((policy, (name, None)))) and finite(row.accuracy) is not None
        ]
        for policy in names
    }
    limits = _limits([*points, *(row for rows in references.values() for _, row in rows)])
    panels = [
        plots.budgets(f"plot-budget-{i}", policy, _series(points, policy), references[policy], limits)
        for i, policy in enumerate(names)
    ]
    keys = [(tables.label(key), decoding_style(key)) for key in tables.decodings(points)]
    there = {style for rows in references.values() for style, _ in rows}
    keys += [(f"{name} (level)", style) for name, style in REFERENCES.items() if style in there]
    return section(
        "budget",
        "Accuracy over budget",
        paragraph(words.BUDGET),
        legend(keys),
        _panels(panels),
    )


def _series(points: Sequence[Point], policy: str) -> list[tuple[str, Style, list[Point]]]:
    own = [p for p in points if p.policy == policy]
    return [
        (tables.label(key), decoding_style(key), [p for p in own if (p.decoding, p.value_head) == key])
        for key in tables.decodings(own)
    ]


def _limits(points: Sequence[Point]) -> tuple[float, float]:
    """Of the accuracy axis: all points with their bars and a margin, hardly past [0, 1]."""
    known = [(y, finite(p.stderr) or 0.0) for p in points if (y := finite(p.accuracy)) is not None]
    low, high = min(y - e for y, e in known), max(y + e for y, e in known)
    margin = max(0.02, 0.06 * (high - low))
    return max(-0.02, low - margin), min(1.02, high + margin)


def _tables(contents: Contents) -> str:
    return "\n".join(
        section(f"table-{i}", text(title), paragraph(text(what)), tables.plain(rows, f"table-{i}"))
        for i, (title, (what, rows)) in enumerate(contents.tables.items())
    )


def _trees(contents: Contents) -> str:
    if not contents.trees:
        return ""
    views = [
        folded(f"<strong>{text(name)}</strong>", tree_view(tree), is_open=i == 0)
        for i, (name, tree) in enumerate(contents.trees.items())
    ]
    return section("trees", "A search tree to look into", *views)


def _cost(contents: Contents) -> str:
    parts = []
    if contents.results:
        parts.append(paragraph(words.COST))
        parts.append(tables.costs(contents.results))
    if contents.seconds:
        parts.append(folded("Wall time of each job", tables.job_seconds(contents.seconds)))
    return section("cost", "Cost", *parts) if parts else ""


def _reproduce(contents: Contents) -> str:
    parts = [f"<pre><code>{text(contents.command)}</code></pre>"] if contents.command else []
    if contents.recipe:
        parts.append(folded("config.toml", f"<pre><code>{text(contents.recipe)}</code></pre>"))
    if contents.settings:
        parts.append(folded("Settings", tables.settings(contents.settings)))
    if contents.versions:
        parts.append(folded("Versions", tables.settings(contents.versions, "version")))
    return section("reproduce", "Settings, versions, and the command", *parts) if parts else ""


def arm_styles(arms: Sequence[str]) -> dict[str, Style]:
    """The style of each arm; arms without one of their own take the colours in turn."""
    return {arm: ARMS.get(arm, Style(SPARE[i % len(SPARE)])) for i, arm in enumerate(arms)}


def decoding_style(key: tables.Key) -> Style:
    """Colour and marker tell the decoding, a dashed line with hollow markers the scalar head."""
    color, marker = DECODINGS.get(key[0], ("ink", "o"))
    scalar = key[1] == "scalar"
    return Style(color, marker, dash=(4, 2) if scalar else None, hollow=scalar)


def _panels(shown: Sequence[str]) -> str:
    return '<div class="panels">' + "\n".join(f"<figure>{plot}</figure>" for plot in shown if plot) + "</div>"
