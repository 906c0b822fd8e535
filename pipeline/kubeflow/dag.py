"""The pipeline as TFX nodes that run in containers."""

from __future__ import annotations

import re

from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineDeploymentConfig
from tfx.dsl.components.base.base_node import BaseNode
from tfx.orchestration.pipeline import Pipeline
from tfx.types.artifact import Artifact

import components
from components import artifacts
from components.input_fingerprint import spec as fingerprint_spec
from components.input_fingerprint.component import InputFingerprint
from components.schema_writer.component import SchemaWriter
from pipeline.config import PipelineConfig
from pipeline.dag import Surroundings, create_nodes
from pipeline.kubeflow.settings import Resources
from schemas.tfmd import CATALOGUE, TIMELINES, build_schemas

_BYTES = {"M": 10**6, "G": 10**9, "T": 10**12, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def create_nodes_for_containers(config: PipelineConfig) -> list[BaseNode]:
    """All nodes: those of the local run, but nothing is looked at on this machine.

    Files are hashed by a node of its own, when the pipeline runs; schemas are carried by the nodes
    that write them.
    """
    schemas = build_schemas(config.data, len(config.objective_names))
    fingerprint = InputFingerprint(config.data)
    writers = {
        name: SchemaWriter(schema).with_id(f"SchemaWriter.{name}")
        for name, schema in schemas.items()
    }
    surroundings = Surroundings(
        fingerprint=fingerprint.outputs[fingerprint_spec.FINGERPRINT_KEY].future()[0].value,
        timeline_schema=writers[TIMELINES],
        catalogue_schema=writers[CATALOGUE],
        serving_dir=str(config.serving.directory),
    )
    return [fingerprint, *create_nodes(config, surroundings)]


def create_kubeflow_pipeline(config: PipelineConfig, pipeline_root: str) -> Pipeline:
    """The pipeline with resources, and with names that Kubeflow takes.

    Args:
      config: all settings; `checks` has found nothing.
      pipeline_root: where the artifacts go.

    Returns:
      The pipeline, for KubeflowV2DagRunner.
    """
    nodes = create_nodes_for_containers(config)
    for node in nodes:
        node.with_platform_config(resource_spec(config.kubeflow.resources(node.id)))
        node.with_id(task_name(node.id))
        for channel in (*node.inputs.values(), *node.outputs.values()):
            # TFX's compiler takes the type's name for its import path, which in ML Metadata, and
            # so for everything that reads it, is not its name.
            if channel.type in _STAND_INS:
                channel._artifact_type = _STAND_INS[channel.type]
    return Pipeline(
        pipeline_name=config.name,
        pipeline_root=pipeline_root,
        components=nodes,
        enable_cache=True,
        beam_pipeline_args=config.beam.arguments(),
    )


def task_name(node: str) -> str:
    """The name of a node on Kubeflow: CascadedTrainer.add_cart -> cascaded-trainer-add-cart.

    Tasks become nodes of an Argo workflow, whose names hold no dots and no underscores.
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[._]", "-", node).lower()


def resource_spec(
    resources: Resources,
) -> PipelineDeploymentConfig.PipelineContainerSpec.ResourceSpec:
    """Converts resources; twice, because Vertex AI and older Kubeflow read numbers only."""
    result = PipelineDeploymentConfig.PipelineContainerSpec.ResourceSpec()
    if resources.cpu is not None:
        result.cpu_limit = resources.cpu
        result.resource_cpu_limit = f"{resources.cpu:g}"
    if resources.memory is not None:
        number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]+)", resources.memory).groups()  # type: ignore[union-attr]
        result.memory_limit = float(number) * _BYTES[unit] / 10**9  # GB
        result.resource_memory_limit = resources.memory
    if resources.accelerator is not None:
        accelerator = resources.accelerator
        result.accelerator.type = result.accelerator.resource_type = accelerator.type
        result.accelerator.count = accelerator.count
        result.accelerator.resource_count = str(accelerator.count)
    return result


def _stand_in(kind: type[Artifact]) -> type[Artifact]:
    """The type for the compiler: named by its import path, and without properties of its own.

    The compiler refuses properties of types that are not TFX's; they travel as metadata anyway, and
    the container makes properties of them again.
    """
    return type(
        kind.__name__,
        (kind,),
        {"TYPE_NAME": f"{components.__name__}.{kind.__name__}", "PROPERTIES": {}},
    )


_STAND_INS = {
    kind: _stand_in(kind)
    for kind in (getattr(artifacts, name) for name in components.ARTIFACT_TYPES)
}
