"""Draws a curve with braille characters, each of which is a grid of 2 x 4 dots."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

# The bit of each dot in the characters from U+2800 on, by [row][column].
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def draw_curve(points: Sequence[tuple[float, float]], width: int, height: int) -> list[str]:
    """Draws the curve through `points` as lines of text, with the range of y at the left and that of x below.

    Args:
        points: (x, y), with x ascending.
        width, height: size of the whole drawing in characters; at least 16 x 3.
    """
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    labels = [f"{value:.3g}" for value in (high, low)]
    margin = max(map(len, labels)) + 1
    columns, rows = width - margin - 1, height - 1
    across, down = 2 * columns, 4 * rows
    cells = [[0] * columns for _ in range(rows)]
    for column in range(across):
        x = xs[0] + (xs[-1] - xs[0]) * column / (across - 1)
        y = _interpolate(points, x)
        row = round((high - y) / (high - low) * (down - 1)) if high > low else down // 2
        cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
    left = [labels[0], *[""] * (rows - 2), labels[1]]
    first, last = f"{xs[0]:g}", f"{xs[-1]:g}"
    return [
        *(
            f"{label:>{margin - 1}} ┤{''.join(chr(0x2800 + bits) for bits in line)}"
            for label, line in zip(left, cells, strict=True)
        ),
        " " * (margin + 1) + first + last.rjust(columns - len(first)),
    ]


def _interpolate(points: Sequence[tuple[float, float]], x: float) -> float:
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]
