"""The TFX component RetrievalEvaluator."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.channel import BaseChannel, Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.retrieval_evaluator import executor, spec
from components.retrieval_evaluator.settings import EvaluationSettings
from models.features import FeatureKinds
from models.settings import IndexSettings


class RetrievalEvaluatorSpec(ComponentSpec):
    """Inputs, outputs and execution properties of RetrievalEvaluator."""

    PARAMETERS = {
        spec.SETTINGS_KEY: ExecutionParameter(type=str),
        spec.OBJECTIVES_KEY: ExecutionParameter(type=str),
        spec.FEATURES_KEY: ExecutionParameter(type=str),
        spec.INDEX_KEY: ExecutionParameter(type=str),
        spec.SEED_KEY: ExecutionParameter(type=int),
        spec.SERVING_DIR_KEY: ExecutionParameter(type=str),
        spec.MODEL_NAME_KEY: ExecutionParameter(type=str),
    }
    INPUTS = {
        spec.MODEL_KEY: ChannelParameter(type=standard_artifacts.Model),
        spec.EXAMPLES_KEY: ChannelParameter(type=standard_artifacts.Examples),
        spec.ANOMALIES_KEY: ChannelParameter(type=standard_artifacts.ExampleAnomalies),
        spec.CATALOGUE_ANOMALIES_KEY: ChannelParameter(type=standard_artifacts.ExampleAnomalies),
    }
    OUTPUTS = {
        spec.EVALUATION_KEY: ChannelParameter(type=standard_artifacts.ModelEvaluation),
        spec.BLESSING_KEY: ChannelParameter(type=standard_artifacts.ModelBlessing),
    }


class RetrievalEvaluator(base_component.BaseComponent):
    """Measures retrieval per objective and slice, and blesses the model or says why not.

    Outputs:
      - evaluation: standard_artifacts.ModelEvaluation, `evaluation.json`.
      - blessing: standard_artifacts.ModelBlessing.
    """

    SPEC_CLASS = RetrievalEvaluatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        model: BaseChannel,
        examples: BaseChannel,
        anomalies: BaseChannel,
        catalogue_anomalies: BaseChannel,
        settings: EvaluationSettings,
        objectives: Sequence[str],
        features: FeatureKinds,
        index: IndexSettings,
        seed: int,
        serving_dir: str,
        model_name: str,
    ) -> None:
        """Builds the node.

        Args:
          model: of IndexBuilder.
          examples: of InteractionGen.
          anomalies: of the ExampleValidator of the timelines.
          catalogue_anomalies: of the ExampleValidator of the catalogue.
          settings: what to measure and what to ask for.
          objectives: names, first of the funnel first.
          features: side features of users and items.
          index: settings of the model's index.
          seed: of the samples of queries.
          serving_dir: where Pusher puts blessed models; the one that is served from there, after a
            rollback too, is what a candidate is compared with. A directory, not a resolver, because
            every orchestrator can read it.
          model_name: name that the models are served under.
        """
        super().__init__(
            spec=RetrievalEvaluatorSpec(
                model=model,
                examples=examples,
                anomalies=anomalies,
                catalogue_anomalies=catalogue_anomalies,
                settings=settings.model_dump_json(),
                objectives=json.dumps(list(objectives)),
                features=features.model_dump_json(),
                index=index.model_dump_json(),
                seed=seed,
                serving_dir=serving_dir,
                model_name=model_name,
                evaluation=Channel(type=standard_artifacts.ModelEvaluation),
                blessing=Channel(type=standard_artifacts.ModelBlessing),
            )
        )
