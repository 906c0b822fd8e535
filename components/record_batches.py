"""tf.Examples in compressed TFRecord files, as Arrow record batches: TFX's own way of reading and
writing them, but for giving every record to Beam.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filebasedsink import FileBasedSink
from apache_beam.io.filesystems import CompressionTypes, FileSystems
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx_bsl.coders.example_coder import ExamplesToRecordBatchDecoder, RecordBatchToExamplesEncoder
from tfx_bsl.tfxio.tf_example_record import TFExampleRecord

from components.interaction_gen.records import frames, gzip_member

# A batch holds so many records, or one more than so many bytes of them.
BATCH_RECORDS = 4096
BATCH_BYTES = 16 << 20
_READ_BYTES = 4 << 20

# Around the content of a record: its length and the checksum of that, its own checksum.
_LENGTH_BYTES, _HEAD_BYTES, _TAIL_BYTES = 8, 12, 4


class BatchedExamples(TFExampleRecord):
    """TFX's view of files of tf.Examples; a worker reads a whole file."""

    def BeamSource(self, batch_size: int | None = None) -> beam.PTransform:
        """Returns the pipeline's start -> record batches."""
        del batch_size  # what TFX asks for is None: whatever is fast
        return _ReadBatches(self._file_pattern, self._schema)

    def _ProjectImpl(self, tensor_names: list[str]) -> BatchedExamples:
        projected = super()._ProjectImpl(tensor_names)
        return BatchedExamples(
            projected._file_pattern,
            schema=projected._schema,
            telemetry_descriptors=projected.telemetry_descriptors,
        )


class _ReadBatches(beam.PTransform):
    def __init__(self, patterns: list[str], schema: schema_pb2.Schema | None) -> None:
        super().__init__()
        self._patterns = patterns
        self._schema = schema

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[pa.RecordBatch]:
        """Reads all files that there are now."""
        files = [
            metadata.path
            for match in FileSystems.match(self._patterns)
            for metadata in match.metadata_list
        ]
        return (
            pipeline
            | "Files" >> beam.Create(list(enumerate(sorted(files))), reshuffle=False)
            # Spreads the files over workers as Reshuffle would, whose random keys change the order.
            | "Spread" >> beam.GroupByKey()
            | "Read" >> beam.ParDo(_ReadFiles(self._schema)).with_output_types(pa.RecordBatch)
        )


class _ReadFiles(beam.DoFn):
    """(number, [path]) -> record batches of the files."""

    def __init__(self, schema: schema_pb2.Schema | None) -> None:
        self._schema = () if schema is None else (schema.SerializeToString(),)

    def setup(self) -> None:
        """Makes the decoder, which cannot be sent to a worker."""
        self._decoder = ExamplesToRecordBatchDecoder(*self._schema)

    def process(self, element: tuple[int, Iterable[str]]) -> Iterator[pa.RecordBatch]:
        """Reads files from start to end."""
        for path in element[1]:
            for records in read_batches(path):
                yield self._decoder.DecodeBatch(records)


def read_batches(path: str) -> Iterator[list[bytes]]:
    """Reads a compressed TFRecord file, some records at a time.

    The checksums of the records are not looked at: the compression has its own, which is.

    Raises:
      ValueError: the file ends within a record; the text names it.
    """
    records: list[bytes] = []
    collected, rest = 0, b""
    with FileSystems.open(path) as handle:
        while block := handle.read(_READ_BYTES):
            content, start = rest + block, 0
            while (begin := start + _HEAD_BYTES) <= len(content):
                size = int.from_bytes(content[start : start + _LENGTH_BYTES], "little")
                end = begin + size + _TAIL_BYTES
                if end > len(content):
                    break
                records.append(content[begin : begin + size])
                collected, start = collected + size, end
                if len(records) == BATCH_RECORDS or collected > BATCH_BYTES:
                    yield records
                    records, collected = [], 0
            rest = content[start:]
    if rest:
        raise ValueError(f"{path} ends within a record: it was cut off. Make it again.")
    if records:
        yield records


class WriteBatches(beam.PTransform):
    """(record batch, anything) -> compressed TFRecord files of tf.Examples."""

    def __init__(self, schema: schema_pb2.Schema, path_prefix: str) -> None:
        """Says what to write where.

        Args:
          schema: of the batches.
          path_prefix: of the files; their numbers and `.gz` follow.
        """
        super().__init__()
        self._schema = schema
        self._path_prefix = path_prefix

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """Writes files that appear when they are complete, with names as Beam gives them."""
        return (
            batches
            | "Encode" >> beam.ParDo(_Encode(self._schema)).with_output_types(bytes)
            | "Write" >> beam.io.Write(_GzipMembers(self._path_prefix))
        )


class _Encode(beam.DoFn):
    """A record batch -> a gzip member of a TFRecord file."""

    def __init__(self, schema: schema_pb2.Schema) -> None:
        self._encoder = RecordBatchToExamplesEncoder(schema)

    def process(self, element: tuple[pa.RecordBatch, Any]) -> Iterator[bytes]:
        """Encodes a batch."""
        examples = self._encoder.encode(element[0])
        yield gzip_member(b"".join(piece for frame in frames(examples) for piece in frame))


class _GzipMembers(FileBasedSink):
    """Files of gzip members, one behind the other."""

    def __init__(self, path_prefix: str) -> None:
        super().__init__(
            path_prefix,
            coder=beam.coders.BytesCoder(),
            file_name_suffix=".gz",
            compression_type=CompressionTypes.UNCOMPRESSED,  # they are, already
        )

    def write_encoded_record(self, file_handle: Any, encoded_value: bytes) -> None:
        """Adds a member to a file."""
        file_handle.write(encoded_value)
