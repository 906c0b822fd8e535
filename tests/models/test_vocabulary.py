"""Counting on Arrow tables, and vocabulary files beside those of TensorFlow Transform."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to

from models import counting, vocabulary
from models.counting import COUNTS, CountValues
from models.vocabulary import NO_TOKEN, write_vocabulary


def array(*values: bytes) -> pa.LargeBinaryArray:
    return pa.array(values, pa.large_binary())


def table(**counts: int) -> pa.Table:
    values = [name.encode() for name in counts]
    return pa.table([pa.array(values, pa.large_binary()), list(counts.values())], COUNTS)


def test_the_most_frequent_value_comes_first_and_ties_in_descending_order() -> None:
    with beam.Pipeline() as pipeline:
        counts = (
            pipeline
            | beam.Create([array(b"b", b"a", b"b"), array(), array(b"c", b"\xff", b"b", b"a")])
            | beam.CombineGlobally(CountValues())
            | beam.Map(lambda found: list(zip(*found.to_pydict().values(), strict=True)))
        )
        assert_that(counts, equal_to([[(b"b", 3), (b"a", 2), (b"\xff", 1), (b"c", 1)]]))


def test_nothing_to_count_is_an_empty_table() -> None:
    combine = CountValues()
    assert combine.extract_output(combine.create_accumulator()) == COUNTS.empty_table()
    assert combine.merge_accumulators([]) == combine.compact([]) == []


def test_what_is_held_back_is_added_up_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_ROWS_HELD_BACK", 50)
    draw, combine = random.Random(1), CountValues()
    values = [b"%d" % int(draw.paretovariate(0.7)) for _ in range(3000)]
    accumulators, held = [], 0
    for start in range(0, len(values), 1000):
        accumulator = combine.create_accumulator()
        for first in range(start, start + 1000, 20):
            accumulator = combine.add_input(accumulator, array(*values[first : first + 20]))
            held = max(held, sum(part.num_rows for part in accumulator[1:]))
        accumulators.append(accumulator)
    found = combine.extract_output(combine.merge_accumulators(accumulators)).to_pydict()
    counted = Counter(values)
    assert held <= max(50, len(counted)) + 20
    expected = sorted(counted.items(), key=lambda pair: (pair[1], pair[0]), reverse=True)
    assert list(zip(found["value"], found["count"], strict=True)) == expected


@pytest.mark.parametrize(
    ("counts", "content"),
    [
        (table(b=2, a=1), b"b\na\n"),
        (table(**{"b": 2, "": 2, "x\ny": 1, "x\r": 1, "a b": 1}), b"b\na b\n"),
        (table(**{"": 2}), NO_TOKEN + b"\n"),
        (COUNTS.empty_table(), NO_TOKEN + b"\n"),
    ],
)
def test_the_file_has_one_usable_value_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: pa.Table, content: bytes
) -> None:
    monkeypatch.setattr(vocabulary, "_TOKENS_AT_A_TIME", 1)
    path = write_vocabulary(counts, str(tmp_path / "new"), "items")
    assert isinstance(path, np.ndarray)
    assert str(path) == str(tmp_path / "new" / "items")
    assert Path(str(path)).read_bytes() == content


@pytest.mark.slow
def test_vocabularies_and_indices_are_those_of_tensorflow_transform(tmp_path: Path) -> None:
    import tensorflow as tf
    import tensorflow_transform as tft
    import tensorflow_transform.beam as tft_beam
    from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

    from models.vocabulary import compute_and_apply

    keys = ("many", "odd", "none")

    def ours(inputs: dict[str, Any]) -> dict[str, Any]:
        return {key: compute_and_apply(inputs[key], key) for key in keys}

    def theirs(inputs: dict[str, Any]) -> dict[str, Any]:
        return {
            key: tft.compute_and_apply_vocabulary(
                inputs[key], vocab_filename=key, num_oov_buckets=1
            )
            for key in keys
        }

    draw = random.Random(2)
    odd = [b"", b"two\nlines", b"return\r", "jalapeño".encode(), b"\xff\xfe", b" ", b"plain"]
    rows = [
        {
            "many": [b"i%d" % int(draw.paretovariate(0.6)) for _ in range(draw.randrange(5))],
            "odd": draw.choices(odd, k=draw.randrange(3)),
            "none": [],
        }
        for _ in range(3000)
    ]
    spec = {key: tf.io.VarLenFeature(tf.string) for key in keys}
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(spec))
    results = []
    for name, function in (("ours", ours), ("theirs", theirs)):
        with tft_beam.Context(temp_dir=str(tmp_path / f"{name}-temp")):
            (data, _), transform_fn = (rows, metadata) | tft_beam.AnalyzeAndTransformDataset(
                function
            )
            _ = transform_fn | tft_beam.WriteTransformFn(str(tmp_path / name))
        output = tft.TFTransformOutput(str(tmp_path / name))
        files = {key: Path(output.vocabulary_file_by_name(key)).read_bytes() for key in keys}
        sizes = {key: output.vocabulary_size_by_name(key) for key in keys}
        indices = sorted(
            tuple(tuple(np.asarray(row[key]).tolist()) for key in keys) for row in data
        )
        results.append((files, sizes, indices, output.transformed_feature_spec()))
    one, two = results
    assert one == two
    assert one[1]["many"] > 300
    assert one[0]["odd"].count(b"\n") == one[1]["odd"] == 4
    assert one[0]["none"] == NO_TOKEN + b"\n"
