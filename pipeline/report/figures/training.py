"""Training curves of all stages on one time axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from pipeline.report import text
from pipeline.report.blocks import Figure, Table
from pipeline.report.figures.canvas import (
    INK,
    MUTED,
    draw,
    legend_above,
    objective_colour,
    objective_marker,
)

_RECOVER = "recover"


@dataclass(frozen=True)
class Curve:
    """One phase of one stage, at its place on the time axis.

    Attributes:
      stage: index of the objective.
      objective: its name.
      phase: "train" or "recover".
      begin: seconds since the first stage began.
      ends: the same, of each round's end.
      losses: of each round.
      recalls: of each round; empty if nothing was validated.
      kept_round: counted from 1.
    """

    stage: int
    objective: str
    phase: str
    begin: float
    ends: tuple[float, ...]
    losses: tuple[float, ...]
    recalls: tuple[float, ...]
    kept_round: int


def training(curves: Sequence[Curve], time_note: str) -> Figure:
    """Loss above, validation recall below.

    Args:
      curves: in the order of time.
      time_note: how the time axis was made, if that is not plain.
    """
    validated = any(curve.recalls for curve in curves)

    def paint(canvas: Canvas) -> None:
        panels: list[Axes] = list(
            canvas.subplots(1 + validated, 1, sharex=True, squeeze=False)[:, 0]
        )
        _curves(panels[0], curves, "losses")
        panels[0].set_ylabel("loss")
        if validated:
            _curves(panels[1], curves, "recalls")
            panels[1].set_ylabel("validation recall@50")
        for panel in panels:
            _bands(panel, curves)
        panels[-1].set_xlabel("seconds since the first stage began")
        panels[-1].set_xlim(left=0)
        _legend(canvas, curves)

    return Figure(
        svg=draw("training", 5.2 if validated else 3.0, paint),
        alt="Training curves. " + ". ".join(_in_words(curve) for curve in curves),
        caption="How to read it: each point is a round of training at the moment it ended. Solid "
        "lines are training, dashed ones recovery after pruning. The ring marks the round whose "
        "weights were kept: the best validation recall of its phase. A loss that falls while the "
        "recall below no longer rises is overfitting, which is why training stops there. Losses of "
        "different objectives are not comparable: they sum over different negatives."
        + (f" {time_note}" if time_note else ""),
        table=Table(
            "Rounds of every phase",
            ("stage", "phase", "round", "ended at", "loss", "validation recall@50", "kept"),
            [
                (
                    curve.objective,
                    curve.phase,
                    str(place + 1),
                    f"{end:.1f} s",
                    score_at(curve.losses, place),
                    score_at(curve.recalls, place),
                    "kept" if place + 1 == curve.kept_round else "",
                )
                for curve in curves
                for place, end in enumerate(curve.ends)
            ],
            numeric=frozenset({2, 3, 4, 5}),
            folded=True,
        ),
    )


def score_at(values: Sequence[float], place: int) -> str:
    """The value of a round, if there is one."""
    return text.score(values[place]) if place < len(values) else text.NOTHING


def _curves(panel: Axes, curves: Sequence[Curve], what: str) -> None:
    for curve in curves:
        values: tuple[float, ...] = getattr(curve, what)
        ends = curve.ends[: len(values)]
        panel.plot(
            ends,
            values[: len(ends)],
            color=objective_colour(curve.stage),
            linestyle="--" if curve.phase == _RECOVER else "-",
            marker=objective_marker(curve.stage),
            markersize=3.5,
            linewidth=1.6,
        )
        kept = curve.kept_round - 1
        if 0 <= kept < len(ends):
            panel.plot(
                [ends[kept]],
                [values[kept]],
                linestyle="none",
                marker="o",
                markersize=10,
                markerfacecolor="none",
                markeredgecolor=INK,
                markeredgewidth=1.2,
            )


def _bands(panel: Axes, curves: Sequence[Curve]) -> None:
    """Shades every other stage, so that it is plain where one ends."""
    for stage in sorted({curve.stage for curve in curves}):
        own = [curve for curve in curves if curve.stage == stage]
        end = max([own[-1].begin, *own[-1].ends])
        if stage % 2 == 0:
            panel.axvspan(own[0].begin, end, color="#f2f4f7", zorder=0, linewidth=0)
        for curve in own[1:]:
            panel.axvline(curve.begin, color=MUTED, linestyle=":", linewidth=0.9)


def _legend(canvas: Canvas, curves: Sequence[Curve]) -> None:
    named = {curve.stage: curve.objective for curve in curves}
    handles: list[Line2D] = [
        Line2D([], [], color=objective_colour(stage), marker=objective_marker(stage))
        for stage in named
    ]
    labels = list(named.values())
    handles.append(
        Line2D(
            [], [], linestyle="none", marker="o", markersize=9, color=INK, markerfacecolor="none"
        )
    )
    labels.append("kept round")
    if any(curve.phase == _RECOVER for curve in curves):
        handles.append(Line2D([], [], color=MUTED, linestyle="--"))
        labels.append("recovery, begins at the dotted line")
    legend_above(canvas, handles, labels)


def _in_words(curve: Curve) -> str:
    said = f"{curve.objective}, {curve.phase}: {len(curve.losses)} rounds"
    if curve.losses:
        said += f", loss from {curve.losses[0]:.3f} to {curve.losses[-1]:.3f}"
    if curve.recalls:
        said += f", best validation recall {max(curve.recalls):.4f} in round {curve.kept_round}"
    return said
