"""Three TFX nodes that need neither TensorFlow nor data, for tests of the runner."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import standard_artifacts
from tfx.types.channel import BaseChannel, Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

MEGABYTE = 1 << 20


class Making(base_executor.BaseExecutor):
    """Writes a text, holds some memory for a while, and logs at every level."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: Any) -> None:
        logging.getLogger("some.library").debug("too much detail")
        logging.getLogger("some.library").info("a library says %s", exec_properties["text"])
        logging.getLogger("csmf").info("we say %s", exec_properties["text"])
        held = bytearray(exec_properties["megabytes"] * MEGABYTE)
        time.sleep(0.3)
        (artifact,) = output_dict["made"]
        Path(artifact.uri).mkdir(parents=True, exist_ok=True)
        (Path(artifact.uri) / "text").write_text(exec_properties["text"])
        del held


class Reading(base_executor.BaseExecutor):
    """Fails if the file it is told to look for exists."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: Any) -> None:
        logging.getLogger("some.library").info("reading")
        if Path(exec_properties["obstacle"]).exists():
            raise OSError("the obstacle is there\nin two lines")


class MakingSpec(ComponentSpec):
    PARAMETERS = {
        "text": ExecutionParameter(type=str),
        "megabytes": ExecutionParameter(type=int),
    }
    INPUTS: dict[str, Any] = {}
    OUTPUTS = {"made": ChannelParameter(type=standard_artifacts.Schema)}


class ReadingSpec(ComponentSpec):
    PARAMETERS = {"obstacle": ExecutionParameter(type=str)}
    INPUTS = {"made": ChannelParameter(type=standard_artifacts.Schema)}
    OUTPUTS: dict[str, Any] = {}


class Maker(base_component.BaseComponent):
    SPEC_CLASS = MakingSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Making)

    def __init__(self, text: str, megabytes: int) -> None:
        made = Channel(type=standard_artifacts.Schema)
        super().__init__(MakingSpec(text=text, megabytes=megabytes, made=made))


class Reader(base_component.BaseComponent):
    SPEC_CLASS = ReadingSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Reading)

    def __init__(self, made: BaseChannel, obstacle: str) -> None:
        super().__init__(ReadingSpec(made=made, obstacle=obstacle))
