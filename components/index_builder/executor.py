"""Executor of IndexBuilder."""

from __future__ import annotations

import json
from typing import Any

import tensorflow_transform as tft
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.types.artifact import Artifact

from components.cascaded_trainer.spec import REPORT_FILE
from components.examples import read_split
from components.index_builder import spec
from components.paths import local_path
from models.catalogue import read_catalogue
from models.export import export
from models.features import FeatureKinds
from models.recommender import build_profiles
from models.settings import IndexSettings
from models.timelines import read_timelines
from models.towers import TwoTower
from schemas.names import CATALOGUE_SPLIT, EVAL_SPLIT, TRAIN_SPLIT


class Executor(base_executor.BaseExecutor):
    """Runs `export` on the last stage."""

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes the servable.

        Args:
          input_dict:
            - transform_graph: TransformGraph.
            - transformed_examples: Examples, splits train, eval and catalogue.
            - stage: CascadeStage of the last objective.
          output_dict:
            - model: Model.
          exec_properties: see `spec`.

        Raises:
          ValueError: an item id occurs twice, or an item vector is not finite.
        """
        transform = tft.TFTransformOutput(
            str(local_path(artifact_utils.get_single_uri(input_dict[spec.TRANSFORM_GRAPH_KEY])))
        )
        examples = input_dict[spec.TRANSFORMED_EXAMPLES_KEY]
        stage = local_path(artifact_utils.get_single_uri(input_dict[spec.STAGE_KEY]))
        towers = TwoTower.load(stage)
        features = FeatureKinds.parse(json.loads(exec_properties[spec.FEATURES_KEY]))
        # A served profile knows all that is known, the held-out events too.
        timelines = [
            read_timelines(
                read_split(examples, split),
                towers.spec.n_items,
                towers.spec.n_users,
                list(features.user),
            )
            for split in (TRAIN_SPLIT, EVAL_SPLIT)
        ]
        artifact = artifact_utils.get_single_instance(output_dict[spec.MODEL_KEY])
        directory = local_path(artifact.uri)
        directory.mkdir(parents=True, exist_ok=True)
        manifest = export(
            directory,
            towers,
            transform,
            features.user,
            read_catalogue(read_split(examples, CATALOGUE_SPLIT), transform, features.item),
            build_profiles(timelines, towers.spec.n_users),
            IndexSettings.parse(json.loads(exec_properties[spec.SETTINGS_KEY])),
            json.loads(exec_properties[spec.OBJECTIVES_KEY]),
            json.loads((stage / REPORT_FILE).read_text(encoding="utf-8"))["weights"],
        )
        artifact.set_string_custom_property("model_id", manifest["model_id"])
        artifact.set_string_custom_property("block_sizes", json.dumps(manifest["block_sizes"]))
        artifact.set_int_custom_property("n_items", manifest["n_items"])
