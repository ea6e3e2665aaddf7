"""The plots, as SVG that belongs to the page: its text colour, its series colours, no file of its own.

matplotlib draws with stand-in colours; they become the page's CSS variables, which have a light and a dark
value each.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

from restrl.report.contents import Point, Spread, Steps
from restrl.report.markup import Style, finite

VARIABLES = ("ink", "faint", *(f"s{i}" for i in range(8)))
_STAND_IN = {name: f"#0b1c{i + 16:02x}" for i, name in enumerate(VARIABLES)}
_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "restrl",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.parse_math": False,
    "text.color": _STAND_IN["ink"],
    "axes.labelcolor": _STAND_IN["ink"],
    "axes.edgecolor": _STAND_IN["faint"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": _STAND_IN["faint"],
    "ytick.color": _STAND_IN["faint"],
    "xtick.labelcolor": _STAND_IN["ink"],
    "ytick.labelcolor": _STAND_IN["ink"],
    "grid.color": _STAND_IN["faint"],
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
}
SIZE = (4.9, 3.3)  # inches, a panel
Series = Sequence[tuple[str, Style, Sequence[Point]]]


def steps(name: str, label: str, arms: Mapping[str, Steps], key: str, styles: Mapping[str, Style]) -> str:
    """Metric `key` over optimiser steps: faint points, a smoothed line for each arm. "" without numbers."""
    drawn = {arm: column(rows, key) for arm, rows in arms.items()}
    if not any(np.isfinite(ys).any() for _, ys in drawn.values()):
        return ""
    with matplotlib.rc_context(_RC):
        figure, axes = _panel("optimiser step", label)
        for arm, (xs, ys) in drawn.items():
            color = _STAND_IN[styles[arm].color]
            axes.plot(xs, ys, ".", color=color, alpha=0.4, markersize=5, markeredgewidth=0)
            axes.plot(xs, smoothed(ys), color=color, linewidth=1.9, linestyle=_line(styles[arm]))
        axes.set_xlim(0, 1.02 * max(2.0, *(xs.max(initial=0.0) for xs, _ in drawn.values())))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return _svg(figure, name, f"{label} over optimiser steps: {', '.join(drawn)}")


def column(rows: Steps, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric, `[S]` each; NaN where unknown. Rows without a step are left out."""
    known = [(finite(row.get("step")), finite(row.get(key))) for row in rows]
    pairs = [(x, math.nan if y is None else y) for x, y in known if x is not None]
    return np.array([x for x, _ in pairs]), np.array([y for _, y in pairs])


def window(count: int) -> int:
    """Steps that a smoothed value is the mean of: about a tenth of them, odd, 1 to 21."""
    return min(21, count // 10 | 1)


def smoothed(ys: np.ndarray) -> np.ndarray:
    """Centred moving mean over `window` steps; at the ends over those that are there, NaN left out."""
    half = window(len(ys)) // 2
    out = np.full(len(ys), math.nan)
    for i in range(len(ys)):
        near = ys[max(0, i - half) : i + half + 1]
        near = near[np.isfinite(near)]
        if len(near):
            out[i] = near.mean()
    return out


def histograms(name: str, spreads: Mapping[str, Spread], styles: Mapping[str, Style]) -> str:
    """Shares of groups by the std of their rewards, the arms' bars side by side; a line at each mean."""
    known = {arm: bars for arm, spread in spreads.items() if (bars := _bars(spread)) is not None}
    if not known:
        return ""
    with matplotlib.rc_context(_RC):
        figure, axes = _panel("standard deviation of the rewards within a group", "share of groups")
        for i, (arm, (edges, shares)) in enumerate(known.items()):
            width = np.diff(edges) * 0.86
            left = edges[:-1] + np.diff(edges) * 0.07 + width * i / len(known)
            color = _STAND_IN[styles[arm].color]
            axes.bar(left, shares, width / len(known), align="edge", color=color, linewidth=0)
            mean = finite(spreads[arm].mean)
            if mean is not None:
                axes.axvline(mean, color=color, linestyle=(0, (4, 2)), linewidth=1.3)
        return _svg(figure, name, f"histograms of reward std: {', '.join(known)}")


def _bars(spread: Spread) -> tuple[np.ndarray, np.ndarray] | None:
    """Edges `[n + 1]` and shares `[n]`; None for a histogram that is empty or does not fit together."""
    if spread.histogram is None:
        return None
    edges, counts = np.array(spread.histogram.edges), np.array(spread.histogram.counts)
    if len(edges) != len(counts) + 1 or not np.isfinite(edges).all() or not (np.diff(edges) > 0).all():
        return None
    counts = np.where(np.isfinite(counts), counts, 0.0)
    return (edges, counts / counts.sum()) if counts.sum() > 0 else None


def budgets(
    name: str,
    title: str,
    series: Series,
    references: Sequence[tuple[Style, Point]],
    limits: tuple[float, float],
) -> str:
    """Accuracy over budget for one policy, standard errors as bars; the references are horizontal lines."""
    with matplotlib.rc_context(_RC):
        figure, axes = _panel("budget (completions per problem)", "accuracy")
        axes.set_title(title)
        for style, point in references:
            axes.axhline(
                finite(point.accuracy) or 0.0,
                color=_STAND_IN[style.color],
                linestyle=_line(style),
                linewidth=1.3,
            )
        at = sorted({x for _, _, points in series for p in points if (x := finite(p.budget)) and x > 0})
        for i, (_, style, points) in enumerate(series):
            _curve(axes, style, points, shift=2 ** (0.05 * (i - (len(series) - 1) / 2)))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(_apart(at)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        if at:
            axes.set_xlim(at[0] / 1.3, at[-1] * 1.3)
        axes.set_ylim(*limits)
        return _svg(
            figure, name, f"accuracy over budget, {title}: {', '.join(label for label, _, _ in series)}"
        )


def _curve(axes: Axes, style: Style, points: Sequence[Point], shift: float) -> None:
    """One decoding; moved aside by the factor `shift`, so that error bars do not hide each other."""
    known = [
        (x, y, finite(p.stderr))
        for p in points
        if (x := finite(p.budget)) and x > 0 and (y := finite(p.accuracy)) is not None
    ]
    known.sort()
    color = _STAND_IN[style.color]
    axes.errorbar(
        [x * shift for x, _, _ in known], [y for _, y, _ in known], [max(0.0, e or 0.0) for _, _, e in known],
        color=color, marker=style.marker, markersize=4.5, linewidth=1.5, elinewidth=0.9,
        linestyle=_line(style), markerfacecolor="none" if style.hollow else color,
    )  # fmt: skip


def _apart(ticks: Sequence[float]) -> list[float]:
    """Ticks from the right, those left out whose number would touch the next one's."""
    kept: list[float] = []
    for tick in reversed(ticks):
        if not kept or math.log2(kept[-1] / tick) > 0.45:
            kept.append(tick)
    return kept[::-1]


def _panel(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    return figure, axes


def _line(style: Style) -> Any:
    return (0, style.dash) if style.dash else "-"


def _svg(figure: Figure, name: str, description: str) -> str:
    """The figure as inline SVG: ids of its own, colours of the page, no namespaces, no metadata."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href=", "href=").replace("*{stroke-linejoin", f"#{name} *{{stroke-linejoin")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for variable, stand_in in _STAND_IN.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    opening = f'<svg id="{name}" class="plot" role="img" viewBox='
    svg = re.sub(r"<svg [^>]*?viewBox=", opening, svg, count=1)
    return svg.replace(">", f"><title>{_plain(description)}</title>", 1).strip()


def _plain(description: str) -> str:
    return description.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
