"""The split that every method of a benchmark sees: the pipeline's own data nodes make it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tensorflow_transform as tft
from tfx.types import standard_artifacts

from components.examples import read_split
from models.catalogue import read_catalogue
from models.features import FeatureKinds
from models.held_out import HeldOut
from models.preprocessing import ITEM_VOCABULARY, USER_VOCABULARY
from models.settings import ModelSettings
from models.stages import TrainingData
from models.timelines import Timelines, read_timelines
from models.towers import TowerSpec
from pipeline.config import PipelineConfig
from pipeline.dag import Workdir
from pipeline.local.runner import run_locally
from pipeline.metadata.runs import read_run
from pipeline.metadata.store import open_store
from schemas.names import CATALOGUE_SPLIT, EVAL_SPLIT, TRAIN_SPLIT

_LAST_NODE = "Transform"


@dataclass(frozen=True)
class Split:
    """Training, validation and test events, and the shapes of a network over them."""

    config: PipelineConfig
    spec: TowerSpec
    full: Timelines  # all training events
    data: TrainingData  # the same, the validation events set aside
    test: HeldOut

    @property
    def validation(self) -> HeldOut:
        """The held-out part of the training events."""
        assert self.data.held_out is not None
        return self.data.held_out

    @property
    def model(self) -> ModelSettings:
        """What all stages share, at this split's dimension."""
        return self.config.model.model_copy(update={"towers": self.spec.towers})

    def at(self, dimension: int) -> Split:
        """The same events with index vectors, and item tables, of another length."""
        towers = self.spec.towers.model_copy(
            update={"dimension": dimension, "item_embedding": dimension}
        )
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, towers=towers))


def prepare(config: PipelineConfig, workdir: Path, say: Callable[[str], None]) -> None:
    """Runs ingestion, validation of the data and Transform, or takes them from the cache."""

    def progress(node: str, event: str) -> None:
        if event == "executed":
            say(f"{node} executed")

    run_locally(config, Workdir(workdir), None, _LAST_NODE, True, progress)


def load(config: PipelineConfig, workdir: Path) -> Split:
    """Reads what `prepare` left in the working directory.

    Raises:
      ValueError: the configuration sets no validation events aside.
    """
    if config.model.validation.share == 0:
        raise ValueError(
            "model.validation.share is 0; the benchmark chooses settings and request weights on "
            "validation events and needs a share above 0"
        )
    outputs = read_run(open_store(Workdir(workdir).metadata)).nodes[_LAST_NODE].outputs
    transform = tft.TFTransformOutput(outputs["transform_graph"].uri)
    examples = standard_artifacts.Examples()
    examples.set_mlmd_artifact(outputs["transformed_examples"])
    features = FeatureKinds.of(config.data)
    ordered = config.data.split.kind == "time"
    spec = TowerSpec(
        towers=config.model.towers,
        n_objectives=len(config.objectives),
        ordered=ordered,
        n_items=transform.vocabulary_size_by_name(ITEM_VOCABULARY),
        n_users=transform.vocabulary_size_by_name(USER_VOCABULARY),
        user_features=features.user_sizes(transform),
        item_features=features.item_sizes(transform),
    )

    def records(split: str) -> Iterator[bytes]:
        return read_split([examples], split)

    def timelines(split: str) -> Timelines:
        return read_timelines(records(split), spec.n_items, spec.n_users, list(features.user))

    full = timelines(TRAIN_SPLIT)
    catalogue = read_catalogue(records(CATALOGUE_SPLIT), transform, features.item)
    return Split(
        config=config,
        spec=spec,
        full=full,
        data=TrainingData.split(full, ordered, catalogue.features, config.model, config.seed),
        test=HeldOut.of(timelines(EVAL_SPLIT), config.evaluation.max_queries, config.seed),
    )
