"""How often values occur, counted on Arrow tables: Beam hands over batches, never single values."""

from __future__ import annotations

from collections.abc import Iterable

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

COUNTS = pa.schema({"value": pa.large_binary(), "count": pa.int64()})

_ROWS_HELD_BACK = 1 << 20  # of tables to be added up together


class CountValues(beam.CombineFn):
    """Arrays of bytes -> a table COUNTS, the most frequent value first.

    Values of one frequency stand in descending order, as TensorFlow Transform orders vocabularies
    and TensorFlow Data Validation the most frequent values.
    """

    def create_accumulator(self) -> list[pa.Table]:
        """No table yet. Every table of a list has each value once."""
        return []

    def add_input(self, accumulator: list[pa.Table], values: pa.LargeBinaryArray) -> list[pa.Table]:
        """Adds a batch of values."""
        counted = values.value_counts()
        columns = [counted.field("values"), counted.field("counts")]
        accumulator.append(pa.Table.from_arrays(columns, schema=COUNTS))
        held_back = sum(table.num_rows for table in accumulator[1:])
        if held_back > max(_ROWS_HELD_BACK, accumulator[0].num_rows):
            return self.compact(accumulator)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[list[pa.Table]]) -> list[pa.Table]:
        """Adds up what bundles have found."""
        return self.compact([table for tables in accumulators for table in tables])

    def compact(self, accumulator: list[pa.Table]) -> list[pa.Table]:
        """One table, or none."""
        return accumulator if len(accumulator) < 2 else [_added_up(accumulator)]

    def extract_output(self, accumulator: list[pa.Table]) -> pa.Table:
        """The table in its order."""
        (table,) = self.compact(accumulator) or [COUNTS.empty_table()]
        order = pc.sort_indices(table, [("count", "descending"), ("value", "descending")])
        return table.take(order)


def _added_up(tables: list[pa.Table]) -> pa.Table:
    grouped = pa.concat_tables(tables).group_by("value").aggregate([("count", "sum")])
    return pa.Table.from_arrays(
        [grouped.column("value"), grouped.column("count_sum")], schema=COUNTS
    )
