"""The `kubeflow:` section: what every container gets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import Field, field_validator

from schemas.settings import Settings

INPUT_FINGERPRINT = "InputFingerprint"
INTERACTION_GEN = "InteractionGen"
RETRIEVAL_EVALUATOR = "RetrievalEvaluator"
PUSHER = "Pusher"
_KINDS = {  # kind of node -> its instances; None = one per objective
    INPUT_FINGERPRINT: (),
    INTERACTION_GEN: (),
    "StatisticsGen": (),
    "SchemaWriter": ("timelines", "catalogue"),
    "ExampleValidator": ("timelines", "catalogue"),
    "Transform": (),
    "CascadedTrainer": None,
    "IndexBuilder": (),
    RETRIEVAL_EVALUATOR: (),
    "ServingValidator": (),
    PUSHER: (),
}


def node_names(objectives: Sequence[str]) -> list[str]:
    """Names that `nodes:` may have: kinds of nodes, and single nodes of those with several."""
    names = []
    for kind, instances in _KINDS.items():
        names.append(kind)
        names += [f"{kind}.{one}" for one in (objectives if instances is None else instances)]
    return names


class Accelerator(Settings):
    """GPUs or the like."""

    type: Annotated[str, Field(min_length=1)]
    """What the cluster calls it: e.g. nvidia.com/gpu, on Vertex AI NVIDIA_TESLA_T4."""

    count: Annotated[int, Field(gt=0)] = 1


class Resources(Settings):
    """What a container is given; what is left out is as for every node."""

    cpu: Annotated[float, Field(gt=0)] | None = None
    """Cores."""

    memory: Annotated[str, Field(pattern=r"^[1-9][0-9]*(\.[0-9]+)?(M|G|T|Mi|Gi|Ti)$")] | None = None
    """As Kubernetes writes it, e.g. 8Gi."""

    accelerator: Accelerator | None = None


class Volume(Settings):
    """A persistent volume, mounted in the nodes that use a path on it."""

    claim: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
    """Name of the PersistentVolumeClaim."""

    path: str
    """Where the containers see it."""

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: str) -> str:
        if not PurePosixPath(path).is_absolute() or PurePosixPath(path) == PurePosixPath("/"):
            raise ValueError("must be an absolute path below /, e.g. /models")
        return path

    def holds(self, path: str) -> bool:
        """Whether a local path lies on the volume."""
        return PurePosixPath(path).is_relative_to(self.path)


class KubeflowSettings(Settings):
    """How `csmf compile` equips the containers. Says nothing about what they compute."""

    default: Resources = Resources(cpu=2, memory="8Gi")
    """Of every node."""

    nodes: dict[str, Resources] = {}
    """By kind of node (CascadedTrainer) or node (CascadedTrainer.click), which goes first."""

    volumes: tuple[Volume, ...] = ()

    def resources(self, node: str) -> Resources:
        """What a node gets: each value from the nearest section that gives it."""
        sections = [self.nodes.get(node), self.nodes.get(node.partition(".")[0]), self.default]
        found: dict[str, object] = {}
        for section in sections:
            if section is not None:
                for key in section.model_fields_set - found.keys():
                    found[key] = getattr(section, key)
        return Resources.model_validate(found)
