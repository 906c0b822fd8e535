"""One measurement of all stages: their input alone, their step alone, their node inside TFX."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tfx.types import channel_utils, standard_artifacts

from benchmarks.split import load
from components.artifacts import CascadeStage
from components.cascaded_trainer import spec
from components.cascaded_trainer.component import CascadedTrainer
from components.cascaded_trainer.executor import Executor
from models.batches import BatchMaker
from models.features import FeatureKinds
from models.packing import chunk_of, chunk_sizes, chunks, specs_of
from models.settings import StageSettings
from models.stages import StageTask
from models.towers import TwoTower
from pipeline.config import PipelineConfig
from pipeline.dag import Workdir
from pipeline.metadata.runs import read_run
from pipeline.metadata.store import open_store

_WARM_UP = 3  # steps, the first of which traces


def measure(
    config: PipelineConfig, workdir: Path, rounds: int, batches: int
) -> list[dict[str, Any]]:
    """Measures every stage once, on what the data nodes left in the working directory.

    The input and the step are measured right before and right after the node, as other work on
    the machine comes and goes.

    Args:
      config: of the run.
      workdir: see `split.prepare`.
      rounds: most rounds of training, of recovery, and of the refit, of a node.
      batches: of one measurement of the input and of the step.
    """
    # As the executor does.
    tf.keras.utils.set_random_seed(config.seed)
    tf.config.experimental.enable_op_determinism()
    config = _shortened(config, rounds)
    split = load(config, workdir)
    place = workdir / "stages"
    towers = TwoTower(split.spec, config.seed)
    previous: CascadeStage | None = None
    measured = []
    try:
        for stage, settings in enumerate(config.objectives):
            short = settings.model_copy(
                update={
                    "rounds": min(rounds, settings.rounds),
                    "recovery_rounds": min(rounds, settings.recovery_rounds),
                }
            )

            def maker(stage: int = stage, settings: StageSettings = short) -> BatchMaker:
                return split.data.batch_maker(
                    split.spec, stage, settings, config.model.negatives, config.seed + stage
                )

            task = StageTask(towers, split.data.item_features, stage, short)
            load_before = os.getloadavg()[0]
            alone = [_alone(maker(), task, batches)]
            previous, report, seconds = _node(config, workdir, stage, short, previous, place)
            alone.append(_alone(maker(), task, batches))
            towers = TwoTower.load(Path(previous.uri))
            measured.append(
                {
                    "objective": settings.name,
                    "load_before": load_before,
                    "load_after": os.getloadavg()[0],
                    "alone": alone,
                    "node_seconds": seconds,
                    "phases": [
                        {"name": phase["name"], **phase["fitted"]} for phase in report["phases"]
                    ],
                }
            )
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return measured


def _shortened(config: PipelineConfig, rounds: int) -> PipelineConfig:
    model = config.model
    refit_rounds = min(rounds, model.validation.refit_rounds)
    validation = model.validation.model_copy(update={"refit_rounds": refit_rounds})
    return config.model_copy(update={"model": model.model_copy(update={"validation": validation})})


def _alone(maker: BatchMaker, task: StageTask, n: int) -> dict[str, Any]:
    """The input without a step, and a bare tf.function loop over batches that lie in memory."""
    task.start(specs_of([maker]))
    batches = list(itertools.islice(maker.batches(), n))
    drawn = iter(batches)
    held = [chunk_of([(next(drawn),) for _ in range(size)]) for size in chunk_sizes(n)]
    task.steps(*chunk_of([(batch,) for batch in batches[:_WARM_UP]]))

    def read() -> None:
        for _ in chunks([maker], chunk_sizes(n)):
            pass

    def train() -> None:
        for chunk in held:
            loss, _ = task.steps(*chunk)
            loss.numpy()

    return {
        "batches": n,
        "rows": sum(len(batch.user_ids) for batch in batches),
        "positives": sum(int(np.count_nonzero(batch.positives >= 0)) for batch in batches),
        "candidates": len(batches[0].candidates),
        "input": _timed(read),
        "step": _timed(train),
    }


def _timed(run: Callable[[], None]) -> dict[str, float]:
    cpu, began = time.process_time(), time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}


def _node(
    config: PipelineConfig,
    workdir: Path,
    stage: int,
    settings: StageSettings,
    previous: CascadeStage | None,
    place: Path,
) -> tuple[CascadeStage, dict[str, Any], float]:
    """Runs the executor of CascadedTrainer as TFX does: (its artifact, its report, seconds)."""
    outputs = read_run(open_store(Workdir(workdir).metadata)).nodes["Transform"].outputs
    graph, examples = standard_artifacts.TransformGraph(), standard_artifacts.Examples()
    graph.set_mlmd_artifact(outputs["transform_graph"])
    examples.set_mlmd_artifact(outputs["transformed_examples"])
    node = CascadedTrainer(
        transform_graph=channel_utils.as_channel([graph]),
        transformed_examples=channel_utils.as_channel([examples]),
        previous=channel_utils.as_channel([previous]) if previous else None,
        stage_index=stage,
        objectives=config.objective_names,
        settings=settings,
        model=config.model,
        features=FeatureKinds.of(config.data),
        ordered=config.data.split.kind == "time",
        seed=config.seed,
    )
    inputs = {spec.TRANSFORM_GRAPH_KEY: [graph], spec.TRANSFORMED_EXAMPLES_KEY: [examples]}
    if previous:
        inputs[spec.PREVIOUS_KEY] = [previous]
    made = CascadeStage()
    made.uri = str(place / settings.name)
    began = time.perf_counter()
    Executor().Do(inputs, {spec.STAGE_KEY: [made]}, dict(node.exec_properties))
    seconds = time.perf_counter() - began
    report = json.loads((Path(made.uri) / spec.REPORT_FILE).read_text(encoding="utf-8"))
    return made, report, seconds
