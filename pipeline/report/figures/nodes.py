"""When each node ran, and how much memory it took."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch

from pipeline.report import text
from pipeline.report.blocks import Badge, Figure, Table
from pipeline.report.data import NodeFacts
from pipeline.report.figures.canvas import BAD, GOOD, MUTED, draw, legend_above

_CACHED, _COMPLETE = "CACHED", "COMPLETE"
_LOOKS = {  # state -> colour, hatch
    _COMPLETE: (GOOD, None),
    _CACHED: ("#b6c2cf", "////"),
    "RUNNING": ("#E69F00", "..."),
}
_ENDED_BADLY = (BAD, "xxx")


def nodes(facts: Sequence[NodeFacts]) -> Figure:
    """Bars on one time axis."""
    end = max([1.0, *(node.start + node.seconds for node in facts)])

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for place, node in enumerate(facts):
            colour, hatch = _LOOKS.get(node.state, _ENDED_BADLY)
            axes.barh(
                place,
                max(node.seconds, end / 400),  # a node of milliseconds is still to be seen
                left=node.start,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                height=0.68,
            )
            _label(axes, place, node, end)
        axes.set_yticks(range(len(facts)), [node.name for node in facts])
        axes.invert_yaxis()
        axes.set_xlim(0, end * 1.02)
        axes.set_xlabel("seconds since the run began")
        axes.tick_params(axis="x", labelcolor=MUTED)
        axes.grid(axis="y", visible=False)
        states = list(dict.fromkeys(node.state for node in facts))
        legend_above(
            canvas,
            [
                Patch(facecolor=colour, hatch=hatch, edgecolor="white")
                for colour, hatch in (_LOOKS.get(state, _ENDED_BADLY) for state in states)
            ],
            [state.lower() for state in states],
        )

    return Figure(
        svg=draw("nodes", 1.0 + 0.27 * len(facts), paint),
        alt="When each node ran. "
        + "; ".join(
            f"{node.name} {node.state.lower()}, from {node.start:.1f} s on, "
            f"{text.seconds(node.seconds)}"
            for node in facts
        ),
        caption="How to read it: one bar per node, from its start to its end; gaps between bars "
        "are the runner's own time. Hatched grey bars took their outputs from the cache. Memory is "
        "the peak of the process and its children while the node ran; one process runs all nodes, "
        "so each also carries what those before it left behind.",
        table=Table(
            "Nodes in the order of execution",
            ("node", "state", "started after", "took", "peak memory"),
            [
                (
                    node.name,
                    state_badge(node.state),
                    text.seconds(node.start),
                    text.seconds(node.seconds),
                    text.memory(node.peak_bytes),
                )
                for node in facts
            ],
            numeric=frozenset({2, 3, 4}),
        ),
    )


def state_badge(state: str) -> Badge:
    """A state of a node or a run, in words."""
    if state == _COMPLETE:
        return Badge("complete", "good")
    if state in _LOOKS:
        return Badge(state.lower(), "neutral")
    return Badge(state.lower(), "bad")


def _label(axes: Axes, place: int, node: NodeFacts, end: float) -> None:
    said = text.seconds(node.seconds)
    if node.peak_bytes is not None:
        said += f", {text.memory(node.peak_bytes)}"
    # Where a label behind the bar would leave the canvas, it stands before it.
    behind = node.start + node.seconds < 0.75 * end
    axes.annotate(
        said,
        (node.start + node.seconds if behind else node.start, place),
        xytext=(4 if behind else -4, 0),
        textcoords="offset points",
        va="center",
        ha="left" if behind else "right",
        fontsize=8,
    )
