"""The most frequent values of text features, and how many different ones there are.

As TensorFlow Data Validation's TopKUniquesStatsGenerator, exactly, which gives Beam every different
value of every batch. Its faster sketches are none: they count no more than 1,024 values exactly.
"""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
from tensorflow_data_validation.utils import top_k_uniques_stats_util as protos
from tensorflow_metadata.proto.v0 import statistics_pb2

from models.counting import CountValues

Slice = str | None  # of the examples; None = all of them
Described = tuple[Slice, statistics_pb2.DatasetFeatureStatistics]


class TextValues(beam.PTransform):
    """(slice, record batch) -> (slice, statistics), one element for each text feature."""

    def __init__(self, top_values: int, frequency_threshold: int, ranks: int) -> None:
        """Says how much to tell.

        Args:
          top_values: of the most frequent values, by name.
          frequency_threshold: a value occurs at least so often to be among them.
          ranks: buckets of the histogram of frequencies by rank.
        """
        super().__init__()
        self._top_values = top_values
        self._frequency_threshold = frequency_threshold
        self._ranks = ranks

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """Counts and describes."""
        return (
            batches
            | "Values" >> beam.FlatMap(_text_values)
            | "Count" >> beam.CombinePerKey(CountValues())
            | "Describe" >> beam.FlatMap(self._describe)
        )

    def _describe(self, element: tuple[tuple[Slice, str], pa.Table]) -> Iterator[Described]:
        (slice_key, feature), counts = element
        first = counts.slice(0, max(self._top_values, self._ranks))
        most_frequent = [
            protos.FeatureValueCount(value, count)
            for value, count in zip(*(column.to_pylist() for column in first.columns), strict=True)
        ]
        yield (
            slice_key,
            protos.make_dataset_feature_stats_proto_topk_single(
                feature_path_tuple=(feature,),
                value_count_list=most_frequent,
                is_weighted_stats=False,
                num_top_values=self._top_values,
                frequency_threshold=self._frequency_threshold,
                num_rank_histogram_buckets=self._ranks,
            ),
        )
        yield (
            slice_key,
            protos.make_dataset_feature_stats_proto_unique_single(
                feature_path_tuple=(feature,), num_uniques=counts.num_rows
            ),
        )


def _text_values(
    element: tuple[Slice, pa.RecordBatch],
) -> Iterator[tuple[tuple[Slice, str], pa.LargeBinaryArray]]:
    slice_key, batch = element
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        # Features that no example of the batch has are of the type null.
        if pa.types.is_null(column.type):
            continue
        kind = column.type.value_type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            yield (slice_key, name), column.flatten().cast(pa.large_binary())
