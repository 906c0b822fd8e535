"""How far the data have moved since the previous span, measured by TensorFlow Data Validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2

from pipeline.metadata.runs import Run, list_runs, read_run
from pipeline.report.data import Drift, FeatureDrift, Known, Missing, Part
from pipeline.report.sources import parsed
from pipeline.report.statistics import statistics_file
from schemas.names import CATALOGUE_SPLIT, TRAIN_SPLIT

if TYPE_CHECKING:
    from ml_metadata import MetadataStore

_NODE, _KEY = "StatisticsGen", "statistics"
_SPLITS = (TRAIN_SPLIT, CATALOGUE_SPLIT)
# Words for the measures, by the enum of TensorFlow Metadata.
_MEASURES = {"L_INFTY": "L-infinity", "JENSEN_SHANNON_DIVERGENCE": "Jensen-Shannon"}
_ANY = 1e-9  # TFDV measures only where a threshold is set


def drift(store: MetadataStore, run: Run, artifact: Part[Any]) -> Part[Drift]:
    """Compares the statistics of a run with those of the newest earlier run that has others.

    Args:
      store: ML Metadata.
      run: whose data are looked at.
      artifact: its ExampleStatistics, or why there is none.
    """
    if isinstance(artifact, Missing):
        return artifact
    previous = _previous(store, run, artifact.value.id)
    if previous is None:
        return Missing(
            "This is the first span of this pipeline: there is nothing to compare it with."
        )
    run_id, before = previous
    features: list[FeatureDrift] = []
    for split in _SPLITS:
        pair = [
            parsed(statistics_pb2.DatasetFeatureStatisticsList, statistics_file(either, split))
            for either in (artifact.value, before)
        ]
        gone = [either.reason for either in pair if isinstance(either, Missing)]
        if gone:
            return Missing(f"Run {run_id} had the previous span, but {' '.join(gone)}")
        now, then = (either.value for either in pair if isinstance(either, Known))
        try:
            features += measure(split, now, then)
        except (RuntimeError, ValueError) as error:  # how TFDV refuses statistics
            return Missing(f"Run {run_id} had the previous span, but TFDV says: {error}")
    return Known(Drift(run_id, tuple(sorted(features, key=lambda feature: -feature.value))))


def measure(
    split: str,
    now: statistics_pb2.DatasetFeatureStatisticsList,
    then: statistics_pb2.DatasetFeatureStatisticsList,
) -> list[FeatureDrift]:
    """The distance of every feature that both have: L-infinity if text, else Jensen-Shannon."""
    # Not at the top: brings TensorFlow in, which a report without a previous span need not wait for
    import tensorflow_data_validation as tfdv

    anomalies = tfdv.validate_statistics(now, _comparing(now), previous_statistics=then)
    return [
        FeatureDrift(split, "/".join(info.path.step), _name(measurement.type), measurement.value)
        for info in anomalies.drift_skew_info
        for measurement in info.drift_measurements
    ]


def _previous(store: MetadataStore, run: Run, artifact_id: int) -> tuple[str, Any] | None:
    """(run, its statistics) of the newest earlier run of the pipeline that has others."""
    listed = [other.id for other in list_runs(store) if other.pipeline == run.pipeline]
    for earlier in listed[listed.index(run.id) + 1 :]:
        node = read_run(store, earlier).nodes.get(_NODE)
        if node is not None and node.done and _KEY in node.outputs:
            found = node.outputs[_KEY]
            if found.id != artifact_id:
                return earlier, found
    return None


def _comparing(statistics: statistics_pb2.DatasetFeatureStatisticsList) -> schema_pb2.Schema:
    """A schema that asks for nothing but the comparison.

    Not the pipeline's own: its domains are judged by the ExampleValidators.
    """
    schema = schema_pb2.Schema()
    for dataset in statistics.datasets:
        for feature in dataset.features:
            known = schema.feature.add(name="/".join(feature.path.step))
            if feature.WhichOneof("stats") == "num_stats":
                kind = statistics_pb2.FeatureNameStatistics
                known.type = schema_pb2.INT if feature.type == kind.INT else schema_pb2.FLOAT
                known.drift_comparator.jensen_shannon_divergence.threshold = _ANY
            else:
                known.type = schema_pb2.BYTES
                known.drift_comparator.infinity_norm.threshold = _ANY
    return schema


def _name(measure_type: int) -> str:
    name = anomalies_pb2.DriftSkewInfo.Measurement.Type.Name(measure_type)
    return _MEASURES.get(name, name)
