"""The configuration of a pipeline: one YAML file, typed, unknown keys refused."""

from __future__ import annotations

import hashlib
import importlib.resources
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from components.retrieval_evaluator.settings import LONGEST_LIST, METRICS, EvaluationSettings
from models.settings import IndexSettings, ModelSettings, StageSettings, TrainerSettings
from pipeline.kubeflow.settings import KubeflowSettings, node_names
from schemas.logs import DataSettings, check_objectives
from schemas.settings import ConfigError, Settings, nearest


class ServingSettings(Settings):
    """Where and how models are pushed and checked."""

    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")] = "recommender"
    directory: str | None = None
    """Serving directory; default: `serving` in the run's working directory."""

    keep_versions: Annotated[int, Field(gt=0)] = 5
    address: str | None = None
    """host:port of a running server; the push then waits until the version is available."""

    poll_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    sample_size: Annotated[int, Field(gt=0)] = 20
    """Held-out users that ServingValidator asks the candidate about."""

    validation_timeout_seconds: Annotated[float, Field(gt=0)] = 180.0


class BeamSettings(Settings):
    """Where Beam runs ingestion, statistics, transform and `csmf batch-recommend`."""

    runner: (
        Literal["DirectRunner", "FlinkRunner", "PortableRunner", "SparkRunner", "DataflowRunner"]
        | None
    ) = None
    """None = the DirectRunner inside this process, unless an option says --runner."""

    options: tuple[str, ...] = ()
    """Beam pipeline options, e.g. ["--flink_master=host:8081", "--parallelism=8"]. Given any, or a
    runner, TFX packs its own sources for remote workers, unless an option names their container."""

    @model_validator(mode="after")
    def _check_options(self) -> BeamSettings:
        for option in self.options:
            if not option.startswith("--"):
                raise ValueError(f"{option!r} must begin with --, as in --parallelism=8")
            if self.runner and option.split("=")[0] == "--runner":
                raise ValueError(f"name the runner once: runner is {self.runner}, and {option}")
        return self

    def arguments(self) -> list[str]:
        """As Beam takes them."""
        return [*([f"--runner={self.runner}"] if self.runner else []), *self.options]


class PipelineConfig(Settings):
    """Everything that a run depends on beside the data themselves."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    seed: Annotated[int, Field(ge=0)] = 7
    objectives: tuple[StageSettings, ...] = Field(min_length=1)
    data: DataSettings
    model: ModelSettings = ModelSettings()
    trainer: TrainerSettings = TrainerSettings()
    index: IndexSettings = IndexSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    serving: ServingSettings = ServingSettings()
    beam: BeamSettings = BeamSettings()
    kubeflow: KubeflowSettings = KubeflowSettings()

    @property
    def objective_names(self) -> list[str]:
        """Names of the objectives, first of the funnel first."""
        return [stage.name for stage in self.objectives]

    @model_validator(mode="after")
    def _check_objectives(self) -> PipelineConfig:
        names = self.objective_names
        if len(set(names)) < len(names):
            raise ValueError(f"objectives: each name may occur once, got {', '.join(names)}")
        check_objectives(self.data, names)
        for section, keys in (
            ("evaluation.weights", self.evaluation.weights),
            ("evaluation.floors", self.evaluation.floors),
        ):
            for key in keys:
                if key not in names:
                    raise ValueError(
                        f"{section}: {key!r} is no objective.{nearest(key, names)} "
                        f"Objectives: {', '.join(names)}."
                    )
        for name, weights in self.evaluation.weights.items():
            if len(weights) != len(names):
                raise ValueError(
                    f"evaluation.weights.{name}: {len(weights)} weights given, one for each of "
                    f"{', '.join(names)} expected"
                )
        for floors in self.evaluation.floors.values():
            for metric in floors:
                if metric not in METRICS:
                    raise ValueError(
                        f"evaluation.floors: unknown metric {metric!r}."
                        f"{nearest(metric, list(METRICS))} Metrics: {', '.join(METRICS)}."
                    )
        towers = self.model.towers
        if towers.dimension < len(names) * towers.minimum_block:
            raise ValueError(
                f"model.towers.dimension is {towers.dimension}, too few for {len(names)} "
                f"objectives of at least minimum_block = {towers.minimum_block} each"
            )
        if self.index.top_k < LONGEST_LIST:
            raise ValueError(
                f"index.top_k is {self.index.top_k}; the evaluation needs lists of at least "
                f"{LONGEST_LIST}"
            )
        return self

    @model_validator(mode="after")
    def _check_nodes(self) -> PipelineConfig:
        known = node_names(self.objective_names)
        for name in self.kubeflow.nodes:
            if name not in known:
                raise ValueError(
                    f"kubeflow.nodes: no node {name!r}.{nearest(name, known)} "
                    f"Nodes: {', '.join(known)}."
                )
        return self

    @model_validator(mode="after")
    def _check_distribution(self) -> PipelineConfig:
        for stage in self.objectives:
            if stage.importance == "gradient" and self.trainer.distribution != "none":
                raise ValueError(
                    f"objectives.{stage.name}.importance is gradient; this ablation is measured on "
                    f"one device, and trainer.distribution is {self.trainer.distribution}: use none"
                )
        return self

    @model_validator(mode="after")
    def _check_dropout(self) -> PipelineConfig:
        if self.data.split.kind != "time":
            for stage in self.objectives:
                if stage.history_dropout == 0:
                    raise ValueError(
                        f"objectives.{stage.name}.history_dropout is 0; without times "
                        "(split.kind: leave_out) the hidden part of a history is what is "
                        "predicted, so it must be above 0"
                    )
        return self

    def sha256(self) -> str:
        """Hash of the configuration's content, defaults included."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def load_config(path: Path) -> PipelineConfig:
    """Reads a configuration file, or the ready one of that name if there is no such file.

    Raises:
      ConfigError: the file is missing, is no YAML, or holds something that is not understood.
    """
    ready = {
        file.name.removesuffix(".yaml"): file
        for file in importlib.resources.files("configs").iterdir()
        if file.name.endswith(".yaml")
    }
    source = path if path.exists() else ready.get(str(path))
    if source is None:
        raise ConfigError(
            f"no configuration at {path}.{nearest(path.stem, list(ready))} Ready ones, to be given "
            f"by name: {', '.join(sorted(ready))}."
        )
    try:
        raw = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(raw).__name__}")
    try:
        return PipelineConfig.parse(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}:\n{error}") from error
