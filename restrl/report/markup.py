"""HTML pieces: escaping, numbers, tables, legends. What comes from data goes through `text` or `number`."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DASH = "-"


def text(value: Any) -> str:
    """Escaped for element content and for quoted attributes; half a surrogate pair becomes "?"."""
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"), quote=True)


def finite(value: Any) -> float | None:
    """A number that can be shown, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def number(value: Any, digits: int = 3) -> str:
    """`digits` decimals; "-" for what is missing or not a number."""
    known = finite(value)
    return DASH if known is None else f"{known:.{digits}f}"


def whole(value: Any) -> str:
    """A count with thin spaces between thousands."""
    known = finite(value)
    return DASH if known is None else f"{round(known):,}".replace(",", "\u2009")


def seconds(value: Any) -> str:
    """Seconds with a precision that fits their size."""
    known = finite(value)
    if known is None:
        return DASH
    return f"{known:.2f}" if abs(known) < 10 else whole(known) if known >= 1000 else f"{known:.1f}"


def any_value(value: Any) -> str:
    """A cell of settings: numbers as they are written, everything else as text."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return text(f"{value:.4g}") if math.isfinite(value) else DASH
    if isinstance(value, list | tuple):
        return ", ".join(any_value(item) for item in value)
    return text(value)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], labels: int = 1, name: str = "") -> str:
    """A table of finished cells, the first `labels` of each row naming it; wide ones scroll sideways."""
    head = "".join(f'<th scope="col"{_class(i, labels)}>{cell}</th>' for i, cell in enumerate(header))
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{cell}</th>' if i < labels else f"<td>{cell}</td>" for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    mark = f' class="{name}"' if name else ""
    head = f"<thead><tr>{head}</tr></thead>"
    return f'<div class="scroll"><table{mark}>\n{head}\n<tbody>\n{body}\n</tbody></table></div>'


def _class(column: int, labels: int) -> str:
    return ' class="label"' if column < labels else ""


def section(anchor: str, title: str, *parts: str) -> str:
    return "\n".join([f'<section id="{anchor}"><h2>{title}</h2>', *(p for p in parts if p), "</section>"])


def paragraph(*sentences: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f"<p{mark}>{' '.join(sentences)}</p>"


def folded(summary: str, content: str, *, is_open: bool = False) -> str:
    return f"<details{' open' * is_open}><summary>{summary}</summary>\n{content}\n</details>"


@dataclass(frozen=True)
class Style:
    """How a series looks: `color` a variable of the page (s0 ...), `marker` in SHAPES, `dash` in points."""

    color: str
    marker: str = ""
    dash: tuple[float, float] | None = None
    hollow: bool = False


SHAPES = {
    "o": '<circle cx="17" cy="6" r="3.6"/>',
    "s": '<rect x="13.6" y="2.6" width="6.8" height="6.8"/>',
    "^": '<path d="M17 1.6 21 9.4H13z"/>',
    "v": '<path d="M17 10.4 21 2.6H13z"/>',
    "D": '<path d="M17 1.4 21.6 6 17 10.6 12.4 6z"/>',
    "P": '<path d="M15.5 2h3v2.5H21v3h-2.5V10h-3V7.5H13v-3h2.5z"/>',
    "X": '<path d="M13.5 2.5 20.5 9.5M20.5 2.5 13.5 9.5" stroke-width="2.6"/>',
}


def legend(items: Sequence[tuple[str, Style]], *, bars: bool = False) -> str:
    """Names with a sample of their line and marker, or of their bars."""
    shown = "".join(f"<li>{_bar(s) if bars else _swatch(s)}{text(n)}</li>" for n, s in items)
    return f'<ul class="legend">{shown}</ul>'


def _swatch(style: Style) -> str:
    color = f"var(--{style.color})"
    dash = f' stroke-dasharray="{style.dash[0]} {style.dash[1]}"' if style.dash else ""
    fill = "var(--page)" if style.hollow else color
    shape = f'<g fill="{fill}" stroke="{color}" stroke-width="1.4">{SHAPES.get(style.marker, "")}</g>'
    line = f'<path d="M1 6H33" stroke="{color}" stroke-width="2"{dash}/>'
    return f'<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true">{line}{shape}</svg>'


def _bar(style: Style) -> str:
    box = f'<rect x="20" width="12" height="12" fill="var(--{style.color})"/>'
    return f'<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true">{box}</svg>'
