"""Executor of RetrievalEvaluator."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.types.artifact import Artifact

from components.examples import read_split
from components.retrieval_evaluator import evaluate, gate, spec
from components.retrieval_evaluator.settings import LONGEST_LIST, EvaluationSettings
from models.features import FeatureKinds
from models.queries import Model, Query, build_queries, popularity_lists
from schemas import names
from schemas.versions import newest_version

_log = logging.getLogger("csmf")

Weights = dict[str, list[float]]  # objective -> request weights it is measured at


class Executor(base_executor.BaseExecutor):
    """Measures the candidate, popularity and the latest blessed model on the same queries."""

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes evaluation and blessing. A model that fails is a result, not an exception.

        Args:
          input_dict:
            - model: Model of IndexBuilder.
            - examples: Examples of InteractionGen, splits train and eval.
            - anomalies, catalogue_anomalies: ExampleAnomalies.
          output_dict:
            - evaluation: ModelEvaluation, `evaluation.json`.
            - blessing: ModelBlessing, custom property `blessed`, reasons in `failed`.
          exec_properties: see `spec`.
        """
        settings = EvaluationSettings.parse(json.loads(exec_properties[spec.SETTINGS_KEY]))
        objectives: list[str] = json.loads(exec_properties[spec.OBJECTIVES_KEY])
        features = FeatureKinds.parse(json.loads(exec_properties[spec.FEATURES_KEY])).user
        examples = input_dict[spec.EXAMPLES_KEY]
        model_uri = artifact_utils.get_single_uri(input_dict[spec.MODEL_KEY])

        evaluation = Evaluation(
            settings,
            objectives,
            _sample(
                build_queries(read_split(examples, names.EVAL_SPLIT), features),
                settings.max_queries,
                exec_properties[spec.SEED_KEY],
            ),
            _train_counts(read_split(examples, names.TRAIN_SPLIT), len(objectives)),
        )
        _log.info("evaluating on %d held-out moments", len(evaluation.queries))
        import scann  # noqa: F401 - registers the ops that the scann flavour needs

        candidate = Model(f"{model_uri}/{names.SCANN_FLAVOUR}", features)
        weights = evaluation.weights(candidate.weights)
        served = evaluation.lists(candidate, weights)
        exact = Model(f"{model_uri}/{names.STOCK_FLAVOUR}", features)
        path = latest_pushed(
            Path(exec_properties[spec.SERVING_DIR_KEY]), exec_properties[spec.MODEL_NAME_KEY]
        )
        baseline = None if path is None else Model(str(path), features)
        report = evaluation.report(
            served,
            evaluation.ann_recall(served, exact, weights),
            None
            if baseline is None
            else evaluation.lists(baseline, evaluation.weights(baseline.weights)),
            [
                *_anomalies(input_dict[spec.ANOMALIES_KEY]),
                *_anomalies(input_dict[spec.CATALOGUE_ANOMALIES_KEY]),
            ],
        )
        report["weights"] = weights
        report["baseline_version"] = None if path is None else int(path.name)
        _write(report, output_dict)


class Evaluation:
    """The queries of one evaluation and what is measured on them."""

    def __init__(
        self,
        settings: EvaluationSettings,
        objectives: list[str],
        queries: list[Query],
        train_counts: list[Counter[bytes]],
    ):
        """`train_counts`: for each level, how many training events on an item reach it."""
        self.queries = queries
        self._settings = settings
        self._objectives = objectives
        self._counts = train_counts

    def weights(self, own: dict[str, list[float]]) -> Weights:
        """Request weights at which a model is measured: the configured ones, else its own.

        Args:
          own: the weights of the model's manifest. Those of objectives that are not measured are
            left out, and a model of other objectives keeps its own: configured ones do not fit.
        """
        measured = {name: own[name] for name in self._objectives if name in own}
        if list(own) == self._objectives:
            measured |= {name: list(given) for name, given in self._settings.weights.items()}
        return measured

    def lists(self, model: Model, weights: Weights) -> dict[str, Any]:
        """Objective -> the model's lists under that objective's weights."""
        return {name: model.recommend(self.queries, given) for name, given in weights.items()}

    def ann_recall(
        self, served: dict[str, Any], exact: Model, weights: Weights
    ) -> dict[str, float]:
        """Objective -> share of the exact top 100 that the index found."""
        chosen = range(min(len(self.queries), self._settings.ann_queries))
        queries = [self.queries[i] for i in chosen]
        return {
            name: evaluate.mean_overlap(
                [served[name][i] for i in chosen],
                list(exact.recommend(queries, given)),
                LONGEST_LIST,
            )
            for name, given in weights.items()
        }

    def report(
        self,
        served: dict[str, Any],
        ann_recall: dict[str, float],
        baseline: dict[str, Any] | None,
        anomalies: list[str],
    ) -> dict[str, Any]:
        """Everything measured, and the gate's verdict."""
        metrics = self._metrics(served)
        popularity = self._metrics(
            {
                name: list(popularity_lists(self._counts[level], self.queries, LONGEST_LIST))
                for level, name in enumerate(self._objectives)
            }
        )
        against = None if baseline is None else self._metrics(baseline)
        lowest = min(ann_recall.values())
        checks = gate.checks(self._settings, metrics, popularity, against, lowest, len(anomalies))
        ranks = self._popularity_rank()
        return {
            "blessed": all(check.passed for check in checks),
            "checks": [dataclasses.asdict(check) for check in checks],
            "queries": len(self.queries),
            "metrics": metrics,
            "popularity": popularity,
            "baseline": against,
            "slices": {
                name: evaluate.slice_metrics(self.queries, served[name], level, ranks)
                for level, name in enumerate(self._objectives)
            },
            "ann_recall@100": lowest,
            "distinct_items_in_top_10": {
                name: len({item for row in lists for item in row[:10] if item})
                for name, lists in served.items()
            },
            "anomalies": anomalies,
        }

    def _metrics(self, lists: dict[str, Any]) -> gate.Metrics:
        return {
            name: evaluate.mean_metrics(
                list(lists[name]), [query.targets_at(level) for query in self.queries]
            )
            for level, name in enumerate(self._objectives)
            if name in lists
        }

    def _popularity_rank(self) -> dict[bytes, float]:
        ranking = sorted(self._counts[0], key=lambda item: (-self._counts[0][item], item))
        return {item: place / len(ranking) for place, item in enumerate(ranking)}


def latest_pushed(serving_dir: Path, model_name: str) -> Path | None:
    """Newest version of the stock flavour in the serving directory, None if there is none."""
    return newest_version(serving_dir / f"{model_name}{names.STOCK_SUFFIX}")


def _sample(queries: list[Query], limit: int, seed: int) -> list[Query]:
    if len(queries) <= limit:
        return queries
    chosen = np.random.default_rng(seed).choice(len(queries), limit, replace=False)
    return [queries[i] for i in sorted(chosen)]


def _train_counts(records: Iterable[bytes], n_objectives: int) -> list[Counter[bytes]]:
    counts: list[Counter[bytes]] = [Counter() for _ in range(n_objectives)]
    for record in records:
        features = tf.train.Example.FromString(record).features.feature
        items = features[names.ITEM_IDS].bytes_list.value
        targets = features[names.TARGET_LEVELS].int64_list.value
        for item, reached in zip(items, targets, strict=True):
            for level in range(reached + 1):
                counts[level][item] += 1
    return counts


def _anomalies(artifacts: list[Artifact]) -> list[str]:
    """One line per anomaly: split, feature and TFDV's description."""
    artifact = artifact_utils.get_single_instance(artifacts)
    lines = []
    for split in artifact_utils.decode_split_names(artifact.split_names):
        path = Path(artifact_utils.get_split_uri([artifact], split)) / "SchemaDiff.pb"
        anomalies = anomalies_pb2.Anomalies.FromString(path.read_bytes())
        lines += [
            f"{split}: {feature}: {info.description}"
            for feature, info in sorted(anomalies.anomaly_info.items())
        ]
        if anomalies.HasField("dataset_anomaly_info"):
            lines.append(f"{split}: {anomalies.dataset_anomaly_info.description}")
    return lines


def _write(report: dict[str, Any], output_dict: dict[str, list[Artifact]]) -> None:
    evaluation = artifact_utils.get_single_instance(output_dict[spec.EVALUATION_KEY])
    directory = Path(evaluation.uri)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / spec.REPORT_FILE).write_text(json.dumps(report, indent=2), encoding="utf-8")
    for objective, metrics in report["metrics"].items():
        evaluation.set_float_custom_property(f"{objective} recall@50", metrics["recall@50"])
    evaluation.set_float_custom_property("ann_recall@100", report["ann_recall@100"])

    blessing = artifact_utils.get_single_instance(output_dict[spec.BLESSING_KEY])
    failed = [check["name"] for check in report["checks"] if not check["passed"]]
    directory = Path(blessing.uri)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ("BLESSED" if report["blessed"] else "NOT_BLESSED")).touch()
    blessing.set_int_custom_property("blessed", int(report["blessed"]))
    blessing.set_string_custom_property("failed", "; ".join(failed))
