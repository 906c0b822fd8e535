"""Compiles a pipeline to what `kfp` uploads: a pipeline spec and a platform spec, as YAML."""

from __future__ import annotations

from typing import Any

import yaml
from tfx.orchestration.kubeflow.v2.kubeflow_v2_dag_runner import (
    KubeflowV2DagRunner,
    KubeflowV2DagRunnerConfig,
)

from pipeline.config import PipelineConfig
from pipeline.kubeflow.checks import check_image, check_name, check_pipeline_root, mounts
from pipeline.kubeflow.dag import create_kubeflow_pipeline, task_name
from pipeline.kubeflow.settings import INPUT_FINGERPRINT, Volume

# TFRS and TFT need Keras 2, and it must be chosen before the first import of TensorFlow.
ENVIRONMENT = {"TF_USE_LEGACY_KERAS": "1"}

Document = dict[str, Any]


def compile_pipeline(config: PipelineConfig, image: str, pipeline_root: str) -> str:
    """Compiles a configuration. Reads no data.

    Args:
      config: all settings.
      image: of all containers; named by tag or digest.
      pipeline_root: gs://BUCKET/PATH, where the artifacts go.

    Returns:
      One YAML document with the pipeline (KFP pipeline spec 2.1), one with its volumes.

    Raises:
      ConfigError: Kubeflow could not run this, and why.
    """
    check_name(config.name)
    check_image(image)
    check_pipeline_root(pipeline_root)
    volumes = mounts(config)
    spec = _pipeline_spec(config, image, pipeline_root)
    header = (
        f"# Pipeline {config.name} for Kubeflow Pipelines, made by `csmf compile` from the\n"
        f"# configuration with the SHA-256 {config.sha256()}.\n"
    )
    return header + yaml.safe_dump_all([spec, _platform_spec(spec, volumes)], sort_keys=True)


def _pipeline_spec(config: PipelineConfig, image: str, pipeline_root: str) -> Document:
    runner = KubeflowV2DagRunner(
        KubeflowV2DagRunnerConfig(default_image=image, use_pipeline_spec_2_1=True)
    )
    job = runner.run(create_kubeflow_pipeline(config, pipeline_root), write_out=False)
    spec: Document = job["pipelineSpec"]
    # TFX writes the root beside the spec, where only Vertex AI reads it.
    spec["defaultPipelineRoot"] = pipeline_root
    tasks: Document = spec["root"]["dag"]["tasks"]
    for task in tasks.values():
        for parameter in task.get("inputs", {}).get("parameters", {}).values():
            if "taskOutputParameter" in parameter:
                # TFX appends "_task" to the name of the producer, which no task of its has.
                source = parameter["taskOutputParameter"]
                source["producerTask"] = source["producerTask"].removesuffix("_task")
    tasks[task_name(INPUT_FINGERPRINT)]["cachingOptions"] = {}  # it looks at the world outside
    for executor in spec["deploymentSpec"]["executors"].values():
        executor["container"]["env"] = [
            {"name": name, "value": value} for name, value in ENVIRONMENT.items()
        ]
    return spec


def _platform_spec(spec: Document, volumes: dict[str, list[Volume]]) -> Document:
    """The part of the pipeline that only Kubernetes has: which volumes are mounted where."""
    executors = {
        spec["components"][task_name(node)]["executorLabel"]: {
            "pvcMount": [
                {
                    "constant": volume.claim,  # what KFP before 2.5 reads
                    "mountPath": volume.path,
                    "pvcNameParameter": {"runtimeValue": {"constant": volume.claim}},
                }
                for volume in needed
            ]
        }
        for node, needed in volumes.items()
        if needed
    }
    return {"platforms": {"kubernetes": {"deploymentSpec": {"executors": executors}}}}
