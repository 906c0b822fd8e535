"""Activity of users, popularity of items, and drift of features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, NullLocator

from pipeline.report import text
from pipeline.report.blocks import Figure, Table
from pipeline.report.data import Activity, FeatureDrift, Popularity
from pipeline.report.figures.canvas import BAD, GOOD, INK, MUTED, draw

NOTICEABLE = 0.1
_SPLITS = ((INK, "-"), (BAD, "--"))
_SHARES = (0.01, 0.1, 0.5)  # of the items, the most popular first
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def activity(splits: Sequence[Activity]) -> Figure:
    """Share of the users with at most so many events."""

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for place, split in enumerate(splits):
            events, shares = zip(*split.steps, strict=True)
            axes.plot(
                events,
                shares,
                color=_SPLITS[place % 2][0],
                linestyle=_SPLITS[place % 2][1],
                linewidth=2,
                label=f"{split.split}: {split.users:,} users",
            )
        _logarithmic(axes, "x")
        axes.set_xlabel("events in the user's timeline (logarithmic)")
        axes.set_ylabel("share of the users")
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.legend(loc="lower right", handlelength=3)

    medians = [(split.split, quantile(split, 0.5)) for split in splits]
    return Figure(
        svg=draw("activity", 2.9, paint),
        alt="Distribution of the users' activity. "
        + "; ".join(
            f"{name}: half of the users have at most {n:.0f} events" for name, n in medians
        ),
        caption="How to read it: at a number of events on the horizontal axis, the curve is the "
        "share of users with at most that many. A curve far to the left means short histories, "
        "from which little can be learned about a user. Timelines of the eval split begin with the "
        "user's earlier events.",
        table=Table(
            "Events per user",
            ("split", "users", "events", *(f"{100 * q:.0f} % have at most" for q in _QUANTILES)),
            [
                (
                    split.split,
                    text.count(split.users),
                    text.count(split.events),
                    *(text.count(quantile(split, q)) for q in _QUANTILES),
                )
                for split in splits
            ],
            numeric=frozenset(range(1, 3 + len(_QUANTILES))),
        ),
    )


def quantile(split: Activity, q: float) -> float:
    """Number of events that a share `q` of the users does not exceed, between two steps linear."""
    events, shares = zip(*split.steps, strict=True)
    return float(np.interp(q, shares, events))


def popularity(splits: Sequence[Popularity]) -> Figure:
    """Events of each item by its rank."""

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for place, split in enumerate(splits):
            axes.plot(
                *_thinned(split.counts),
                color=_SPLITS[place % 2][0],
                linestyle=_SPLITS[place % 2][1],
                linewidth=2,
                label=f"{split.split}: {split.items:,} items with an event",
            )
        _logarithmic(axes, "x")
        _logarithmic(axes, "y")
        axes.set_xlabel("rank of the item, 1 = most popular (logarithmic)")
        axes.set_ylabel("events (logarithmic)")
        axes.legend(loc="lower left", handlelength=3)

    return Figure(
        svg=draw("popularity", 2.9, paint),
        alt="Distribution of the items' popularity. "
        + "; ".join(
            f"{split.split}: the first item has {split.counts[0]:,.0f} events, "
            f"the most popular 10 % of the items hold {text.share(held(split, 0.1))} of all"
            for split in splits
            if split.counts
        ),
        caption="How to read it: items are sorted by their events, both axes are logarithmic. The "
        "steeper the line falls, the more a few items hold, and the better a list of the most "
        "popular ones does, which is what the model must beat. The line ends where the recorded "
        "ranks end.",
        table=Table(
            "Share of all events that the most popular items hold",
            ("split", "items", "events", *(f"first {100 * s:.0f} %" for s in _SHARES)),
            [
                (
                    split.split,
                    text.count(split.items),
                    text.count(split.events),
                    *(text.share(held(split, share)) for share in _SHARES),
                )
                for split in splits
            ],
            numeric=frozenset(range(1, 3 + len(_SHARES))),
        ),
    )


def held(split: Popularity, share: float) -> float | None:
    """Part of all events on the most popular items; None beyond the recorded ranks."""
    n = max(1, round(share * split.items))
    if n > len(split.counts) or not split.events:
        return None
    return sum(split.counts[:n]) / split.events


def drift(features: Sequence[FeatureDrift], previous_run: str) -> Figure:
    """Distance of every feature from the previous span, largest first."""

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        places = range(len(features))
        axes.barh(
            places,
            [feature.value for feature in features],
            color=[BAD if feature.value > NOTICEABLE else GOOD for feature in features],
            height=0.6,
        )
        for place, feature in enumerate(features):
            axes.annotate(
                f"{feature.value:.3f}" + (" noticeable" if feature.value > NOTICEABLE else ""),
                (feature.value, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
            )
        axes.axvline(NOTICEABLE, color=INK, linestyle=":", linewidth=1)
        axes.set_yticks(list(places), [f"{f.feature}, {f.split} ({f.measure})" for f in features])
        axes.invert_yaxis()
        axes.set_xlim(0, max([NOTICEABLE, *(feature.value for feature in features)]) * 1.25)
        axes.set_xlabel("distance from the previous span")
        axes.tick_params(axis="x", labelcolor=MUTED)
        axes.grid(axis="y", visible=False)

    return Figure(
        svg=draw("drift", 0.8 + 0.27 * len(features), paint),
        alt=f"Drift against run {previous_run}. "
        + ", ".join(f"{f.feature} {f.value:.3f}" for f in features[:5]),
        caption=f"How to read it: 0 means the same distribution as in run {previous_run}, which "
        "had the previous span; 1 is the largest possible distance. Text is compared by the "
        "largest change of any value's share (L-infinity), numbers by the Jensen-Shannon "
        f"divergence. The dotted line at {NOTICEABLE:g} is a rule of thumb, not a gate. Timestamps "
        "move with every new span.",
        table=Table(
            "Drift by feature",
            ("feature", "split", "measure", "distance"),
            [(f.feature, f.split, f.measure, f"{f.value:.4f}") for f in features],
            numeric=frozenset({3}),
        ),
    )


def _logarithmic(axes: Axes, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axis.set_minor_locator(NullLocator())


def _thinned(counts: Sequence[float]) -> tuple[list[int], list[float]]:
    """Ranks and counts at so many places as the eye can tell apart on a logarithmic axis."""
    if not counts:
        return [], []
    ranks = np.unique(np.geomspace(1, len(counts), 200).round().astype(int))
    return ranks.tolist(), [counts[rank - 1] for rank in ranks]
