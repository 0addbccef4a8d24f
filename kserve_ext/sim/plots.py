"""Plots as SVG, written by hand: lines over two axes, either of which may be logarithmic.

No library is locked that draws, and these few lines need none. The same data is the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from typing import Final

WIDTH: Final = 720
HEIGHT: Final = 420
LEFT, RIGHT, TOP, BOTTOM = 80, 190, 40, 60
COLOURS: Final = ("#c0392b", "#2471a3", "#1e8449", "#b9770e", "#6c3483", "#117a65", "#566573", "#a04000")


@dataclass(frozen=True)
class Line:
    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Axis:
    label: str
    log: bool = False


class _Scale:
    """From values to pixels."""

    def __init__(self, values: Sequence[float], axis: Axis, low: float, high: float) -> None:
        self.log, self.low, self.high = axis.log, low, high
        shown = [v for v in values if v > 0] if axis.log else list(values)
        least, most = (min(shown), max(shown)) if shown else (1.0, 10.0)
        if axis.log:
            self.start, self.end = floor(log10(least)), max(floor(log10(least)) + 1, ceil(log10(most)))
            self.ticks = [10.0**k for k in range(self.start, self.end + 1)]
        else:
            step = 10 ** floor(log10(max(most, 1e-9))) / 2
            self.start, self.end = 0, max(step, step * ceil(most / step))
            self.ticks = [step * k for k in range(round(self.end / step) + 1)]

    def at(self, value: float) -> float | None:
        """None: it can't be shown."""
        if self.log and value <= 0:
            return None
        position = log10(value) if self.log else value
        return self.low + (position - self.start) / (self.end - self.start) * (self.high - self.low)


def plot(title: str, x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    across = _Scale([p[0] for line in lines for p in line.points], x, LEFT, WIDTH - RIGHT)
    up = _Scale([p[1] for line in lines for p in line.points], y, HEIGHT - BOTTOM, TOP)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
    ]
    for tick in across.ticks:
        at = across.at(tick)
        out.append(f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}" stroke="#e5e5e5"/>')
        out.append(_text(at or 0.0, HEIGHT - BOTTOM + 18, f"{tick:g}", "middle"))
    for tick in up.ticks:
        at = up.at(tick)
        out.append(f'<line x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}" stroke="#e5e5e5"/>')
        out.append(_text(LEFT - 8, (at or 0.0) + 4, f"{tick:g}", "end"))
    out.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, x.label, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    out.append(
        f'<text x="18" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 18 {middle:.1f})">'
        f"{escape(y.label)}</text>"
    )
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        places = [(across.at(a), up.at(b)) for a, b in line.points]
        shown = [(a, b) for a, b in places if a is not None and b is not None]
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in shown)
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if len(shown) <= 30:
            out.extend(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" fill="{colour}"/>' for a, b in shown)
        row = TOP + 16 * number + 8
        out.append(
            f'<line x1="{WIDTH - RIGHT + 12}" y1="{row}" x2="{WIDTH - RIGHT + 32}" y2="{row}" stroke="{colour}" '
            'stroke-width="2"/>'
        )
        out.append(_text(WIDTH - RIGHT + 38, row + 4, line.name, "start"))
    return "\n".join([*out, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
