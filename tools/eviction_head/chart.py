"""Line and point charts as small SVG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

COLOURS = (
    "#1f5fa8",
    "#c2552d",
    "#2f8f5b",
    "#7a4fa3",
    "#8a6d1f",
    "#b03060",
    "#4a4a4a",
    "#1799a6",
    "#d48a00",
    "#5a7d1a",
    "#9c6b4e",
    "#e0559a",
)
WIDTH, HEIGHT = 760, 480
LEFT, RIGHT, TOP, BOTTOM = 74, 190, 44, 56


@dataclass
class Series:
    """Points with a name; joined by a line, or marked, or both; labels beside points."""

    name: str
    points: Sequence[tuple[float, float]]
    line: bool = True
    marks: bool = False
    labels: Sequence[str] = field(default_factory=tuple)


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round values between the two."""
    span = max(high - low, 1e-12)
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= count)
    first = math.ceil(low / step - 1e-9)
    return [step * n for n in range(first, math.floor(high / step + 1e-9) + 1)]


def draw(
    path: Path, title: str, x_name: str, y_name: str, series: Sequence[Series], log_y: bool = False
) -> None:
    """Writes a chart."""
    shape = math.log10 if log_y else float
    flat = [(x, shape(y)) for one in series for x, y in one.points]
    low_x, high_x = min(x for x, _ in flat), max(x for x, _ in flat)
    low_y, high_y = min(y for _, y in flat), max(y for _, y in flat)
    pad_x, pad_y = 0.04 * (high_x - low_x or 1), 0.07 * (high_y - low_y or 1)
    low_x, high_x, low_y, high_y = low_x - pad_x, high_x + pad_x, low_y - pad_y, high_y + pad_y

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
        return LEFT + across, HEIGHT - BOTTOM - (y - low_y) / (high_y - low_y) * (
            HEIGHT - TOP - BOTTOM
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>',
        f'<text x="{(WIDTH - RIGHT + LEFT) / 2}" y="{HEIGHT - 14}" text-anchor="middle">'
        f"{escape(x_name)}</text>",
        f'<text transform="translate(18 {(HEIGHT - BOTTOM + TOP) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_name)}</text>',
    ]
    for value in ticks(low_x, high_x):
        x, y = at(value, low_y)
        parts.append(
            f'<path d="M{x:.1f} {TOP}V{y:.1f}" stroke="#e4e4e4"/>'
            f'<text x="{x:.1f}" y="{y + 17:.1f}" text-anchor="middle">{value:g}</text>'
        )
    for value in ticks(low_y, high_y):
        x, y = at(low_x, value)
        text = f"{10 ** value:.3g}" if log_y else f"{value:g}"
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e4e4e4"/>'
            f'<text x="{x - 7:.1f}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        )
    taken: list[tuple[float, float, float, float]] = []
    for number, one in enumerate(series):
        parts += _series(one, COLOURS[number % len(COLOURS)], number, at, shape, taken)
    parts.append("</svg>")
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _series(one: Series, colour: str, number: int, at, shape, taken: list) -> list[str]:
    """The marks of a series, and its line in the legend. taken: places of labels so far."""
    places = [at(x, shape(y)) for x, y in one.points]
    parts = []
    if one.line and len(places) > 1:
        steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(
            f'<polyline points="{steps}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
        )
    for place, (x, y) in enumerate(places if one.marks or len(places) == 1 else []):
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        if place < len(one.labels):
            left, top = _free_place(x, y, 5.6 * len(one.labels[place]), taken)
            parts.append(
                f'<text x="{left:.1f}" y="{top:.1f}" font-size="10" fill="{colour}">'
                f"{escape(one.labels[place])}</text>"
            )
    y = TOP + 10 + 18 * number
    parts.append(
        f'<rect x="{WIDTH - RIGHT + 12}" y="{y - 9}" width="11" height="11" '
        f'fill="{colour}"/><text x="{WIDTH - RIGHT + 29}" y="{y + 1}">'
        f"{escape(one.name)}</text>"
    )
    return parts


def _free_place(x: float, y: float, width: float, taken: list) -> tuple[float, float]:
    """Where a label near a point covers no other: the first such of some places around it."""
    around = [(dx, dy) for dy in (-6, 14, -17, 25, -28, 36) for dx in (6, -width - 6)]
    for dx, dy in around:
        box = (x + dx, y + dy - 9, x + dx + width, y + dy + 2)
        if box[0] > LEFT and all(
            box[2] < o[0] or box[0] > o[2] or box[3] < o[1] or box[1] > o[3] for o in taken
        ):
            taken.append(box)
            return x + dx, y + dy
    return x + 6, y - 6
