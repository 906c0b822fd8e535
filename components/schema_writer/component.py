"""The TFX component SchemaWriter."""

from __future__ import annotations

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.channel import Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.schema_writer import executor, spec


class SchemaWriterSpec(ComponentSpec):
    """Inputs, outputs and execution properties of SchemaWriter."""

    PARAMETERS = {spec.CONTENT_KEY: ExecutionParameter(type=str)}
    INPUTS: dict[str, ChannelParameter] = {}
    OUTPUTS = {spec.SCHEMA_KEY: ChannelParameter(type=standard_artifacts.Schema)}


class SchemaWriter(base_component.BaseComponent):
    """Writes a schema that it carries, where TFX's ImportSchemaGen needs a file to copy.

    In a container there is no such file: the schemas are made from the configuration.

    Outputs:
      - schema: standard_artifacts.Schema.
    """

    SPEC_CLASS = SchemaWriterSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(self, schema: schema_pb2.Schema) -> None:
        """Builds the node.

        Args:
          schema: of one kind of examples.
        """
        super().__init__(
            spec=SchemaWriterSpec(
                content=text_format.MessageToString(schema),
                schema=Channel(type=standard_artifacts.Schema),
            )
        )
