"""Activity and popularity, out of the statistics that StatisticsGen wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorflow_metadata.proto.v0 import statistics_pb2

from pipeline.report.data import Activity, Distributions, Known, Missing, Part, Popularity
from pipeline.report.sources import parsed
from schemas.names import EVAL_SPLIT, ITEM_IDS, TRAIN_SPLIT

_FILE = "FeatureStats.pb"
_TOP = 20


def statistics_file(artifact: Any, split: str) -> Path:
    """Where TFX puts the statistics of a split."""
    return Path(artifact.uri) / f"Split-{split}" / _FILE


def distributions(artifact: Part[Any]) -> Part[Distributions]:
    """Reads the statistics of both timeline splits.

    Args:
      artifact: ExampleStatistics, or why there is none.
    """
    if isinstance(artifact, Missing):
        return artifact
    activity: list[Activity] = []
    popularity: list[Popularity] = []
    reasons: list[str] = []
    for split in (TRAIN_SPLIT, EVAL_SPLIT):
        items = _feature(statistics_file(artifact.value, split), ITEM_IDS)
        if isinstance(items, Missing):
            reasons.append(items.reason)
            continue
        if not items.value.string_stats.rank_histogram.buckets:
            reasons.append(f"The split {split} has no event.")
            continue
        activity.append(activity_of(split, items.value.string_stats.common_stats))
        popularity.append(popularity_of(split, items.value.string_stats))
    if not activity:
        return Missing(" ".join(reasons))
    return Known(Distributions(tuple(activity), tuple(popularity)), " ".join(reasons))


def activity_of(split: str, common: statistics_pb2.CommonStatistics) -> Activity:
    """How many events the timelines have: of the histogram of the lengths of `item_ids`."""
    buckets = common.num_values_histogram.buckets
    total = sum(bucket.sample_count for bucket in buckets)
    below = 0.0
    steps = [(float(common.min_num_values), 0.0)]
    for bucket in buckets:
        below += bucket.sample_count
        steps.append((bucket.high_value, below / total))
    return Activity(split, int(common.num_non_missing), int(common.tot_num_values), tuple(steps))


def popularity_of(split: str, items: statistics_pb2.StringStatistics) -> Popularity:
    """How often which item occurs: of the histogram of ranks of `item_ids`."""
    ranked = sorted(items.rank_histogram.buckets, key=lambda bucket: bucket.low_rank)
    return Popularity(
        split,
        int(items.unique),
        int(items.common_stats.tot_num_values),
        tuple(bucket.sample_count for bucket in ranked),
        tuple((bucket.label, int(bucket.sample_count)) for bucket in ranked[:_TOP]),
    )


def _feature(path: Path, name: str) -> Part[statistics_pb2.FeatureNameStatistics]:
    statistics = parsed(statistics_pb2.DatasetFeatureStatisticsList, path)
    if isinstance(statistics, Missing):
        return statistics
    for dataset in statistics.value.datasets:
        for feature in dataset.features:
            if list(feature.path.step) == [name]:
                return Known(feature)
    return Missing(f"{path} has no feature {name!r}.")
