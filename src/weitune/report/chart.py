"""Line charts as inline SVG that follow the page's colours.

The curves are drawn in a square of 1000 units that is stretched to the place there is; ticks, dots and line widths are
not stretched with it, so text has the same size on a phone and on a wide screen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from weitune.messages import joined, say
from weitune.report.markup import text, versions

_SIDE = 1000
_MOST_POINTS = 500
_MARKED_POINTS = 40
_TICKS = 5

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """A named line; ``faint`` ones stand behind the others and take no part in the legend."""

    name: str
    points: Points
    colour: int = 0
    """Which of the page's eight line colours."""
    faint: bool = False
    dash: int = 0
    """Which of the page's four kinds of dashes; 0 is a whole line."""

    @property
    def kind(self) -> str:
        return f"c{self.colour % 8} d{self.dash % 4}"


def chart(
    title: str, lines: Sequence[Line], *, x_label: str | None = None, note: str = "", legend: bool = False
) -> str:
    """Return a figure with ``lines``, or nothing if none has a point.

    ``x_label`` is ``step`` by default, ``note`` a sentence below the title. A ``legend`` also names a line alone.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    place = _Place.around([point for line in lines for point in line.points])
    curves = "".join(_curve(place, line) for line in sorted(lines, key=lambda line: not line.faint))
    dots = "".join(_dots(place, line) for line in lines if not line.faint)
    named = [line for line in lines if not line.faint]
    keys = "".join(f"<span>{_sample(line)}{text(line.name)}</span>" for line in named)
    keys = f'<div class="legend">{keys}</div>' if legend or len(named) > 1 else ""
    ends = [[line.name, f"{number(line.points[0][1])} → {number(line.points[-1][1])}"] for line in named]
    x_label = x_label or say("report.chart.step")
    heard = joined("; ", [joined(" ", each) for each in ends])
    return (
        f"<figure><figcaption>{text(title)}{keys}</figcaption>{f'<p>{text(note)}</p>' if note else ''}"
        f'<p class="unseen">{text(heard)}</p><div class="plot"><svg aria-hidden="true">'
        f"{_axes(place, x_label)}"
        f'<svg viewBox="0 0 {_SIDE} {_SIDE}" preserveAspectRatio="none">{curves}</svg>{dots}</svg></div></figure>\n'
    )


def _sample(line: Line) -> str:
    return f'<svg class="line {line.kind}" aria-hidden="true"><path d="M0 2h30"/></svg>'


def ticks(low: float, high: float, *, whole: bool = False, above: bool = True) -> list[float]:
    """Return about five round numbers, the first at ``low`` or below it.

    The last one is at ``high`` or ``above`` it, or not above it. Only ``whole`` numbers if asked.
    """
    if not high > low:
        return [low]
    step = _distance(low, high, whole=whole)
    last = math.ceil(high / step - 1e-9) if above else math.floor(high / step + 1e-9)
    return [k * step for k in range(math.floor(low / step + 1e-9), last + 1)]


def _distance(low: float, high: float, *, whole: bool = False) -> float:
    """Return the distance of ticks from ``low`` to ``high``."""
    rough = (high - low) / _TICKS
    scale = 10.0 ** math.floor(math.log10(rough))
    step: float = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= rough * 0.999)
    return max(1.0, math.ceil(step)) if whole else step


def number(value: float) -> str:
    """Return a tick's number in few characters."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000 or abs(value) < 0.001:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where values lie in the picture: from ``left`` to ``right`` and from ``low`` to ``high``."""

    left: float
    right: float
    low: float
    high: float
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    @classmethod
    def around(cls, points: Points) -> _Place:
        """Return a place for ``points`` whose edges are ticks: below and at the left, and above.

        Ticks below are whole numbers if all values there are, as steps are.
        """
        xs, ys = [x for x, _ in points], [y for _, y in points]
        whole = all(float(x).is_integer() for x in xs)
        left, right, low, high = min(xs), max(xs), min(ys), max(ys)
        if left > 0 and (left == right or left <= (right - left) / _TICKS):
            left = 0.0  # curves that begin at step 1 stand over an axis that begins at 0
        if high == low:
            room = abs(high) / 10 or 1.0
            low, high = low - room, high + room
        x_ticks, y_ticks = ticks(left, right, whole=whole, above=False), ticks(low, high)
        return cls(x_ticks[0], right, y_ticks[0], y_ticks[-1], x_ticks, y_ticks)

    def x(self, value: float, side: float = 100) -> float:
        """Return how far from the left a value lies, in parts of ``side``."""
        return side * (value - self.left) / (self.right - self.left) if self.right > self.left else side / 2

    def y(self, value: float, side: float = 100) -> float:
        """Return how far from the top a value lies, in parts of ``side``."""
        return side * (self.high - value) / (self.high - self.low)


def _axes(place: _Place, x_label: str) -> str:
    parts = []
    for tick in place.y_ticks:
        y = f"{place.y(tick):.2f}%"
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="0" y="{y}" dx="-8" dy="4" text-anchor="end">{number(tick)}</text>')
    for tick in place.x_ticks:
        x = f"{place.x(tick):.2f}%"
        parts.append(f'<text class="tick" x="{x}" y="100%" dy="18" text-anchor="middle">{number(tick)}</text>')
    parts.append('<line class="axis" x1="0" x2="100%" y1="100%" y2="100%"/><line class="axis" y2="100%"/>')
    for language, words in versions(x_label).items():
        kind, named = (f"tick {language}", f' lang="{language}"') if language else ("tick", "")
        parts.append(f'<text class="{kind}"{named} x="100%" y="100%" dy="35" text-anchor="end">{escape(words)}</text>')
    return "".join(parts)


def _curve(place: _Place, line: Line) -> str:
    points = (f"{place.x(x, _SIDE):.1f} {place.y(y, _SIDE):.1f}" for x, y in thinned(line.points))
    faint = " faint" if line.faint else ""
    return f'<path class="line {line.kind}{faint}" d="M{"L".join(points)}"/>'


def _dots(place: _Place, line: Line) -> str:
    if len(line.points) > _MARKED_POINTS:
        return ""
    return "".join(
        f'<circle class="dot c{line.colour % 8}" cx="{place.x(x):.2f}%" cy="{place.y(y):.2f}%" r="2.5">'
        f"<title>{number(x)}: {number(y)}</title></circle>"
        for x, y in line.points
    )


def thinned(points: Points) -> Points:
    """Return at most ``_MOST_POINTS`` points: of each stretch the lowest and the highest, in order."""
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept
