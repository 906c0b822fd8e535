"""Executor of SchemaWriter."""

from __future__ import annotations

import os
from typing import Any

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.types.artifact import Artifact
from tfx.utils import io_utils

from components.schema_writer import spec


class Executor(base_executor.BaseExecutor):
    """Writes what it was given."""

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes the schema.

        Args:
          input_dict: empty.
          output_dict:
            - schema: Schema, `schema.pbtxt`.
          exec_properties:
            - content: text of the schema.

        Raises:
          google.protobuf.text_format.ParseError: it is none.
        """
        content: str = exec_properties[spec.CONTENT_KEY]
        schema = text_format.Parse(content, schema_pb2.Schema())
        directory = artifact_utils.get_single_uri(output_dict[spec.SCHEMA_KEY])
        io_utils.write_pbtxt_file(os.path.join(directory, spec.SCHEMA_FILE), schema)
