"""TFX component `ServingValidator`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts
from tfx.types.channel import BaseChannel, Channel

from components.serving_validator import spec
from components.serving_validator.executor import Executor


class ServingValidatorSpec(component_spec.ComponentSpec):
    """Inputs, outputs and parameters of the ServingValidator."""

    INPUTS = {
        spec.MODEL_KEY: component_spec.ChannelParameter(type=standard_artifacts.Model),
        spec.EXAMPLES_KEY: component_spec.ChannelParameter(type=standard_artifacts.Examples),
    }
    OUTPUTS = {
        spec.BLESSING_KEY: component_spec.ChannelParameter(type=standard_artifacts.InfraBlessing),
    }
    PARAMETERS = {
        spec.OBJECTIVES_KEY: component_spec.ExecutionParameter(type=str),
        spec.SAMPLE_SIZE_KEY: component_spec.ExecutionParameter(type=int),
        spec.SEED_KEY: component_spec.ExecutionParameter(type=int),
        spec.TIMEOUT_SECONDS_KEY: component_spec.ExecutionParameter(type=float),
        spec.MINIMUM_RECALL_KEY: component_spec.ExecutionParameter(type=float),
    }


class ServingValidator(base_component.BaseComponent):
    """Serves a candidate in a real server process and checks its answers.

    Output `blessing`: an InfraBlessing with `report.json`; see the executor.
    """

    SPEC_CLASS = ServingValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        model: BaseChannel,
        examples: BaseChannel,
        objectives: Sequence[str],
        seed: int,
        sample_size: int = spec.DEFAULT_SAMPLE_SIZE,
        timeout_seconds: float = spec.DEFAULT_TIMEOUT_SECONDS,
        minimum_recall: float = spec.DEFAULT_MINIMUM_RECALL,
    ) -> None:
        """Builds the component.

        Args:
          model: channel of the servable made by IndexBuilder.
          examples: channel of the raw timelines made by InteractionGen.
          objectives: names, in the order of the funnel.
          seed: decides which users are asked for.
          sample_size: how many users, at least 1.
          timeout_seconds: for the whole validation, server start included.
          minimum_recall: of the scann flavour against brute force, 0 to 1.

        Raises:
          ValueError: `sample_size` is less than 1 or `minimum_recall` outside 0 to 1.
        """
        if sample_size < 1:
            raise ValueError(f"sample_size is {sample_size}; at least 1 user must be asked for.")
        if not 0 <= minimum_recall <= 1:
            raise ValueError(f"minimum_recall is {minimum_recall}; it must lie between 0 and 1.")
        super().__init__(
            ServingValidatorSpec(
                model=model,
                examples=examples,
                blessing=Channel(type=standard_artifacts.InfraBlessing),
                objectives=json.dumps(list(objectives)),
                sample_size=sample_size,
                seed=seed,
                timeout_seconds=float(timeout_seconds),
                minimum_recall=float(minimum_recall),
            )
        )
