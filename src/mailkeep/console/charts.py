"""Charts as shapes: stacked areas over time, in the units of their own small coordinate system. Pure.

The page draws them as inline SVG whose colours come from the style sheet, so that no script and no inline style is needed.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

WIDTH: Final = 600
HEIGHT: Final = 120
STEPS: Final = (1, 2, 2.5, 5, 10)


class Series(msgspec.Struct, frozen=True):
    """One area: its name, the name of its colour, its outline, and what it is now and was at most."""

    name: str
    colour: str
    path: str
    now: float
    most: float


class Chart(msgspec.Struct, frozen=True):
    """A chart that fills WIDTH x HEIGHT; `top` is the value at its upper edge."""

    title: str
    unit: str
    top: float
    series: tuple[Series, ...]


def stacked(
    title: str, unit: str, columns: Sequence[tuple[str, str, Sequence[float]]], *, slots: int
) -> Chart:
    """Return a chart of `columns` (name, colour, values), each upon the one before; newest values at the right edge.

    There is room for `slots` values; where there are fewer, the left of the chart is empty.
    """
    length = max((len(values) for _, _, values in columns), default=0)
    floor = [0.0] * length
    layers = []
    for name, colour, values in columns:
        ceiling = [low + value for low, value in zip(floor, values, strict=True)]
        layers.append((name, colour, values, floor, ceiling))
        floor = ceiling
    top = _round_up(max(floor, default=0.0))
    return Chart(
        title,
        unit,
        top,
        tuple(
            Series(
                name,
                colour,
                _outline(low, high, top, slots),
                values[-1] if values else 0.0,
                max(values, default=0.0),
            )
            for name, colour, values, low, high in layers
        ),
    )


def _outline(low: Sequence[float], high: Sequence[float], top: float, slots: int) -> str:
    if not high or not any(high):
        return ""
    step = WIDTH / slots
    left = WIDTH - step * len(high)

    def edge(values: Sequence[float]) -> list[tuple[float, float]]:
        points = []
        for index, value in enumerate(values):
            y = HEIGHT * (1 - value / top)
            points += [(left + step * index, y), (left + step * (index + 1), y)]
        return points

    corners = edge(high) + edge(low)[::-1]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + "Z"


def _round_up(value: float) -> float:
    """Return the next round number, so that the scale does not jump at each look."""
    size = 1.0
    while size * 10 < value:
        size *= 10
    return next(size * step for step in STEPS if size * step >= value)
