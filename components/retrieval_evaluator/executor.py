"""Executor of RetrievalEvaluator."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.types.artifact import Artifact

from components.artifacts import compact_json
from components.examples import read_split
from components.paths import local_path
from components.retrieval_evaluator import curve, examples, pareto, spec
from components.retrieval_evaluator.evaluation import Evaluation
from components.retrieval_evaluator.sampling import sample
from components.retrieval_evaluator.served import served_version
from components.retrieval_evaluator.settings import EvaluationSettings
from models.features import FeatureKinds
from models.queries import Model, build_queries
from models.settings import IndexSettings
from schemas import names

_log = logging.getLogger("csmf")


class Executor(base_executor.BaseExecutor):
    """Measures the candidate, popularity and the served model on the same queries."""

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
            - evaluation: ModelEvaluation, `evaluation.json`; what the gate decided on is in custom
              properties, too.
            - blessing: ModelBlessing, custom property `blessed`, reasons in `failed`.
          exec_properties: see `spec`.

        Raises:
          ConfigFileError: the file that says what is served is not understood.
        """
        settings = EvaluationSettings.parse(json.loads(exec_properties[spec.SETTINGS_KEY]))
        objectives: list[str] = json.loads(exec_properties[spec.OBJECTIVES_KEY])
        features = FeatureKinds.parse(json.loads(exec_properties[spec.FEATURES_KEY])).user
        seed: int = exec_properties[spec.SEED_KEY]
        records = input_dict[spec.EXAMPLES_KEY]
        model = local_path(artifact_utils.get_single_uri(input_dict[spec.MODEL_KEY]))

        evaluation = Evaluation(
            settings,
            objectives,
            sample(
                build_queries(read_split(records, names.EVAL_SPLIT), features),
                settings.max_queries,
                seed,
            ),
            _train_counts(read_split(records, names.TRAIN_SPLIT), len(objectives)),
        )
        _log.info("evaluating on %d held-out moments", len(evaluation.queries))
        import scann  # noqa: F401 - registers the ops that the scann flavour needs

        candidate = Model(str(model / names.SCANN_FLAVOUR), features)
        weights = evaluation.weights(candidate.weights)
        served = evaluation.lists(candidate, weights)
        exact = Model(str(model / names.STOCK_FLAVOUR), features)
        path = served_version(
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
        queries = evaluation.queries
        report |= pareto.trade_off(candidate, queries, objectives, weights, seed)
        report["index_curve"] = curve.measure(
            candidate,
            queries,
            model / names.VECTORS_FILE,
            list(weights.values()),
            IndexSettings.parse(json.loads(exec_properties[spec.INDEX_KEY])),
            seed,
        )
        report["examples"] = examples.show(
            examples.choose(queries, len(objectives), seed), candidate, weights
        )
        _write(report, output_dict)


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
        path = local_path(artifact_utils.get_split_uri([artifact], split)) / "SchemaDiff.pb"
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
    directory = local_path(evaluation.uri)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / spec.REPORT_FILE).write_text(json.dumps(report, indent=2), encoding="utf-8")
    _describe(evaluation, report)

    blessing = artifact_utils.get_single_instance(output_dict[spec.BLESSING_KEY])
    failed = [check["name"] for check in report["checks"] if not check["passed"]]
    directory = local_path(blessing.uri)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ("BLESSED" if report["blessed"] else "NOT_BLESSED")).touch()
    blessing.set_int_custom_property("blessed", int(report["blessed"]))
    blessing.set_string_custom_property("failed", "; ".join(failed))


def _describe(evaluation: Artifact, report: dict[str, Any]) -> None:
    """Notes in ML Metadata what the gate decided on, so that lineage needs no file."""
    for objective, metrics in report["metrics"].items():
        evaluation.set_float_custom_property(f"{objective} recall@50", metrics["recall@50"])
    evaluation.set_float_custom_property("ann_recall@100", report["ann_recall@100"])
    evaluation.set_int_custom_property("queries", report["queries"])
    for key in ("metrics", "popularity", "baseline", "checks"):
        if report[key] is not None:
            evaluation.set_string_custom_property(key, compact_json(report[key]))
    if report.get("baseline_version") is not None:
        evaluation.set_int_custom_property("baseline_version", report["baseline_version"])
