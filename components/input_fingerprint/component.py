"""The TFX component InputFingerprint."""

from __future__ import annotations

from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.channel import Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.input_fingerprint import executor, spec
from schemas.logs import DataSettings


class InputFingerprintSpec(ComponentSpec):
    """Inputs, outputs and execution properties of InputFingerprint."""

    PARAMETERS = {spec.DATA_KEY: ExecutionParameter(type=str)}
    INPUTS: dict[str, ChannelParameter] = {}
    OUTPUTS = {spec.FINGERPRINT_KEY: ChannelParameter(type=standard_artifacts.String)}


class InputFingerprint(base_component.BaseComponent):
    """Hashes the input files when the pipeline runs, not when it is compiled.

    A pipeline that is compiled once and runs every night would otherwise take all nodes from the
    cache, whatever came in. This node is never cached; InteractionGen takes its output as an
    execution property, and so is cached exactly while the files are the same.

    Outputs:
      - fingerprint: standard_artifacts.String.
    """

    SPEC_CLASS = InputFingerprintSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(self, data: DataSettings) -> None:
        """Builds the node.

        Args:
          data: what will be read.
        """
        super().__init__(
            spec=InputFingerprintSpec(
                data=data.model_dump_json(), fingerprint=Channel(type=standard_artifacts.String)
            )
        )
