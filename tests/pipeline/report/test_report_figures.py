from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.figure import Figure as Canvas

from pipeline.report import text
from pipeline.report.data import Activity, FeatureDrift, NodeFacts, Popularity
from pipeline.report.figures.canvas import draw, readable_on
from pipeline.report.figures.distributions import activity, drift, held, popularity, quantile
from pipeline.report.figures.funnel import funnel, reaching
from pipeline.report.figures.index import recall_against_latency
from pipeline.report.figures.nodes import nodes
from pipeline.report.figures.ownership import Cut, Owned, importance, ownership
from pipeline.report.figures.pareto import chosen_for, frontier, pareto
from pipeline.report.figures.training import training
from pipeline.report.recorded import GateCheck, IndexPoint, ParetoPoint, Stage
from pipeline.report.sections.gates import margin
from pipeline.report.timeline import END_TO_END, SPREAD, curves


def point(weights: list[float], click: float, conversion: float) -> ParetoPoint:
    recall = {"click": click, "conversion": conversion}
    return ParetoPoint.model_validate({"weights": weights, "recall@50": recall})


# --- what is computed -------------------------------------------------------------------------


def test_events_that_reach_an_objective_include_the_later_ones() -> None:
    at_level = {"exposure": 400, "click": 250, "conversion": 100}
    assert reaching(at_level, ("exposure", "click", "conversion")) == [750, 350, 100]
    assert reaching({"exposure": 4}, ("exposure", "click")) == [4, 0]


def test_quantiles_lie_between_the_steps() -> None:
    users = Activity("train", 100, 1000, ((1.0, 0.0), (10.0, 0.25), (20.0, 0.5), (80.0, 1.0)))
    assert quantile(users, 0.25) == 10.0
    assert quantile(users, 0.75) == 50.0  # half-way from 20 to 80
    assert quantile(users, 0.0) == 1.0


def test_events_that_the_most_popular_items_hold() -> None:
    # 10 items in all, of which the first 5 are recorded.
    items = Popularity("train", 10, 200, (100.0, 50.0, 20.0, 10.0, 5.0), ())
    assert held(items, 0.1) == 0.5
    assert held(items, 0.2) == 0.75
    assert held(items, 0.001) == 0.5  # at least one item
    assert held(items, 0.6) is None


def test_frontier_leaves_out_what_another_point_beats() -> None:
    points = [
        point([1, 0], 0.5, 0.1),
        point([1, 1], 0.4, 0.3),
        point([1, 2], 0.3, 0.3),  # no better than the one before in conversion
        point([0, 1], 0.1, 0.4),
        point([2, 1], 0.4, 0.2),
        point([2, 0], 0.5, 0.1),  # the first one again
    ]
    assert frontier(points, "click", "conversion") == [3, 1, 0]


def test_chosen_weights_are_found_by_their_ratios() -> None:
    points = [point([1, 0], 0.5, 0.1), point([1, 1], 0.4, 0.3)]
    chosen = {"click": [0.5, 0.5], "conversion": [0.2, 1.0]}
    assert chosen_for(points, chosen) == {"click": 1}


def test_importance_curve_and_what_was_freed() -> None:
    cut = Cut(0, "exposure", "output", (1.0, 1.0, 2.0, 4.0), 2, 0.3, "cumulative")
    assert cut.curve == ([0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 0.125, 0.25, 0.5, 1.0])
    row = importance([cut]).table.rows[0]  # type: ignore[union-attr]
    assert row == ("exposure", "output", "4", "2", "50.0 %", "25.0 %", "0.3")
    assert Cut(0, "e", "l", (0.0, 0.0), 0, 0.3, "cumulative").curve[1] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "value", "threshold", "expected"),
    [
        ("click: recall@50", 0.6, 0.5, "+0.1000 (+20.0 %)"),
        ("click: recall@50", 0.4, 0.5, "-0.1000 (-20.0 %)"),
        ("click: recall@50", 0.4, 0.0, "+0.4000"),
        ("data: anomalies", 3, 0, "-3"),
        ("data: anomalies", 0, 0, "+0"),
    ],
)
def test_margin_is_positive_on_the_right_side(
    name: str, value: float, threshold: float, expected: str
) -> None:
    check = GateCheck(name=name, passed=True, value=value, threshold=threshold)
    assert margin(check) == expected


# --- the time axis ----------------------------------------------------------------------------


def trained(k: int, started: float | None, ends: list[float] | None) -> Stage:
    fitted = {"losses": [2.0, 1.0], "recalls": [], "kept_round": 2, "steps": 2, "seconds": 10.0}
    phases = [
        {"name": name, "positives": 1, "fitted": fitted | {"round_seconds": ends}}
        for name in ("train", "recover")
    ]
    return Stage.model_validate(
        {"stage": k, "objective": f"o{k}", "owned": {}, "started": started, "phases": phases}
    )


def test_rounds_stand_where_they_ended() -> None:
    found, note = curves([trained(0, 1000.0, [7.0, 10.0]), trained(1, 1025.0, [6.0, 10.0])])
    assert note == ""
    assert [curve.begin for curve in found] == [0.0, 10.0, 25.0, 35.0]
    assert [curve.ends for curve in found] == [
        (7.0, 10.0),
        (17.0, 20.0),
        (31.0, 35.0),
        (41.0, 45.0),
    ]


def test_rounds_without_times_are_spread_evenly() -> None:
    found, note = curves([trained(0, None, None), trained(1, None, None)])
    assert note == SPREAD
    assert [curve.ends for curve in found] == [
        (5.0, 10.0),
        (15.0, 20.0),
        (25.0, 30.0),
        (35.0, 40.0),
    ]


@pytest.mark.parametrize("second", [500.0, 90_000.0])
def test_stages_of_different_runs_stand_end_to_end(second: float) -> None:
    found, note = curves([trained(0, 1000.0, [7.0, 10.0]), trained(1, second, [6.0, 10.0])])
    assert note == END_TO_END
    assert [curve.ends for curve in found][2] == (26.0, 30.0)


# --- drawings ---------------------------------------------------------------------------------


def all_figures() -> dict[str, Any]:
    objectives = ("exposure", "click", "conversion")
    indices = [("brute_force", 0.31, 1.0, False), ("tree", 0.1, 0.9, True)]
    return {
        "funnel": funnel({"train": {"exposure": 5, "click": 2}, "eval": {}}, objectives),
        "activity": activity([Activity("train", 3, 9, ((1.0, 0.0), (5.0, 1.0)))]),
        "popularity": popularity([Popularity("train", 3, 9, (5.0, 3.0, 1.0), ())]),
        "drift": drift([FeatureDrift("train", "age <&> $x$", "L-infinity", 0.2)], "run-1"),
        "training": training(curves([trained(0, None, None)])[0], SPREAD),
        "ownership": ownership([Owned("output", 64, {"exposure": 44, "click": 14})], objectives),
        "importance": importance([Cut(0, "exposure", "output", (1.0, 2.0), 1, 0.4, "global")]),
        "index": recall_against_latency(
            [
                IndexPoint.model_validate(
                    {"kind": k, "ms_per_query": ms, "recall@100": r, "shipped": s}
                )
                for k, ms, r, s in indices
            ],
            0.95,
        ),
        "pareto": pareto([point([1, 0], 0.5, 0.1)], objectives[1:], {"click": [2, 0]}, 10),
        "nodes": nodes(
            [
                NodeFacts(f"Node.{state}", state, 3.0 * i, 2.5, 2**30, "")
                for i, state in enumerate(("COMPLETE", "CACHED", "RUNNING", "FAILED"))
            ]
        ),
    }


@pytest.fixture(scope="module")
def drawn() -> SimpleNamespace:
    return SimpleNamespace(first=all_figures(), second=all_figures())


def test_the_same_data_give_the_same_bytes(drawn: SimpleNamespace) -> None:
    assert drawn.first == drawn.second


def test_every_figure_speaks_for_itself(drawn: SimpleNamespace) -> None:
    for name, figure in drawn.first.items():
        assert figure.svg.startswith("<svg "), name
        assert figure.svg.rstrip().endswith("</svg>"), name
        assert figure.caption.startswith("How to read it: "), name
        assert len(figure.alt) > 30, name
        assert figure.table.rows, name
        for row in figure.table.rows:
            assert len(row) == len(figure.table.columns), name


def test_ids_do_not_collide_on_one_page(drawn: SimpleNamespace) -> None:
    page = "".join(figure.svg for figure in drawn.first.values())
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    referred = re.findall(r'(?:xlink:href="#|url\(#)([^")]*)', page)
    assert referred
    assert set(referred) <= set(ids)


def test_names_are_text_and_no_markup_or_mathematics(drawn: SimpleNamespace) -> None:
    assert "age &lt;&amp;&gt; $x$" in drawn.first["drift"].svg


def test_a_drawing_leaves_no_settings_behind() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    draw("x", 1.0, lambda canvas: None)
    assert dict(mpl.rcParams) == before


def test_a_figure_without_values_is_drawn() -> None:
    def paint(canvas: Canvas) -> None:
        canvas.subplots()

    assert "<svg" in draw("empty", 1.0, paint)
    assert nodes([NodeFacts("Node", "COMPLETE", 0.0, 0.0, None, "")]).svg


def test_text_has_the_contrast_it_needs() -> None:
    assert readable_on((1.0, 1.0, 1.0, 1.0)) != "white"
    assert readable_on((0.0, 0.0, 0.2, 1.0)) == "white"


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.seconds(3.25), "3.2 s"),
        (text.seconds(59.96), "1 min 00 s"),
        (text.seconds(245), "4 min 05 s"),
        (text.seconds(3599.7), "1 h 00 min"),
        (text.seconds(7380), "2 h 03 min"),
        (text.memory(None), "–"),
        (text.memory(700 * 2**20), "700 MiB"),
        (text.memory(3 * 2**29), "1.50 GiB"),
        (text.count(1234567), "1,234,567"),
        (text.count(float("nan")), "–"),
        (text.score(float("nan")), "–"),
        (text.share(0.1234), "12.3 %"),
        (text.change(0.45, 0.5), "-10.0 %"),
        (text.change(0.45, 0.0), "–"),
        (text.times(0.6, 0.25), "2.40 ×"),
        (text.weights([1.0, 0.2, 0.0]), "1 : 0.2 : 0"),
        (text.clipped("a\nb " + "x" * 200, 10), "a b xxxxx…"),
    ],
)
def test_numbers_as_people_read_them(shown: str, expected: str) -> None:
    assert shown == expected
