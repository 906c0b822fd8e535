"""The TFX component IndexBuilder."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.channel import BaseChannel, Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.artifacts import CascadeStage
from components.index_builder import executor, spec
from models.features import FeatureKinds
from models.settings import IndexSettings


class IndexBuilderSpec(ComponentSpec):
    """Inputs, outputs and execution properties of IndexBuilder."""

    PARAMETERS = {
        spec.SETTINGS_KEY: ExecutionParameter(type=str),
        spec.OBJECTIVES_KEY: ExecutionParameter(type=str),
        spec.FEATURES_KEY: ExecutionParameter(type=str),
    }
    INPUTS = {
        spec.TRANSFORM_GRAPH_KEY: ChannelParameter(type=standard_artifacts.TransformGraph),
        spec.TRANSFORMED_EXAMPLES_KEY: ChannelParameter(type=standard_artifacts.Examples),
        spec.STAGE_KEY: ChannelParameter(type=CascadeStage),
    }
    OUTPUTS = {spec.MODEL_KEY: ChannelParameter(type=standard_artifacts.Model)}


class IndexBuilder(base_component.BaseComponent):
    """Embeds the catalogue, builds the index, and exports what TensorFlow Serving loads.

    Outputs:
      - model: standard_artifacts.Model holding both flavours, the vectors and the manifest.
    """

    SPEC_CLASS = IndexBuilderSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        transform_graph: BaseChannel,
        transformed_examples: BaseChannel,
        stage: BaseChannel,
        settings: IndexSettings,
        objectives: Sequence[str],
        features: FeatureKinds,
    ) -> None:
        """Builds the node.

        Args:
          transform_graph: of Transform.
          transformed_examples: of Transform, all splits.
          stage: the last stage of the cascade.
          settings: of the index.
          objectives: names, first of the funnel first.
          features: side features of users and items.
        """
        super().__init__(
            spec=IndexBuilderSpec(
                transform_graph=transform_graph,
                transformed_examples=transformed_examples,
                stage=stage,
                settings=settings.model_dump_json(),
                objectives=json.dumps(list(objectives)),
                features=features.model_dump_json(),
                model=Channel(type=standard_artifacts.Model),
            )
        )
