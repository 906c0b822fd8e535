"""Recall against latency of the ANN index."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from pipeline.report import text
from pipeline.report.blocks import Figure, Table
from pipeline.report.figures.canvas import INK, draw, legend_above
from pipeline.report.recorded import IndexPoint

_LOOKS = {  # kind -> colour, marker
    "brute_force": ("#D55E00", "s"),
    "hashed": ("#009E73", "^"),
    "tree": ("#0072B2", "o"),
}
_OTHER = ("#CC79A7", "v")
_AXES_SIZE = (570.0, 180.0)  # about, in typographic points
_PLACES = [  # of a number beside its point, the best first
    (distance * dx, distance * dy)
    for distance in (14.0, 26.0, 38.0)
    for dx, dy in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))
]


def recall_against_latency(points: Sequence[IndexPoint], needed: float | None) -> Figure:
    """One marker per setting, the shipped one ringed.

    Args:
      points: at least one.
      needed: recall that the gate asks for; None if not known.
    """
    ordered = sorted(points, key=lambda point: (point.kind, point.ms_per_query))
    shipped = [place for place, point in enumerate(ordered, 1) if point.shipped]

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for kind in dict.fromkeys(point.kind for point in ordered):
            colour, marker = _LOOKS.get(kind, _OTHER)
            own = [point for point in ordered if point.kind == kind]
            axes.plot(
                [point.ms_per_query for point in own],
                [point.recall for point in own],
                color=colour,
                marker=marker,
                markersize=7,
                linewidth=1,
                linestyle=":",
            )
        _frame(axes, ordered, needed)
        for place, (point, offset) in enumerate(
            zip(ordered, _label_offsets(axes, ordered), strict=True), 1
        ):
            axes.annotate(
                str(place),
                (point.ms_per_query, point.recall),
                xytext=offset,
                textcoords="offset points",
                ha="center",
                va="center",
            )
            if point.shipped:
                axes.plot(
                    [point.ms_per_query],
                    [point.recall],
                    marker="o",
                    markersize=15,
                    markerfacecolor="none",
                    markeredgecolor=INK,
                    markeredgewidth=1.6,
                )
        if needed is not None:
            axes.axhline(needed, color=INK, linestyle="--", linewidth=1)
        axes.set_xlabel("milliseconds per query, median, one query at a time")
        axes.set_ylabel("recall@100 of the exact list")
        _legend(canvas, [point.kind for point in ordered], needed)

    return Figure(
        svg=draw("index", 3.6, paint),
        alt="Recall against latency of the index. "
        + "; ".join(
            f"{place}: {_setting(point)}, recall {point.recall:.4f}, "
            f"{point.ms_per_query:.2f} ms{', shipped' if point.shipped else ''}"
            for place, point in enumerate(ordered, 1)
        ),
        caption="How to read it: up is more of the exact top 100, left is faster; the upper left "
        "corner is best. The axes do not begin at 0. Numbers are those of the table. "
        + (
            f"The ringed number {shipped[0]} is the setting that is shipped."
            if shipped
            else "None of the settings measured is the shipped one."
        )
        + " With few items, brute force is as fast as any index and loses nothing.",
        table=Table(
            "Settings of the index",
            (
                "number",
                "kind",
                "leaves searched",
                "reordered",
                "recall@100",
                "ms per query",
                "shipped",
            ),
            [
                (
                    str(place),
                    point.kind,
                    text.share(point.leaves_to_search_share),
                    text.NOTHING if point.reorder is None else str(point.reorder),
                    text.score(point.recall),
                    f"{point.ms_per_query:.3f}",
                    "yes" if point.shipped else "no",
                )
                for place, point in enumerate(ordered, 1)
            ],
            numeric=frozenset(range(2, 6)),
        ),
    )


def _frame(axes: Axes, points: Sequence[IndexPoint], needed: float | None) -> None:
    """Fits the axes to the points, but never closer than differences that mean something."""
    times = [point.ms_per_query for point in points]
    recalls = [point.recall for point in points] + ([] if needed is None else [needed])
    for values, least, limit in (
        (times, 0.2 * max(times), axes.set_xlim),
        (recalls, 0.02, axes.set_ylim),
    ):
        middle = (min(values) + max(values)) / 2
        half = 0.6 * max(max(values) - min(values), least)
        limit(middle - half, middle + half)


def _label_offsets(axes: Axes, points: Sequence[IndexPoint]) -> list[tuple[float, float]]:
    """For each point, in typographic points, the nearest place for a number that is free."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    at = [
        (
            (point.ms_per_query - left) / (right - left) * _AXES_SIZE[0],
            (point.recall - bottom) / (top - bottom) * _AXES_SIZE[1],
        )
        for point in points
    ]
    taken = list(at)
    offsets = []
    for x, y in at:
        offset = next(
            (
                (dx, dy)
                for dx, dy in _PLACES
                if all(abs(x + dx - p) > 11 or abs(y + dy - q) > 11 for p, q in taken)
            ),
            _PLACES[0],
        )
        taken.append((x + offset[0], y + offset[1]))
        offsets.append(offset)
    return offsets


def _legend(canvas: Canvas, kinds: Sequence[str], needed: float | None) -> None:
    handles, labels = [], []
    for kind in dict.fromkeys(kinds):
        colour, marker = _LOOKS.get(kind, _OTHER)
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle=":"))
        labels.append(kind.replace("_", " "))
    handles.append(
        Line2D(
            [],
            [],
            marker="o",
            markersize=10,
            markerfacecolor="none",
            markeredgecolor=INK,
            linestyle="none",
        )
    )
    labels.append("shipped")
    if needed is not None:
        handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=1))
        labels.append(f"the gate asks for {needed:g}")
    legend_above(canvas, handles, labels)


def _setting(point: IndexPoint) -> str:
    said = point.kind.replace("_", " ")
    if point.leaves_to_search_share is not None:
        said += f" searching {text.share(point.leaves_to_search_share)} of the leaves"
    if point.reorder is not None:
        said += f", reordering {point.reorder}"
    return said
