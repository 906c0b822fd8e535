"""The TFX component InteractionGen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.dsl.placeholder.placeholder import Placeholder
from tfx.types import standard_artifacts
from tfx.types.channel import Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.artifacts import DeadLetters, IngestionSummary
from components.interaction_gen import executor, spec
from schemas.logs import DataSettings


class InteractionGenSpec(ComponentSpec):
    """Inputs, outputs and execution properties of InteractionGen."""

    PARAMETERS = {
        spec.DATA_KEY: ExecutionParameter(type=str),
        spec.OBJECTIVES_KEY: ExecutionParameter(type=str),
        spec.SEED_KEY: ExecutionParameter(type=int),
        spec.FINGERPRINT_KEY: ExecutionParameter(type=str),
    }
    INPUTS: dict[str, ChannelParameter] = {}
    OUTPUTS = {
        spec.EXAMPLES_KEY: ChannelParameter(type=standard_artifacts.Examples),
        spec.DEAD_LETTERS_KEY: ChannelParameter(type=DeadLetters),
        spec.SUMMARY_KEY: ChannelParameter(type=IngestionSummary),
    }


class InteractionGen(base_beam_component.BaseBeamComponent):
    """Reads interaction logs, catalogue and users into timelines and catalogue examples.

    Outputs:
      - examples: standard_artifacts.Examples with the splits train, eval and catalogue.
      - dead_letters: rows that could not be used, as JSON lines.
      - summary: `summary.json`, the reconciled counts.
    """

    SPEC_CLASS = InteractionGenSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        data: DataSettings,
        objectives: Sequence[str],
        seed: int,
        fingerprint: Mapping[str, str] | Placeholder,
    ) -> None:
        """Builds the node.

        Args:
          data: what to read and how.
          objectives: names, first of the funnel first.
          seed: decides what a leave-out split holds out.
          fingerprint: `fingerprint_inputs(data)`, or the output of InputFingerprint; a changed
            file makes this another execution for the cache.
        """
        super().__init__(
            spec=InteractionGenSpec(
                data=data.model_dump_json(),
                objectives=json.dumps(list(objectives)),
                seed=seed,
                fingerprint=fingerprint
                if isinstance(fingerprint, Placeholder)
                else json.dumps(dict(fingerprint), sort_keys=True),
                examples=Channel(type=standard_artifacts.Examples),
                dead_letters=Channel(type=DeadLetters),
                summary=Channel(type=IngestionSummary),
            )
        )
