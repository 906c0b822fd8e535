"""Executor of CascadedTrainer."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.types.artifact import Artifact

from components.artifacts import compact_json
from components.cascaded_trainer import spec
from components.examples import read_split
from components.paths import local_path
from models import replicas
from models.cascade import Cascade
from models.catalogue import read_catalogue
from models.features import FeatureKinds
from models.preprocessing import ITEM_VOCABULARY, USER_VOCABULARY
from models.settings import ModelSettings, StageSettings
from models.stages import StageReport, TrainingData
from models.timelines import read_timelines
from models.towers import TowerSpec
from schemas.names import CATALOGUE_SPLIT, TRAIN_SPLIT

_log = logging.getLogger("csmf")


class Executor(base_executor.BaseExecutor):
    """Runs `Cascade.train` on the transformed train split."""

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Trains one stage; after the last one it also chooses the request weights.

        Args:
          input_dict:
            - transform_graph: TransformGraph.
            - transformed_examples: Examples, splits train and catalogue.
            - previous: CascadeStage of the objective before; absent for the first.
          output_dict:
            - stage: CascadeStage.
          exec_properties: see `spec`.

        Raises:
          ValueError: no positive of this objective, or too little room for a stage.
          FrozenWeightsMovedError: the bit-exact guarantee does not hold.
          DistributionError: the workers that were asked for are not there.
        """
        # First of all: several workers must be set up before anything else of TensorFlow runs.
        strategy = replicas.strategy_of(exec_properties[spec.DISTRIBUTION_KEY])
        seed = exec_properties[spec.SEED_KEY]
        tf.keras.utils.set_random_seed(seed)
        tf.config.experimental.enable_op_determinism()
        with strategy.scope():
            self._train(input_dict, output_dict, exec_properties, seed)

    def _train(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
        seed: int,
    ) -> None:
        """See `Do`; in the scope of the strategy."""
        transform = tft.TFTransformOutput(
            str(local_path(artifact_utils.get_single_uri(input_dict[spec.TRANSFORM_GRAPH_KEY])))
        )
        examples = input_dict[spec.TRANSFORMED_EXAMPLES_KEY]
        model = ModelSettings.parse(json.loads(exec_properties[spec.MODEL_KEY]))
        settings = StageSettings.parse(json.loads(exec_properties[spec.SETTINGS_KEY]))
        features = FeatureKinds.parse(json.loads(exec_properties[spec.FEATURES_KEY]))
        objectives: list[str] = json.loads(exec_properties[spec.OBJECTIVES_KEY])
        stage = exec_properties[spec.STAGE_INDEX_KEY]
        ordered = bool(exec_properties[spec.ORDERED_KEY])

        if previous := input_dict.get(spec.PREVIOUS_KEY):
            cascade = Cascade.load(local_path(artifact_utils.get_single_uri(previous)))
        else:
            cascade = Cascade.start(
                TowerSpec(
                    towers=model.towers,
                    n_objectives=len(objectives),
                    ordered=ordered,
                    n_items=transform.vocabulary_size_by_name(ITEM_VOCABULARY),
                    n_users=transform.vocabulary_size_by_name(USER_VOCABULARY),
                    user_features=features.user_sizes(transform),
                    item_features=features.item_sizes(transform),
                ),
                seed,
            )
        tower_spec = cascade.served.spec
        data = TrainingData.split(
            read_timelines(
                read_split(examples, TRAIN_SPLIT),
                tower_spec.n_items,
                tower_spec.n_users,
                list(features.user),
            ),
            ordered,
            read_catalogue(
                read_split(examples, CATALOGUE_SPLIT), transform, features.item
            ).features,
            model,
            seed,
        )
        report = cascade.train(data, stage, settings, model, seed, _log.info)
        if stage == len(objectives) - 1:
            report.weights = cascade.weights(data, objectives)

        artifact = artifact_utils.get_single_instance(output_dict[spec.STAGE_KEY])
        if replicas.is_chief():  # the other workers have the same towers, to the bit
            directory = local_path(artifact.uri)
            cascade.save(directory)
            (directory / spec.REPORT_FILE).write_text(
                json.dumps(dataclasses.asdict(report), indent=2), encoding="utf-8"
            )
        _describe(artifact, report)
        replicas.chiefs(np.zeros(1))  # nobody leaves before the stage is written


def _describe(artifact: Artifact, report: StageReport) -> None:
    """Notes the stage in ML Metadata, so that lineage needs no file."""
    artifact.stage = report.stage
    artifact.objective = report.objective
    artifact.set_string_custom_property("owned", compact_json(report.owned))
    artifact.set_string_custom_property("settings", compact_json(report.settings))
    artifact.set_string_custom_property("upstream_sha256", report.upstream_sha256)
    artifact.set_float_custom_property("loss", report.phases[-1].fitted.losses[-1])
    if report.weights:
        artifact.set_string_custom_property("weights", compact_json(report.weights))
