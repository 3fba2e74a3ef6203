"""Line charts as inline SVG that follow the page's colours and width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from weitune.messages import say

WIDTH, HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 34
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
    dashed: bool = False


def chart(title: str, lines: Sequence[Line], *, x_label: str | None = None) -> str:
    """Return a figure with ``lines``, or nothing if none has a point; ``x_label`` is ``step`` by default."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    place = _Place(min(xs), max(xs), min(ys), max(ys))
    x_ticks, y_ticks = ticks(place.left, place.right), ticks(place.low, place.high)
    drawn = [_grid(place, x_ticks, y_ticks, x_label or say("report.chart.step"))]
    drawn += [_line(place, line) for line in sorted(lines, key=lambda line: not line.faint)]
    spans = [f'<span class="c{line.colour % 8}">{escape(line.name)}</span>' for line in lines if not line.faint]
    legend = "".join(spans) if len(spans) > 1 else ""  # one line alone is what the title says
    return (
        f'<figure><figcaption>{escape(title)}<small class="legend">{legend}</small></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg></figure>\n'
    )


def ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers from ``low`` to ``high``, at least one."""
    if not high > low:
        return [low]
    rough = (high - low) / _TICKS
    scale = 10 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)] or [low]


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
    """Where values lie in the picture."""

    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        span = self.right - self.left or 1
        return _LEFT + (value - self.left) / span * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        span = self.high - self.low or 1
        return HEIGHT - _BOTTOM - (value - self.low) / span * (HEIGHT - _TOP - _BOTTOM)


def _grid(place: _Place, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str) -> str:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for tick in y_ticks:
        y = place.y(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    parts += [
        f'<text class="tick" x="{place.x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{number(tick)}</text>'
        for tick in x_ticks
    ]
    parts.append(f'<text class="tick" x="{right}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_label)}</text>')
    return "".join(parts)


def _line(place: _Place, line: Line) -> str:
    points = thinned(line.points)
    path = "L".join(f"{place.x(x):.1f} {place.y(y):.1f}" for x, y in points)
    kind = f"line c{line.colour % 8}" + (" faint" if line.faint else "") + (" dashed" if line.dashed else "")
    marks = ""
    if len(points) <= _MARKED_POINTS and not line.faint:
        marks = "".join(
            f'<circle class="dot c{line.colour % 8}" cx="{place.x(x):.1f}" cy="{place.y(y):.1f}" r="2.5">'
            f"<title>{escape(line.name)} {number(x)}: {number(y)}</title></circle>"
            for x, y in points
        )
    return f'<path class="{kind}" d="M{path}"/>{marks}'


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
