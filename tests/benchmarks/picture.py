"""Curves of growth as SVG: how much of something there is, and what a call then costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 260, 40, 50
COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8a4fbe", "#c77d0a", "#444444", "#00838f", "#9e7700")
RATIO_MAX_LEAST = 2.0


def draw(title: str, counts: str, curves: Mapping[str, Mapping[int, float]], limit: float) -> str:
    """Return the picture: for each call ratios by count, and a line at the limit."""
    xs = sorted({count for curve in curves.values() for count in curve})
    highest = max(RATIO_MAX_LEAST, *(max(curve.values()) for curve in curves.values())) * 1.05
    low, high = math.log10(xs[0]), math.log10(xs[-1])

    def x(count: int) -> float:
        return LEFT + (math.log10(count) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(ratio: float) -> float:
        return HEIGHT - BOTTOM - ratio / highest * (HEIGHT - TOP - BOTTOM)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">',
        '<g font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
        _centred((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, escape(counts)),
        *(_centred(x(count), HEIGHT - 30, f"{count:,}") for count in xs),
    ]
    for half in range(int(highest * 2) + 1):
        ratio = half / 2
        lines.append(_line(LEFT, y(ratio), WIDTH - RIGHT, y(ratio), "#dddddd"))
        lines.append(
            f'<text x="{LEFT - 8}" y="{y(ratio) + 4:.0f}" text-anchor="end">{ratio}</text>'
        )
    lines.append(_line(LEFT, y(limit), WIDTH - RIGHT, y(limit), "#d1495b", dashed=True))
    for place, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[place % len(COLOURS)]
        points = " ".join(f"{x(count):.1f},{y(curve[count]):.1f}" for count in sorted(curve))
        lines.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        height = TOP + 18 * place
        lines.append(_line(WIDTH - RIGHT + 16, height, WIDTH - RIGHT + 36, height, colour))
        lines.append(f'<text x="{WIDTH - RIGHT + 42}" y="{height + 4}">{escape(name)}</text>')
    return "\n".join([*lines, "</g></svg>", ""])


def _centred(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="middle">{text}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dashed: bool = False) -> str:
    style = ' stroke-dasharray="6 4"' if dashed else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        f' stroke="{colour}" stroke-width="1.5"{style}/>'
    )
