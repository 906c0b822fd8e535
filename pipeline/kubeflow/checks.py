"""What a pipeline on Kubeflow needs beyond a valid configuration, told before anything is run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from pipeline.config import PipelineConfig
from pipeline.kubeflow.settings import (
    INPUT_FINGERPRINT,
    INTERACTION_GEN,
    PUSHER,
    RETRIEVAL_EVALUATOR,
    Volume,
)
from schemas.settings import ConfigError


def check_name(name: str) -> None:
    """Refuses a name that Kubeflow Pipelines cannot give to a pipeline.

    Raises:
      ConfigError: says which one it could be.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise ConfigError(
            f"name: {name!r} cannot name a pipeline on Kubeflow, which takes lower-case letters, "
            f"digits and '-': e.g. {re.sub('[^a-z0-9]', '-', name.lower())!r}."
        )


def check_image(image: str) -> None:
    """Refuses an image whose name does not say which one it is.

    Raises:
      ConfigError: it has no tag or digest, or the tag latest.
    """
    last = image.rpartition("/")[2]
    name, _, tag = last.partition(":")
    if "@sha256:" not in image and (not name or tag in ("", "latest")):
        raise ConfigError(
            f"--image {image}: give a tag other than latest, or a digest. Kubeflow takes the "
            "results of an image of the same name from its cache, so that new code under an old "
            "name would not be run."
        )


def check_pipeline_root(root: str) -> None:
    """Refuses a root that not every node can write to.

    Raises:
      ConfigError: it is no path in a bucket of Google Cloud Storage.
    """
    if not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]+(/.*)?", root):
        raise ConfigError(
            f"--pipeline-root {root}: expected gs://BUCKET/PATH. Beam and TensorFlow write the "
            "artifacts of some nodes themselves, and of the object stores that Kubeflow knows "
            "both can write to this one only."
        )


def mounts(config: PipelineConfig) -> dict[str, list[Volume]]:
    """Finds the volumes that nodes need for the paths of the configuration.

    Returns:
      Node -> what must be mounted in it.

    Raises:
      ConfigError: a path is none that a container can see, or models cannot be pushed to it.
    """
    sources = [
        _volume(config, where, path) for where, path in _sources(config) if "://" not in path
    ]
    directory = config.serving.directory
    if directory is None:
        raise ConfigError(
            "serving.directory: not given. What a container writes is gone with it, so name a "
            "directory on a volume that the servers see, too, and the volume in kubeflow.volumes."
        )
    serving = _volume(config, "serving.directory", directory)
    return {
        INPUT_FINGERPRINT: _unique(sources),
        INTERACTION_GEN: _unique(sources),
        RETRIEVAL_EVALUATOR: [serving],
        PUSHER: [serving],
    }


def _sources(config: PipelineConfig) -> Iterator[tuple[str, str]]:
    """Yields the key and the value of every path that is read."""
    for index, source in enumerate(config.data.interactions):
        yield f"data.interactions.{index}.path", source.path
    if config.data.catalogue is not None:
        yield "data.catalogue.path", config.data.catalogue.path
    if config.data.users is not None:
        yield "data.users.path", config.data.users.path


def _volume(config: PipelineConfig, where: str, path: str) -> Volume:
    if "://" in path or not PurePosixPath(path).is_absolute():
        raise ConfigError(
            f"{where}: {path!r} is no absolute path. The containers share no working directory"
            + (
                ", and models are pushed by renaming, which object stores cannot do in one step: "
                if where.startswith("serving")
                else ": use a URI such as gs://.., or "
            )
            + "give a path on a volume of kubeflow.volumes."
        )
    for volume in config.kubeflow.volumes:
        if volume.holds(path):
            return volume
    known = ", ".join(f"{volume.path} ({volume.claim})" for volume in config.kubeflow.volumes)
    raise ConfigError(
        f"{where}: {path!r} lies on none of kubeflow.volumes, so no container sees it. Volumes: "
        f"{known or 'none'}. Add e.g. {{claim: shop-data, path: {PurePosixPath(path).parent}}}."
    )


def _unique(volumes: list[Volume]) -> list[Volume]:
    return list({volume.claim: volume for volume in volumes}.values())
