"""What to serve: models, their base paths, which versions, and labels. Imports no TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

# A directory is a SavedModel if it holds one of these; writers put them there last.
GRAPH_FILES = ("saved_model.pb", "saved_model.pbtxt")


class VersionPolicy(Protocol):
    """Chooses the versions to serve among those on disk."""

    def aspired(self, found: Sequence[int]) -> list[int]:
        """Returns the versions to serve; `found` is sorted ascending."""


@dataclass(frozen=True)
class Latest:
    """Serves the `count` highest versions. 0 means 1, as in TensorFlow Serving."""

    count: int = 1

    def aspired(self, found: Sequence[int]) -> list[int]:
        """See VersionPolicy."""
        return list(found[-max(self.count, 1) :])


@dataclass(frozen=True)
class All:
    """Serves every version on disk."""

    def aspired(self, found: Sequence[int]) -> list[int]:
        """See VersionPolicy."""
        return list(found)


@dataclass(frozen=True)
class Specific:
    """Serves exactly these versions, as far as they are on disk."""

    versions: tuple[int, ...]

    def aspired(self, found: Sequence[int]) -> list[int]:
        """See VersionPolicy."""
        return [version for version in found if version in self.versions]


@dataclass(frozen=True)
class ModelConfig:
    """One served model.

    Attributes:
      base_path: directory of the numbered versions, `<base_path>/<N>/saved_model.pb`.
      policy: which versions to serve.
      labels: names clients may use instead of a version number.
    """

    base_path: str
    policy: VersionPolicy = field(default_factory=Latest)
    labels: Mapping[str, int] = field(default_factory=dict)


def as_model_config(model: ModelConfig | str | os.PathLike[str]) -> ModelConfig:
    """A bare path means the default policy and no labels."""
    return model if isinstance(model, ModelConfig) else ModelConfig(os.fspath(model))
