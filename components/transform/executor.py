"""Executor of Transform."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.components.transform import executor, labels
from tfx.types.artifact import Artifact

from components.record_batches import BatchedExamples, WriteBatches


class Executor(executor.Executor):
    """TFX's executor but for how it reads and writes examples."""

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """As TFX's; the examples must be tf.Examples in compressed TFRecord files."""
        with _processor():
            super().Do(input_dict, output_dict, exec_properties)


class _Processor(executor.TransformProcessor):
    def _CreateTFXIO(self, dataset: Any, schema: schema_pb2.Schema) -> BatchedExamples:
        return BatchedExamples(
            dataset.file_pattern, schema=schema, telemetry_descriptors=["Transform"]
        )

    @staticmethod
    def _EncodeAndWrite(
        schema: schema_pb2.Schema, file_format: str, output_path: str
    ) -> beam.PTransform:
        assert file_format == labels.FORMAT_TFRECORD
        return WriteBatches(schema, output_path)


@contextlib.contextmanager
def _processor() -> Iterator[None]:
    """Puts the processor in the place of TFX's, whose class the executor's `Do` names.

    https://github.com/tensorflow/tfx/blob/v1.16.0/tfx/components/transform/executor.py#L641
    """
    own = executor.TransformProcessor
    executor.TransformProcessor = _Processor
    try:
        yield
    finally:
        executor.TransformProcessor = own
