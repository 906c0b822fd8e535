"""Drawing with Matplotlib, without a display and without global state; out comes inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Canvas

# Okabe and Ito, in funnel order. A second channel always goes with the colour.
_OBJECTIVES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 3)))

INK = "#1f2328"
MUTED = "#59636e"
FAINT = "#d1d9e0"
GOOD = "#0072B2"
BAD = "#D55E00"
WIDTH = 9.2  # inches; what the page is wide

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, sharp, found by the browser's search
    "svg.hashsalt": "csmf",  # ids, and so the bytes, depend on the data alone
    "text.parse_math": False,  # names of features are data, `$` is no mathematics
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial", "sans-serif"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e7ebef",
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "figure.facecolor": "white",
    "path.simplify": True,
}
_LEGEND_WIDTH, _LEGEND_HANDLE = 116, 9  # characters: of a row, of what stands before a label
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


def objective_colour(index: int) -> str:
    """Of the objective at a place of the funnel."""
    return _OBJECTIVES[index % len(_OBJECTIVES)]


def objective_marker(index: int) -> str:
    """Matplotlib's letter for it."""
    return _MARKERS[index % len(_MARKERS)]


def objective_dash(index: int) -> Any:
    """Line style of the objective."""
    return _DASHES[index % len(_DASHES)]


def readable_on(colour: tuple[float, ...]) -> str:
    """Ink or white, whichever has more contrast with a colour (WCAG's relative luminance)."""
    ink = _luminance(to_rgb(INK))
    under = _luminance(colour)
    return INK if (under + 0.05) / (ink + 0.05) >= 1.05 / (under + 0.05) else "white"


def draw(name: str, height: float, paint: Callable[[Canvas], None]) -> str:
    """Paints a figure.

    Args:
      name: unique on the page; it goes before the ids inside.
      height: inches.
      paint: fills the canvas.

    Returns:
      An `<svg>` element without size of its own, references or declarations.
    """
    with mpl.rc_context(_STYLE):
        canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
        paint(canvas)
        file = io.StringIO()
        canvas.savefig(file, format="svg", metadata=_NO_METADATA)
    return _embedded(file.getvalue(), name)


def legend_above(canvas: Canvas, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend that cannot cover data, in as few rows as fit."""
    canvas.legend(
        list(handles),
        list(labels),
        loc="outside upper left",
        ncols=_legend_columns(labels),
        handlelength=2.6,
    )


def _legend_columns(labels: Sequence[str]) -> int:
    """Most columns that fit; Matplotlib splits the labels evenly, from top to bottom."""
    lengths = [len(label) for label in labels]
    for columns in range(len(labels), 1, -1):
        widest = [max(column) for column in np.array_split(lengths, columns)]
        if sum(widest) + _LEGEND_HANDLE * len(widest) <= _LEGEND_WIDTH:
            return columns
    return 1


def _luminance(colour: tuple[float, ...]) -> float:
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _embedded(document: str, name: str) -> str:
    svg = document[document.index("<svg") :]
    start, rest = svg[: svg.index(">")], svg[svg.index(">") :]
    start = re.sub(r'\s(width|height)="[^"]*"', "", start)
    start += ' aria-hidden="true" focusable="false"'  # the page says in words what it shows
    rest = re.sub(r'\bid="', f'id="{name}-', rest)
    rest = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", rest)
    return start + rest
