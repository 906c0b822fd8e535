"""A worker of a distributed training: runs the executor of CascadedTrainer stage after stage.

`python -m tests.models.training_worker PLAN NUMBER` reads the plan, JSON, and TF_CONFIG.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


def main(plan: dict[str, Any], number: int) -> None:
    """Trains every stage of the plan; reads the ones before from the outputs of worker 0."""
    import tensorflow as tf
    from tfx.types import artifact_utils, channel_utils, standard_artifacts

    from components.artifacts import CascadeStage
    from components.cascaded_trainer import spec
    from components.cascaded_trainer.component import CascadedTrainer
    from components.cascaded_trainer.executor import Executor
    from models.features import FeatureKinds
    from models.settings import ModelSettings, StageSettings

    if plan["devices"] > 1:
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * plan["devices"]
        )
    graph, examples = standard_artifacts.TransformGraph(), standard_artifacts.Examples()
    graph.uri, examples.uri = plan["transform_graph"], plan["examples"]
    examples.split_names = artifact_utils.encode_split_names(["train", "catalogue"])
    settings = [StageSettings.parse(stage) for stage in plan["stages"]]
    previous = None
    for index, stage in enumerate(settings):
        made = CascadeStage()
        made.uri = str(Path(plan["output"]) / str(number) / stage.name)
        node = CascadedTrainer(
            transform_graph=channel_utils.as_channel([graph]),
            transformed_examples=channel_utils.as_channel([examples]),
            previous=channel_utils.as_channel([previous]) if previous else None,
            stage_index=index,
            objectives=[stage.name for stage in settings],
            settings=stage,
            model=ModelSettings.parse(plan["model"]),
            features=FeatureKinds.parse(plan["features"]),
            ordered=True,
            seed=5,
            distribution=plan["distribution"],
        )
        inputs = {spec.TRANSFORM_GRAPH_KEY: [graph], spec.TRANSFORMED_EXAMPLES_KEY: [examples]}
        if previous:
            inputs[spec.PREVIOUS_KEY] = [previous]
        Executor().Do(inputs, {spec.STAGE_KEY: [made]}, dict(node.exec_properties))
        previous = CascadeStage()
        previous.uri = str(Path(plan["output"]) / "0" / stage.name)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), int(sys.argv[2]))
