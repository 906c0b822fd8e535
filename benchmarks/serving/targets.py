"""What was asked of the server, and whether the figures meet it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Figures = dict[str, Any]


class Target(NamedTuple):
    """One line of the table.

    Attributes:
      part: of the benchmark.
      what: is measured.
      asked: the bound, as a text.
      value: finds the figure in the part's figures: a number, or a `spread` of several.
      met: whether the figure, of several the median, is good enough.
      unit: behind the figure.
    """

    part: str
    what: str
    asked: str
    value: Callable[[Figures], float | Figures]
    met: Callable[[float], bool]
    unit: str = ""


def _at_least(bound: float) -> Callable[[float], bool]:
    return lambda value: value >= bound


def _at_most(bound: float) -> Callable[[float], bool]:
    return lambda value: value <= bound


def _none(value: float) -> bool:
    return value == 0


def _against(library: str, key: str) -> Callable[[Figures], Figures]:
    return lambda figures: figures[key][library]


TARGETS = (
    Target(
        "index",
        "ScaNN recall@100 of the default index",
        ">= 0.95",
        lambda f: f["shares"][0]["recall"],
        _at_least(0.95),
    ),
    Target(
        "latency",
        "one client: gRPC p50 over in-process p50",
        "<= 2.5",
        lambda f: f["p50_over_in_process"],
        _at_most(2.5),
        "x",
    ),
    Target(
        "latency",
        "one client: gRPC p99 over p50",
        "<= 3",
        lambda f: f["p99_over_p50"],
        _at_most(3.0),
        "x",
    ),
    Target(
        "throughput",
        "32 clients of grpcio: calls/s over the lower of echo and in-process batches",
        ">= 0.70",
        lambda f: f["share_of_floor"],
        _at_least(0.70),
    ),
    Target(
        "throughput",
        "32 clients: p99 over p50",
        "< 10",
        lambda f: f["p99_over_p50"],
        lambda value: value < 10,
        "x",
    ),
    Target("throughput", "32 clients: failed calls", "0", lambda f: f["grpc"]["failed"], _none),
    *(
        Target(
            "peers",
            f"queries/s over those of FastAPI + {library}",
            "> 1",
            _against(library, "times_rate"),
            lambda value: value > 1,
            "x",
        )
        for library in ("hnswlib", "faiss")
    ),
    *(
        Target(
            "peers",
            f"p99 of FastAPI + {library} over ours",
            "> 1",
            _against(library, "times_p99"),
            lambda value: value > 1,
            "x",
        )
        for library in ("hnswlib", "faiss")
    ),
    Target(
        "objectives",
        "time of three objectives over that of one",
        "<= 1.02",
        lambda f: f["three_over_one"]["ratio"],
        _at_most(1.02),
        "x",
    ),
    Target(
        "objectives",
        "recommendations/s over those of three indexes merged",
        ">= 2.5",
        lambda f: f["times_separate"],
        _at_least(2.5),
        "x",
    ),
    Target("swap", "hot swaps: failed calls", "0", lambda f: f["failed"], _none),
    Target("swap", "hot swaps: answers that mix versions", "0", lambda f: f["mixed"], _none),
    Target(
        "swap",
        "hot swaps, one after the other: memory after the last over after the 3rd",
        "<= +10 %",
        lambda f: 100 * f["rss_growth"],
        _at_most(10.0),
        " %",
    ),
    Target("soak", "soak: failed calls", "0", lambda f: f["failed"], _none),
    Target(
        "soak",
        "soak: memory, last minute over first",
        "<= +5 %",
        lambda f: 100 * f["rss_growth"],
        _at_most(5.0),
        " %",
    ),
    Target(
        "soak",
        "soak: p50, last third over first",
        "<= +10 %",
        lambda f: 100 * f["p50_drift"],
        _at_most(10.0),
        " %",
    ),
    Target(
        "soak",
        "soak: p99, last third over first",
        "<= +25 %",
        lambda f: 100 * f["p99_drift"],
        _at_most(25.0),
        " %",
    ),
)


def judge(parts: dict[str, Figures]) -> list[dict[str, Any]]:
    """Every target whose part was measured."""
    lines = []
    for target in TARGETS:
        figures = parts.get(target.part)
        if figures is None or "missing" in figures:
            continue
        value = target.value(figures)
        if isinstance(value, dict):
            measured = value["median"]
            shown = f"{measured:.3g}{target.unit} ({value['min']:.3g} to {value['max']:.3g})"
        else:
            measured = value
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.3g}{target.unit}"
        lines.append(
            {
                "part": target.part,
                "what": target.what,
                "asked": target.asked,
                "measured": measured,
                "shown": shown,
                "met": bool(target.met(measured)),
            }
        )
    return lines
