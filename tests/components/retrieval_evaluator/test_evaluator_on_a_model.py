"""The executor, and what looks into the model, on a model whose answers are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tfx.types import standard_artifacts

from components.retrieval_evaluator import curve, examples, pareto, spec
from components.retrieval_evaluator.executor import Executor
from components.retrieval_evaluator.settings import EvaluationSettings
from models.features import FeatureKinds
from models.queries import Model, Query
from models.settings import IndexSettings
from schemas import names
from serving.config import ModelConfig, Specific
from serving.config_files import MODELS_FILE, to_text
from tests.components.retrieval_evaluator.conftest import N_ITEMS, OBJECTIVES, WEIGHTS, Data, item


@pytest.fixture(scope="module")
def model(toy: Path) -> Model:
    return Model(str(toy / names.STOCK_FLAVOUR), {}, batch_size=3)


def query(number: int, level: int = 1, history: tuple[int, ...] = (), user: bytes = b"u") -> Query:
    return Query(
        user_id=user,
        history=tuple(map(item, history)),
        history_levels=tuple(n % 2 for n in range(len(history))),
        targets=(item(number),),
        target_levels=(level,),
        features={},
    )


# --- the model, asked in batches --------------------------------------------------------------


def test_lists_come_with_their_scores_in_the_order_of_the_queries(model: Model) -> None:
    queries = [query(0, history=tuple(range(n))) for n in (4, 0, 2, 1, 3)]
    lists, scores = model.recommend_scored(queries, [0.0, 2.0])
    assert lists.shape == scores.shape == (5, 100)
    assert lists[0][:2].tolist() == [item(119), item(118)]
    assert scores[0][:2].tolist() == pytest.approx([2 * 119 / 120, 2 * 118 / 120])
    first = model.recommend(queries, [1.0, 0.0])
    assert [row[0] for row in first] == [item(4), item(0), item(2), item(1), item(3)]


def test_users_are_embedded_in_the_order_of_the_queries(model: Model) -> None:
    blocks, sizes = model.embed([query(0, history=tuple(range(n))) for n in (2, 0, 1, 4)])
    assert blocks.tolist() == [[1.0, 0.0, 1.0]] * 4
    assert sizes == [2, 1]


def test_titles_of_items_unknown_ones_too(model: Model) -> None:
    assert model.titles([item(3), b"nothing", item(6)]) == {
        item(3): b"Title of i003",
        b"nothing": b"",
        item(6): b"",
    }


# --- the weights --------------------------------------------------------------------------------


def test_the_sweep_trades_one_objective_for_the_other(model: Model) -> None:
    # 20 low ones that are only looked at, 10 high ones that are clicked.
    queries = [query(n, level=0) for n in range(20)] + [query(119 - n) for n in range(10)]
    found = pareto.trade_off(model, queries, OBJECTIVES, WEIGHTS, seed=3)
    assert found["pareto_queries"] == 30
    points = {tuple(point["weights"]): point["recall@50"] for point in found["pareto"]}
    assert len(points) == len(found["pareto"]) == 21
    # All 50 first are low: the 20 looks of 30 queries; clicks are looks, too.
    assert points[1.0, 0.0] == {"exposure": pytest.approx(20 / 30), "click": 0.0}
    assert points[0.0, 2.0] == {"exposure": pytest.approx(10 / 30), "click": 1.0}
    assert (0.0, 1.0) not in points, "the same direction as (0, 2)"


# --- the examples -------------------------------------------------------------------------------


def test_an_example_by_hand(model: Model) -> None:
    shown = query(119, history=tuple(range(3, 15)), user=b"caf\xe9")
    (example,) = examples.show([shown], model, WEIGHTS)
    assert example["user"] == "caf\ufffd"
    # Twelve events; the newest ten, newest first. Levels went 0, 1, 0, 1, ..
    assert [event["item"] for event in example["history"]] == [
        f"i{n:03d}" for n in range(14, 4, -1)
    ]
    assert [event["level"] for event in example["history"]] == [1, 0] * 5
    assert example["history"][-1] == {"item": "i005", "title": "caf\ufffd", "level": 0}
    assert example["history"][-2] == {"item": "i006", "title": "", "level": 1}
    assert example["targets"] == [{"item": "i119", "title": "Title of i119", "level": 1}]
    assert list(example["lists"]) == OBJECTIVES
    # 3 to 14 were seen.
    low, high = (example["lists"][name] for name in OBJECTIVES)
    assert [entry["item"] for entry in low] == [
        f"i{n:03d}" for n in (0, 1, 2, 15, 16, 17, 18, 19, 20, 21)
    ]
    assert [entry["item"] for entry in high] == [f"i{n:03d}" for n in range(119, 109, -1)]
    assert high[0]["title"] == "Title of i119"
    assert high[0]["score"] == pytest.approx(2 * 119 / 120)
    json.dumps(example)


def test_lists_that_end_early_are_shown_as_far_as_they_go(model: Model) -> None:
    (example,) = examples.show([query(2, history=tuple(range(3, N_ITEMS)))], model, WEIGHTS)
    assert [entry["item"] for entry in example["lists"]["exposure"]] == ["i000", "i001", "i002"]


def test_examples_are_moments_with_a_target_of_the_last_objective() -> None:
    queries = [query(n, level=int(n % 10 == 0), user=b"%d" % n) for n in range(60)]
    chosen = examples.choose(queries, 2, seed=1)
    assert len({q.user_id for q in chosen}) == 4
    assert all(q.target_levels == (1,) for q in chosen)
    assert examples.choose(queries, 2, seed=1) == chosen
    assert examples.choose(queries, 2, seed=2) != chosen
    # Too few of them: any moments will do.
    assert len(examples.choose(queries, 3, seed=1)) == 4
    assert len(examples.choose(queries[:3], 2, seed=1)) == 3
    assert examples.show([], None, WEIGHTS) == []  # type: ignore[arg-type]


# --- the index ----------------------------------------------------------------------------------


def test_the_index_is_measured_with_queries_of_every_weighting(toy: Path, model: Model) -> None:
    queries = [query(n % N_ITEMS) for n in range(30)]
    points = curve.measure(
        model,
        queries,
        toy / names.VECTORS_FILE,
        [[1.0, 0.0], [0.0, 2.0]],
        IndexSettings(reorder=400),
        seed=1,
    )
    shipped, *others = points
    assert set(shipped) == {
        "kind",
        "leaves_to_search_share",
        "reorder",
        "recall@100",
        "ms_per_query",
        "shipped",
    }
    assert (shipped["kind"], shipped["shipped"], shipped["recall@100"]) == ("brute_force", True, 1)
    assert {point["kind"] for point in others} == {"hashed"}
    assert [point["reorder"] for point in others] == [100, 400]
    assert others[1]["recall@100"] == 1.0, "all 120 are rescored"
    assert not any(point["shipped"] for point in others)
    assert all(point["ms_per_query"] > 0 for point in points)
    json.dumps(points)


def test_queries_are_fused_by_the_weightings_in_turn() -> None:
    import numpy as np

    blocks = np.ones((3, 3), np.float32)
    fused = curve._fused(blocks, [2, 1], [[1.0, 0.0], [0.5, 2.0]])
    assert fused.tolist() == [[1.0, 1.0, 0.0], [0.5, 0.5, 2.0], [1.0, 1.0, 0.0]]


# --- the executor -------------------------------------------------------------------------------


def execute(
    toy: Path, data: Data, serving_dir: Path, root: Path
) -> tuple[dict[str, Any], standard_artifacts.ModelEvaluation]:
    model = standard_artifacts.Model()
    model.uri = str(toy)
    blessing, measured = standard_artifacts.ModelBlessing(), standard_artifacts.ModelEvaluation()
    blessing.uri, measured.uri = str(root / "blessing"), str(root / "evaluation")
    Executor().Do(
        {
            spec.MODEL_KEY: [model],
            spec.EXAMPLES_KEY: [data.examples],
            spec.ANOMALIES_KEY: [data.anomalies],
            spec.CATALOGUE_ANOMALIES_KEY: [data.catalogue_anomalies],
        },
        {spec.EVALUATION_KEY: [measured], spec.BLESSING_KEY: [blessing]},
        {
            spec.SETTINGS_KEY: EvaluationSettings(minimum_lift=0.5).model_dump_json(),
            spec.OBJECTIVES_KEY: json.dumps(OBJECTIVES),
            spec.FEATURES_KEY: FeatureKinds(user={}, item={}).model_dump_json(),
            spec.INDEX_KEY: IndexSettings().model_dump_json(),
            spec.SEED_KEY: 5,
            spec.SERVING_DIR_KEY: str(serving_dir),
            spec.MODEL_NAME_KEY: "shop",
        },
    )
    return json.loads((root / "evaluation" / spec.REPORT_FILE).read_text()), measured


def pin(serving_dir: Path, version: int) -> None:
    """Writes what `csmf versions rollback` writes."""
    models = {
        name: ModelConfig(str(serving_dir / name), Specific((version,)))
        for name in ("shop", f"shop{names.STOCK_SUFFIX}")
    }
    (serving_dir / MODELS_FILE).write_text(to_text(models))


def test_the_report_of_a_model_by_hand(toy: Path, toy_data: Data, tmp_path: Path) -> None:
    report, measured = execute(toy, toy_data, tmp_path / "nothing pushed", tmp_path)
    assert report["blessed"], report["checks"]
    assert report["queries"] == 20
    # Ten moments look at a low number, which is on the list's first ten places; ten click on a
    # high one, which as an exposure is not among the first 50.
    assert report["metrics"]["exposure"]["recall@50"] == 0.5
    assert report["metrics"]["click"]["recall@10"] == 1.0
    assert report["weights"] == WEIGHTS
    assert report["ann_recall@100"] == 1.0
    assert report["baseline"] is report["baseline_version"] is report["baseline_slices"] is None
    # Nothing that is held out was in training: all are of the tail, and popularity finds nothing.
    for key, recall in (("slices", 1.0), ("popularity_slices", 0.0)):
        assert report[key]["click"]["item: tail"]["queries"] == 10.0
        assert report[key]["click"]["item: tail"]["recall@100"] == recall
        assert report[key]["click"]["user: under 10 events"]["recall@100"] == recall
    assert report["pareto_queries"] == 20
    assert {"weights": [1.0, 0.0], "recall@50": {"exposure": 0.5, "click": 0.0}} in report["pareto"]
    assert [point["shipped"] for point in report["index_curve"]].count(True) == 1
    assert len(report["examples"]) == 4
    assert all(example["targets"][0]["level"] == 1 for example in report["examples"])
    for key in ("metrics", "popularity", "checks"):
        assert json.loads(measured.get_string_custom_property(key)) == report[key]
    assert measured.get_int_custom_property("queries") == 20
    assert measured.get_float_custom_property("ann_recall@100") == 1.0
    assert not measured.has_custom_property("baseline")
    assert not measured.has_custom_property("baseline_version")


def test_a_candidate_is_compared_with_what_a_rollback_serves(
    toy: Path, toy_data: Data, tmp_path: Path
) -> None:
    serving_dir = tmp_path / "serving"
    for version in ("1", "2"):
        path = serving_dir / f"shop{names.STOCK_SUFFIX}" / version
        shutil.copytree(toy / names.STOCK_FLAVOUR, path)
    # Version 1 answers as the candidate does; version 2 serves both objectives with low numbers.
    manifest = path / names.MANIFEST_FILE
    bad = {"exposure": [1.0, 0.0], "click": [1.0, 0.0]}
    manifest.write_text(json.dumps({"objectives": OBJECTIVES, "weights": bad}))

    newest, measured = execute(toy, toy_data, serving_dir, tmp_path / "newest")
    assert newest["baseline_version"] == measured.get_int_custom_property("baseline_version") == 2
    assert newest["baseline"]["click"]["recall@50"] == 0.0
    assert newest["baseline_slices"]["click"]["item: tail"]["recall@50"] == 0.0

    pin(serving_dir, 1)
    pinned, measured = execute(toy, toy_data, serving_dir, tmp_path / "pinned")
    assert pinned["baseline_version"] == measured.get_int_custom_property("baseline_version") == 1
    assert pinned["baseline"] == pinned["metrics"]
    assert pinned["baseline_slices"] == pinned["slices"]
    assert json.loads(measured.get_string_custom_property("baseline")) == pinned["metrics"]
