"""Files put together from parts: who can read them, and that their bytes depend on nothing else."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import apache_beam as beam
import pytest
import tensorflow as tf
from apache_beam.testing.util import assert_that, equal_to

from components.interaction_gen import records
from components.interaction_gen.records import (
    Part,
    PartsWriter,
    delete_parts,
    frames,
    put_together,
)
from tests.components.interaction_gen.conftest import make_pipeline

EXAMPLES = [b"%d" % n * (n % 50) for n in range(500)]


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Part]]:
    """Several parts of several shards."""
    monkeypatch.setattr(records, "_PART_BYTES", 2000)
    monkeypatch.setattr(records, "_EXAMPLES_AT_A_TIME", 20)
    (tmp_path / "parts").mkdir()
    writer = PartsWriter(str(tmp_path / "parts"))
    for shard in (2, 0, 1):
        writer.start((shard,))
        writer.add_examples(["file"], EXAMPLES[shard::3])
        writer.flush()
    return writer.close()


def test_a_frame_is_what_tensorflow_writes(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    with tf.io.TFRecordWriter(path) as writer:
        for example in EXAMPLES:
            writer.write(example)
    expected = Path(path).read_bytes()
    assert b"".join(piece for frame in frames(EXAMPLES) for piece in frame) == expected


def test_the_order_of_parts_does_not_matter(tmp_path: Path, parts) -> None:
    assert len(parts) > 6
    contents = set()
    for seed in range(5):
        shuffled = [part for _, part in parts]
        random.Random(seed).shuffle(shuffled)
        put_together(str(tmp_path / "file.gz"), shuffled, str(tmp_path / "parts"))
        contents.add((tmp_path / "file.gz").read_bytes())
    assert len(contents) == 1
    expected = [example for shard in range(3) for example in EXAMPLES[shard::3]]
    content = gzip.decompress(contents.pop())
    assert content == b"".join(piece for frame in frames(expected) for piece in frame)


def test_a_file_without_parts_is_empty_and_parts_are_deleted(tmp_path: Path, parts) -> None:
    path = tmp_path / "file.gz"
    put_together(str(path), [], str(tmp_path / "parts"))
    assert list(tf.data.TFRecordDataset([str(path)], compression_type="GZIP")) == []
    delete_parts(str(tmp_path / "parts"))
    assert not (tmp_path / "parts").exists()
    delete_parts(str(tmp_path / "parts"))


@pytest.mark.slow
def test_files_of_several_members_are_read_by_tensorflow_and_beam(tmp_path: Path, parts) -> None:
    path = str(tmp_path / "file.gz")
    put_together(path, [part for _, part in parts], str(tmp_path / "parts"))
    expected = [example for shard in range(3) for example in EXAMPLES[shard::3]]
    dataset = tf.data.TFRecordDataset([path], compression_type="GZIP")
    assert [record.numpy() for record in dataset] == expected
    with make_pipeline() as pipeline:
        read = pipeline | beam.io.ReadFromTFRecord(path)
        assert_that(read, equal_to(expected))
