"""tf.Examples in record batches, against TensorFlow's own reading of the same files."""

from __future__ import annotations

import gzip
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest
import tensorflow as tf
from apache_beam.testing.util import assert_that, equal_to
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from components import record_batches
from components.interaction_gen.records import frames, gzip_member
from components.record_batches import BatchedExamples, WriteBatches, read_batches

SCHEMA = text_format.Parse(
    'feature { name: "id" type: BYTES } feature { name: "times" type: INT }', schema_pb2.Schema()
)


def example(number: int) -> bytes:
    features = {
        "id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"u%d" % number])),
        "times": tf.train.Feature(int64_list=tf.train.Int64List(value=range(number % 4))),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write(path: Path, records: list[bytes], members: int = 1) -> Path:
    parts = [records[start::members] for start in range(members)]
    path.write_bytes(
        b"".join(
            gzip_member(b"".join(piece for frame in frames(part) for piece in frame))
            for part in parts
        )
    )
    return path


def read(path: Path) -> list[bytes]:
    return list(tf.data.TFRecordDataset(str(path), "GZIP").as_numpy_iterator())


def test_all_records_are_read_whatever_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [b"x" * (number * 7 % 91) for number in range(500)]
    path = write(tmp_path / "file.gz", records, members=3)
    expected = read(path)
    assert sorted(expected) == sorted(records)
    for size in (1, 7, 64, 1 << 20):
        monkeypatch.setattr(record_batches, "_READ_BYTES", size)
        assert [record for batch in read_batches(str(path)) for record in batch] == expected


def test_batches_are_bounded_in_records_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_batches, "BATCH_RECORDS", 4)
    path = write(tmp_path / "file.gz", [b"x"] * 10)
    assert [len(batch) for batch in read_batches(str(path))] == [4, 4, 2]
    monkeypatch.setattr(record_batches, "BATCH_BYTES", 250)
    path = write(tmp_path / "file.gz", [b"x" * 100] * 5)
    assert [len(batch) for batch in read_batches(str(path))] == [3, 2]


@pytest.mark.parametrize("content", [b"", gzip_member(b"")])
def test_a_file_without_records_has_no_batch(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.gz").write_bytes(content)
    assert list(read_batches(str(tmp_path / "file.gz"))) == []


def test_a_file_that_ends_within_a_record_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "file.gz", [b"one", b"two"])
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-3]))
    with pytest.raises(ValueError, match=r"file\.gz ends within a record: it was cut off"):
        list(read_batches(str(path)))


def test_what_is_damaged_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "file.gz", [b"one" * 50, b"two" * 50])
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # of the checksum of the compression
    path.write_bytes(bytes(content))
    with pytest.raises(Exception, match=r"CRC|check"):
        list(read_batches(str(path)))


def test_columns_are_those_that_tfx_reads(tmp_path: Path) -> None:
    for file in range(3):
        write(tmp_path / f"data-{file}.gz", [example(number) for number in range(file, 40, 3)])
    ours = BatchedExamples(str(tmp_path / "data-*"), schema=SCHEMA).Project(["times"])
    with beam.Pipeline() as pipeline:
        batches = pipeline | ours.BeamSource()
        rows = batches | beam.FlatMap(lambda batch: batch.to_pylist())
        expected = [{"times": list(range(number % 4))} for number in range(40)]
        assert_that(rows, equal_to(expected))


def test_written_files_hold_the_examples(tmp_path: Path) -> None:
    times = pa.array([[1], [], [2, 3]], pa.large_list(pa.int64()))
    batch = pa.RecordBatch.from_arrays([times], ["times"])
    with beam.Pipeline() as pipeline:
        _ = (
            pipeline
            | beam.Create([(batch, {}), (batch.slice(2), {})])
            | WriteBatches(SCHEMA, str(tmp_path / "Split-train" / "transformed"))
        )
    files = sorted((tmp_path / "Split-train").iterdir())
    assert {file.name[:11] for file in files} == {"transformed"}
    assert {file.suffix for file in files} == {".gz"}
    found = [
        tuple(tf.train.Example.FromString(record).features.feature["times"].int64_list.value)
        for file in files
        for record in read(file)
    ]
    assert sorted(found) == [(), (1,), (2, 3), (2, 3)]


def test_nothing_to_write_is_a_file_without_records(tmp_path: Path) -> None:
    with beam.Pipeline() as pipeline:
        _ = pipeline | beam.Create([]) | WriteBatches(SCHEMA, str(tmp_path / "transformed"))
    (file,) = tmp_path.iterdir()
    assert read(file) == []
