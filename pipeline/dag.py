"""The pipeline: its nodes, and how they run on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tfx.components.example_validator.component import ExampleValidator
from tfx.components.schema_gen.import_schema_gen.component import ImportSchemaGen
from tfx.dsl.components.base.base_node import BaseNode
from tfx.dsl.placeholder.placeholder import Placeholder
from tfx.orchestration.metadata import sqlite_metadata_connection_config
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import transform_pb2
from tfx.types.channel import BaseChannel

from components.cascaded_trainer.component import CascadedTrainer
from components.index_builder.component import IndexBuilder
from components.interaction_gen.component import InteractionGen
from components.interaction_gen.files import fingerprint_inputs
from components.pusher.component import Pusher
from components.retrieval_evaluator.component import RetrievalEvaluator
from components.serving_validator.component import ServingValidator
from components.statistics_gen.component import StatisticsGen
from components.transform.component import Transform
from models.features import FeatureKinds
from pipeline.config import PipelineConfig
from pipeline.options import METADATA_FILE, REPORT_FILE
from schemas.names import CATALOGUE_SPLIT, EVAL_SPLIT, TRAIN_SPLIT
from schemas.tfmd import CATALOGUE, TIMELINES, build_schemas, write_schemas


@dataclass(frozen=True)
class Workdir:
    """Where a pipeline keeps what it makes."""

    root: Path

    @property
    def artifacts(self) -> Path:
        """Outputs of all nodes, by node and execution."""
        return self.root / "artifacts"

    @property
    def metadata(self) -> Path:
        """The ML Metadata database."""
        return self.root / METADATA_FILE

    @property
    def schemas(self) -> Path:
        """The schemas of the configuration."""
        return self.root / "schemas"

    @property
    def summary(self) -> Path:
        """Machine-readable result of the last run."""
        return self.root / "summary.json"

    @property
    def report(self) -> Path:
        """The page about the last run."""
        return self.root / REPORT_FILE

    def serving(self, config: PipelineConfig) -> Path:
        """The pushed versions."""
        return Path(config.serving.directory or self.root / "serving").absolute()


@dataclass(frozen=True)
class Surroundings:
    """What of the pipeline depends on where it runs.

    Attributes:
      fingerprint: of the input files; see InteractionGen.
      timeline_schema: node with the output `schema`: what the splits train and eval hold.
      catalogue_schema: the same for the split catalogue.
      serving_dir: parent of the served directories, as the nodes see it.
    """

    fingerprint: Mapping[str, str] | Placeholder
    timeline_schema: BaseNode
    catalogue_schema: BaseNode
    serving_dir: str


def create_pipeline(
    config: PipelineConfig, workdir: Workdir, enable_cache: bool = True
) -> Pipeline:
    """The pipeline on this machine.

    Args:
      config: all settings.
      workdir: where artifacts, metadata and pushed models go.
      enable_cache: take the outputs of nodes whose inputs and settings did not change from before.

    Returns:
      The pipeline, for TFX's local runner.

    Raises:
      DataError: a log file is missing or lacks a column.
    """
    schemas = write_schemas(
        build_schemas(config.data, len(config.objective_names)), workdir.schemas
    )
    surroundings = Surroundings(
        fingerprint=fingerprint_inputs(config.data),
        timeline_schema=ImportSchemaGen(schema_file=str(schemas[TIMELINES])).with_id(
            "ImportSchemaGen.timelines"
        ),
        catalogue_schema=ImportSchemaGen(schema_file=str(schemas[CATALOGUE])).with_id(
            "ImportSchemaGen.catalogue"
        ),
        serving_dir=str(workdir.serving(config)),
    )
    return Pipeline(
        pipeline_name=config.name,
        pipeline_root=str(workdir.artifacts.absolute()),
        components=create_nodes(config, surroundings),
        enable_cache=enable_cache,
        metadata_connection_config=sqlite_metadata_connection_config(
            str(workdir.metadata.absolute())
        ),
        beam_pipeline_args=config.beam.arguments(),
    )


def create_nodes(config: PipelineConfig, surroundings: Surroundings) -> list[BaseNode]:
    """Logs -> timelines -> validation -> transform -> cascade -> index -> gates -> push.

    Args:
      config: all settings.
      surroundings: what depends on where the pipeline runs.

    Returns:
      The nodes, those of the schemas included, for any TFX runner.
    """
    features = FeatureKinds.of(config.data)
    objectives = config.objective_names
    timeline_schema = surroundings.timeline_schema
    catalogue_schema = surroundings.catalogue_schema

    # --- data: ingest, describe, check --------------------------------------------------------
    interactions = InteractionGen(
        data=config.data,
        objectives=objectives,
        seed=config.seed,
        fingerprint=surroundings.fingerprint,
    )
    examples = interactions.outputs["examples"]
    statistics = StatisticsGen(examples=examples)
    timeline_validator = ExampleValidator(
        statistics=statistics.outputs["statistics"],
        schema=timeline_schema.outputs["schema"],
        exclude_splits=[CATALOGUE_SPLIT],
    ).with_id("ExampleValidator.timelines")
    catalogue_validator = ExampleValidator(
        statistics=statistics.outputs["statistics"],
        schema=catalogue_schema.outputs["schema"],
        exclude_splits=[TRAIN_SPLIT, EVAL_SPLIT],
    ).with_id("ExampleValidator.catalogue")

    # --- model: one graph for ids and features, one node per objective, one index -------------
    transform = Transform(
        examples=examples,
        schema=timeline_schema.outputs["schema"],
        preprocessing_fn="models.preprocessing.preprocessing_fn",
        splits_config=transform_pb2.SplitsConfig(
            analyze=[TRAIN_SPLIT, CATALOGUE_SPLIT],
            transform=[TRAIN_SPLIT, EVAL_SPLIT, CATALOGUE_SPLIT],
        ),
        custom_config={"features": features.by_key()},
        disable_analyzer_cache=True,
        disable_statistics=True,
    )
    stages: list[CascadedTrainer] = []
    previous: BaseChannel | None = None
    for index, settings in enumerate(config.objectives):
        stages.append(
            CascadedTrainer(
                transform_graph=transform.outputs["transform_graph"],
                transformed_examples=transform.outputs["transformed_examples"],
                previous=previous,
                stage_index=index,
                objectives=objectives,
                settings=settings,
                model=config.model,
                features=features,
                ordered=config.data.split.kind == "time",
                seed=config.seed,
                distribution=config.trainer.distribution,
            )
        )
        previous = stages[-1].outputs["stage"]
    index_builder = IndexBuilder(
        transform_graph=transform.outputs["transform_graph"],
        transformed_examples=transform.outputs["transformed_examples"],
        stage=stages[-1].outputs["stage"],
        settings=config.index,
        objectives=objectives,
        features=features,
    )

    # --- gates and push -----------------------------------------------------------------------
    evaluator = RetrievalEvaluator(
        model=index_builder.outputs["model"],
        examples=examples,
        anomalies=timeline_validator.outputs["anomalies"],
        catalogue_anomalies=catalogue_validator.outputs["anomalies"],
        settings=config.evaluation,
        objectives=objectives,
        features=features,
        index=config.index,
        seed=config.seed,
        serving_dir=surroundings.serving_dir,
        model_name=config.serving.model_name,
    )
    serving_validator = ServingValidator(
        model=index_builder.outputs["model"],
        examples=examples,
        sample_size=config.serving.sample_size,
        seed=config.seed,
        timeout_seconds=config.serving.validation_timeout_seconds,
        objectives=objectives,
        minimum_recall=config.evaluation.ann_recall,
    )
    pusher = Pusher(
        model=index_builder.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        infra_blessing=serving_validator.outputs["blessing"],
        serving_dir=surroundings.serving_dir,
        model_name=config.serving.model_name,
        keep_versions=config.serving.keep_versions,
        address=config.serving.address,
        poll_timeout_seconds=config.serving.poll_timeout_seconds,
    )

    return [
        interactions,
        statistics,
        timeline_schema,
        catalogue_schema,
        timeline_validator,
        catalogue_validator,
        transform,
        *stages,
        index_builder,
        evaluator,
        serving_validator,
        pusher,
    ]
