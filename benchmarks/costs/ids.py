"""What an id costs in the served graph, and while Transform collects a vocabulary."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import tensorflow as tf

from benchmarks.costs.figures import Figure, Setting, cpu_seconds
from benchmarks.ingestion.log import numbered
from benchmarks.processes import resident_bytes
from models.counting import CountValues

_SERVED = 1_000_000
_COUNTED = 4_000_000
_BATCH = 4096  # tokens that Transform hands over at once
_FEW = 1000  # loaded first, to wake the libraries up
_KINDS = {"table": "StaticHashTable, loaded", "strings": "string variable, loaded"}


class _Table(tf.Module):
    """Ids -> places, as the graph of Transform looks them up."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        initializer = tf.lookup.TextFileInitializer(
            str(file),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )
        self.table = tf.lookup.StaticHashTable(initializer, -1)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def places(self, ids: tf.Tensor) -> tf.Tensor:
        """int64 [n]."""
        return self.table.lookup(ids)


class _Strings(tf.Module):
    """Places -> ids, as the recommender keeps them."""

    def __init__(self, ids: pa.StringArray) -> None:
        super().__init__()
        values = np.array(ids.cast(pa.binary()).to_pylist(), object)
        self.ids = tf.Variable(values, trainable=False)


def export(setting: Setting) -> list[Figure]:
    """Writes what `load` reads; nothing is measured."""
    for count in (_FEW, setting.size(_SERVED)):
        ids = _ids(count, setting.seed)
        file = setting.place / f"ids-{count}"
        file.write_text("\n".join([*ids.to_pylist(), ""]))
        for kind, module in (("table", _Table(file)), ("strings", _Strings(ids))):
            tf.saved_model.save(module, str(setting.place / f"{kind}-{count}"))
    return []


def load(setting: Setting) -> list[Figure]:
    """Resident memory that the loaded graphs add."""
    count = setting.size(_SERVED)
    figures, kept = [], []
    for kind, what in _KINDS.items():
        kept.append(tf.saved_model.load(str(setting.place / f"{kind}-{_FEW}")))
        before = resident_bytes()
        kept.append(tf.saved_model.load(str(setting.place / f"{kind}-{count}")))
        added = resident_bytes() - before
        figures.append(Figure("P5", f"{what}, {count:,} ids", "bytes per id", added / count))
    return figures


def counted(setting: Setting) -> list[Figure]:
    """`CountValues` on ids that all differ, in batches, to the ordered table."""
    count = setting.size(_COUNTED)
    ids = _ids(count, setting.seed).cast(pa.large_binary())
    analyzer = CountValues()
    tables: list[pa.Table] = []

    def run() -> None:
        accumulator = analyzer.create_accumulator()
        for start in range(0, count, _BATCH):
            accumulator = analyzer.add_input(accumulator, ids.slice(start, _BATCH))
        tables.append(analyzer.extract_output(accumulator))

    before = resident_bytes()
    seconds = cpu_seconds(run)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if len(tables[0]) != count:
        raise RuntimeError(f"{len(tables[0]):,} ids were counted, {count:,} were given")
    what = f"CountValues, {count:,} different ids"
    return [
        Figure("P6", f"{what}: memory at the peak", "bytes per id", (peak - before) / count),
        Figure("P6", what, "CPU us per id", 1e6 * seconds / count),
    ]


def _ids(count: int, seed: int) -> pa.StringArray:
    """Different ids of nine bytes, in no order."""
    return numbered("id", np.random.default_rng(seed).permutation(count))
