"""How many events reach which objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from pipeline.report import text
from pipeline.report.blocks import Figure, Table
from pipeline.report.figures.canvas import MUTED, draw, objective_colour

_HATCH = {"train": None, "eval": "////"}


def reaching(at_level: Mapping[str, int], objectives: Sequence[str]) -> list[int]:
    """Events that reach each objective: a conversion is also a click."""
    levels = [at_level.get(name, 0) for name in objectives]
    return [sum(levels[place:]) for place in range(len(levels))]


def funnel(events: Mapping[str, Mapping[str, int]], objectives: Sequence[str]) -> Figure:
    """Bars of events by split and objective.

    Args:
      events: split -> objective -> events whose level it is.
      objectives: in funnel order.
    """
    reached = {split: reaching(levels, objectives) for split, levels in events.items()}

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots(1, len(reached), sharey=True, squeeze=False)[0]
        places = range(len(objectives))
        for panel, (split, values) in zip(axes, reached.items(), strict=True):
            panel.barh(
                places,
                values,
                color=[objective_colour(place) for place in places],
                hatch=_HATCH.get(split),
                edgecolor="white",
                height=0.65,
            )
            for place, value in enumerate(values):
                panel.annotate(
                    _label(values, place),
                    (value, place),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                )
            panel.set_title(f"split {split}")
            panel.set_xlabel("events")
            panel.set_xlim(0, max([*values, 1]) * 1.45)
            panel.xaxis.set_major_locator(MaxNLocator(4))
            panel.xaxis.set_major_formatter(lambda value, _: text.count(value))
            panel.tick_params(axis="x", labelcolor=MUTED)
            panel.grid(axis="y", visible=False)
        axes[0].set_yticks(list(places), list(objectives))
        axes[0].invert_yaxis()

    rows = [
        (split, name, text.count(values[place]), _of_before(values, place))
        for split, values in reached.items()
        for place, name in enumerate(objectives)
    ]
    return Figure(
        svg=draw("funnel", 0.9 + 0.42 * len(objectives), paint),
        alt="Funnel of events. "
        + "; ".join(
            f"{split}: "
            + ", ".join(f"{n:,} reach {o}" for n, o in zip(values, objectives, strict=True))
            for split, values in reached.items()
        ),
        caption="How to read it: each bar counts the events that reach an objective; an event that "
        "reaches a later objective counts at all earlier ones, too. The percentage is the share of "
        "the bar above. Steep steps mean that there is little to learn the later objective from.",
        table=Table(
            "Events that reach each objective",
            ("split", "objective", "events", "of the objective before"),
            rows,
            numeric=frozenset({2, 3}),
        ),
    )


def _of_before(values: Sequence[int], place: int) -> str:
    if place == 0 or values[place - 1] == 0:
        return text.NOTHING
    return text.share(values[place] / values[place - 1])


def _label(values: Sequence[int], place: int) -> str:
    part = _of_before(values, place)
    return text.count(values[place]) + ("" if part == text.NOTHING else f" ({part})")
