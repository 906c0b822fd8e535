"""The TFX component CascadedTrainer."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.channel import BaseChannel, Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.artifacts import CascadeStage
from components.cascaded_trainer import executor, spec
from models.features import FeatureKinds
from models.settings import Distribution, ModelSettings, StageSettings


class CascadedTrainerSpec(ComponentSpec):
    """Inputs, outputs and execution properties of CascadedTrainer."""

    PARAMETERS = {
        spec.STAGE_INDEX_KEY: ExecutionParameter(type=int),
        spec.OBJECTIVES_KEY: ExecutionParameter(type=str),
        spec.SETTINGS_KEY: ExecutionParameter(type=str),
        spec.MODEL_KEY: ExecutionParameter(type=str),
        spec.FEATURES_KEY: ExecutionParameter(type=str),
        spec.ORDERED_KEY: ExecutionParameter(type=int),
        spec.SEED_KEY: ExecutionParameter(type=int),
        spec.DISTRIBUTION_KEY: ExecutionParameter(type=str),
    }
    INPUTS = {
        spec.TRANSFORM_GRAPH_KEY: ChannelParameter(type=standard_artifacts.TransformGraph),
        spec.TRANSFORMED_EXAMPLES_KEY: ChannelParameter(type=standard_artifacts.Examples),
        spec.PREVIOUS_KEY: ChannelParameter(type=CascadeStage, optional=True),
    }
    OUTPUTS = {spec.STAGE_KEY: ChannelParameter(type=CascadeStage)}


class CascadedTrainer(base_component.BaseComponent):
    """Trains, prunes and recovers one objective (CSMF, arXiv 2504.12920).

    One node per objective, each reading the artifact of the one before: a change of the click
    stage's settings re-uses the cached exposure stage.

    Outputs:
      - stage: CascadeStage, the network after this stage.
    """

    SPEC_CLASS = CascadedTrainerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        transform_graph: BaseChannel,
        transformed_examples: BaseChannel,
        previous: BaseChannel | None,
        stage_index: int,
        objectives: Sequence[str],
        settings: StageSettings,
        model: ModelSettings,
        features: FeatureKinds,
        ordered: bool,
        seed: int,
        distribution: Distribution = "none",
    ) -> None:
        """Builds the node `CascadedTrainer.<objective>`.

        Args:
          transform_graph: of Transform.
          transformed_examples: of Transform.
          previous: the stage before, None for the first.
          stage_index: 0 for the first objective.
          objectives: names of all K, first of the funnel first.
          settings: of this objective.
          model: shared by all objectives.
          features: side features of users and items.
          ordered: the log has times.
          seed: of everything random in the stage.
          distribution: of training, see `models.settings.TrainerSettings`.
        """
        super().__init__(
            spec=CascadedTrainerSpec(
                transform_graph=transform_graph,
                transformed_examples=transformed_examples,
                previous=previous,
                stage_index=stage_index,
                objectives=json.dumps(list(objectives)),
                settings=settings.model_dump_json(),
                model=model.model_dump_json(),
                features=features.model_dump_json(),
                ordered=int(ordered),
                seed=seed,
                distribution=distribution,
                stage=Channel(type=CascadeStage),
            )
        )
        self.with_id(f"CascadedTrainer.{settings.name}")
