"""Who owns the neurons of which layer, and where CPP cut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MultipleLocator

from pipeline.report import text
from pipeline.report.blocks import Figure, Table
from pipeline.report.figures.canvas import (
    INK,
    MUTED,
    draw,
    legend_above,
    objective_colour,
    objective_dash,
    objective_marker,
    readable_on,
)

_SCALE = "Blues"  # one hue: what counts is how dark it is
_DARKEST = 0.9
_COLUMNS = 3
_OTHERS = "others"


@dataclass(frozen=True)
class Owned:
    """Neurons of one layer.

    Attributes:
      layer: name.
      total: neurons.
      by_objective: how many each objective owns.
    """

    layer: str
    total: int
    by_objective: Mapping[str, int]

    @property
    def others(self) -> int:
        """Neurons of stages that are not known, or have not been trained."""
        return self.total - sum(self.by_objective.values())


@dataclass(frozen=True)
class Cut:
    """What CPP saw in one layer after one stage.

    Attributes:
      stage: index of the objective.
      objective: its name.
      layer: name.
      importance: of the slots that the stage owned, ascending.
      freed: how many of them, the first ones, went to the next stage.
      tau: the share that was to be freed.
      rule: what it is a share of; see `models.settings.PruneRule`.
    """

    stage: int
    objective: str
    layer: str
    importance: tuple[float, ...]
    freed: int
    tau: float
    rule: str

    @property
    def curve(self) -> tuple[list[float], list[float]]:
        """(share of the slots, cumulative share of the importance), both from 0 to 1."""
        n, total = len(self.importance), math.fsum(self.importance)
        slots = [place / n for place in range(n + 1)] if n else [0.0]
        mass = [0.0, *np.cumsum(self.importance)]
        return slots, [float(value) / total if total else 0.0 for value in mass]


def ownership(layers: Sequence[Owned], objectives: Sequence[str]) -> Figure:
    """Heat map of layers by objectives."""
    unfinished = any(layer.others for layer in layers)
    columns = [*objectives, _OTHERS] if unfinished else list(objectives)

    def counts(layer: Owned) -> list[int]:
        of_objectives = [layer.by_objective.get(name, 0) for name in objectives]
        return [*of_objectives, layer.others] if unfinished else of_objectives

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for row, layer in enumerate(layers):
            for column, n in enumerate(counts(layer)):
                _cell(axes, row, column, n, layer.total)
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(layers), 0)
        axes.set_xticks([place + 0.5 for place in range(len(columns))], columns)
        axes.set_yticks(
            [place + 0.5 for place in range(len(layers))],
            [f"{layer.layer} ({layer.total})" for layer in layers],
        )
        axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)

    return Figure(
        svg=draw("ownership", 0.5 + 0.34 * len(layers), paint),
        alt="Ownership of the neurons. "
        + "; ".join(
            f"{layer.layer}: "
            + ", ".join(f"{name} {n}" for name, n in zip(columns, counts(layer), strict=True))
            for layer in layers
        ),
        caption="How to read it: a row is a layer with its number of neurons, a column an "
        "objective; a cell says which share and how many of the layer's neurons the objective "
        "owns, the darker the more. Neurons of an objective are frozen once its stage has ended; "
        "later stages can only use what was freed for them. A column that fades to nothing has "
        "little room to learn: raise the tau of the stages before it."
        + (
            " The last column holds neurons of stages that are missing, or still to be trained."
            if unfinished
            else ""
        ),
        table=Table(
            "Neurons by layer and owner",
            ("layer", "neurons", *columns),
            [
                (
                    layer.layer,
                    text.count(layer.total),
                    *(f"{n} ({text.share(_part(n, layer.total))})" for n in counts(layer)),
                )
                for layer in layers
            ],
            numeric=frozenset(range(1, 2 + len(columns))),
            folded=True,
        ),
    )


def importance(cuts: Sequence[Cut]) -> Figure:
    """Cumulative importance by layer, one line per stage, with the cuts."""
    layers = list(dict.fromkeys(cut.layer for cut in cuts))
    rows = math.ceil(len(layers) / _COLUMNS)
    stages = {cut.stage: cut.objective for cut in cuts}
    rules = {cut.rule for cut in cuts}

    def paint(canvas: Canvas) -> None:
        panels = canvas.subplots(
            rows, min(_COLUMNS, len(layers)), sharex=True, sharey=True, squeeze=False
        )
        for panel in panels.flat[len(layers) :]:
            panel.set_visible(False)
        for panel, layer in zip(panels.flat, layers, strict=False):
            for cut in cuts:
                if cut.layer == layer and cut.importance:
                    _importance_curve(panel, cut)
            panel.set_title(layer)
            panel.set_xlim(0, 1)
            panel.set_ylim(0, 1.02)
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_locator(MultipleLocator(0.5))
                axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        canvas.supxlabel("share of the stage's slots, least important first", fontsize=9)
        canvas.supylabel("cumulative share of importance", fontsize=9)
        _importance_legend(canvas, stages, rules)

    return Figure(
        svg=draw("importance", 0.9 + 1.55 * rows, paint),
        alt="Importance curves with the cut of CPP. "
        + "; ".join(
            f"{cut.objective}, {cut.layer}: {cut.freed} of {len(cut.importance)} slots freed"
            for cut in cuts
        ),
        caption="How to read it: the slots a stage owned are sorted by importance; the curve adds "
        f"them up. {_rule_in_words(rules)} The marker is the cut: slots to its left were freed and "
        "given to the next stage. A curve that hugs the lower right corner has few neurons that "
        "matter and many to free; a straight diagonal means that all matter alike.",
        table=Table(
            "Slots freed after each stage",
            ("stage", "layer", "slots", "freed", "of the slots", "of the importance", "tau"),
            [
                (
                    cut.objective,
                    cut.layer,
                    str(len(cut.importance)),
                    str(cut.freed),
                    text.share(_part(cut.freed, len(cut.importance))),
                    text.share(cut.curve[1][cut.freed] if cut.importance else None),
                    f"{cut.tau:g}",
                )
                for cut in cuts
            ],
            numeric=frozenset(range(2, 7)),
            folded=True,
        ),
    )


def _cell(axes: Axes, row: int, column: int, n: int, total: int) -> None:
    part = _part(n, total)
    colour = colormaps[_SCALE](_DARKEST * (part or 0.0))
    axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="white", linewidth=2))
    axes.text(
        column + 0.5,
        row + 0.5,
        f"{text.share(part)} ({n})",
        ha="center",
        va="center",
        color=readable_on(colour),
    )


def _importance_curve(panel: Axes, cut: Cut) -> None:
    slots, mass = cut.curve
    colour = objective_colour(cut.stage)
    panel.plot(slots, mass, color=colour, linestyle=objective_dash(cut.stage), linewidth=1.6)
    panel.plot(
        [slots[cut.freed]],
        [mass[cut.freed]],
        marker=objective_marker(cut.stage),
        color=colour,
        markeredgecolor=INK,
        markersize=7,
        linestyle="none",
    )
    if cut.rule == "cumulative":
        panel.axhline(cut.tau, color=MUTED, linestyle=":", linewidth=1)
    elif cut.rule == "fixed":
        panel.axvline(cut.tau, color=MUTED, linestyle=":", linewidth=1)


def _importance_legend(canvas: Canvas, stages: Mapping[int, str], rules: set[str]) -> None:
    handles = [
        Line2D(
            [],
            [],
            color=objective_colour(stage),
            linestyle=objective_dash(stage),
            marker=objective_marker(stage),
            markeredgecolor=INK,
        )
        for stage in stages
    ]
    labels = [f"after {name}, and its cut" for name in stages.values()]
    if rules & {"cumulative", "fixed"}:
        handles.append(Line2D([], [], color=MUTED, linestyle=":"))
        labels.append("tau")
    legend_above(canvas, handles, labels)


def _rule_in_words(rules: set[str]) -> str:
    if rules == {"cumulative"}:
        return (
            "CPP frees the slots whose cumulative importance stays at or below tau, the dotted "
            "line."
        )
    if rules == {"fixed"}:
        return "A fixed share of the slots is freed: tau, the dotted line."
    return (
        "Where the rule is `cumulative` or `fixed`, tau is the dotted line; with `global`, it "
        "holds for all layers together and has no place in one of them."
    )


def _part(n: int, total: int) -> float | None:
    return n / total if total else None
