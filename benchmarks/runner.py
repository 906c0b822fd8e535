"""Runs trials (row, dimension, seed) in worker processes, and keeps what they gave in one file.

A trial that the file holds is not run again, so an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.outcome import Outcome
from benchmarks.split import Split, load
from pipeline.config import PipelineConfig
from schemas.files import write_atomically
from schemas.settings import ConfigError

Say = Callable[[str], None]
Run = Callable[[str, Split, int], list[Outcome]]  # (row, split, seed)


@dataclass(frozen=True)
class Trial:
    """One training of one row of the table."""

    row: str
    dimension: int
    seed: int

    def __str__(self) -> str:
        return f"{self.row}, {self.dimension} dimensions, seed {self.seed}"


class Results:
    """The JSON file: `{"data", "config_sha256", "trials": [..], "records": [..]}`.

    A record is one method, weighting, dimension, seed, objective and metric with its value.
    """

    def __init__(self, path: Path, config: PipelineConfig):
        """Reads the file if there is one.

        Raises:
          ConfigError: it was made with another configuration.
        """
        self._path = path
        self.content: dict[str, Any] = {
            "data": config.name,
            "config_sha256": config.sha256(),
            "trials": [],
            "records": [],
        }
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if before["config_sha256"] != config.sha256():
                raise ConfigError(
                    f"{path} holds results of another configuration ({before['data']}, sha256 "
                    f"{before['config_sha256'][:12]}); this one is {config.name}, "
                    f"{config.sha256()[:12]}. Delete the file or name another one."
                )
            self.content = before

    def has(self, trial: Trial) -> bool:
        """Whether the trial is in the file."""
        return any(_same(done, trial) for done in self.content["trials"])

    def add(self, trial: Trial, outcomes: Sequence[Outcome], seconds: float) -> None:
        """Appends a trial and writes the file, atomically."""
        key = {"method": trial.row, "dimension": trial.dimension, "seed": trial.seed}
        self.content["trials"].append(
            key
            | {
                "wall_seconds": round(seconds, 1),
                "outcomes": [
                    {"weighting": o.weighting, **dataclasses.asdict(o.cost), **o.details}
                    for o in outcomes
                ],
            }
        )
        self.content["records"] += [
            key
            | {
                "weighting": outcome.weighting,
                "objective": objective,
                "metric": metric,
                "value": value,
            }
            for outcome in outcomes
            for objective, metrics in outcome.metrics.items()
            for metric, value in metrics.items()
        ]
        write_atomically(self._path, json.dumps(self.content, indent=1).encode())


def _same(done: dict[str, Any], trial: Trial) -> bool:
    return (done["method"], done["dimension"], done["seed"]) == (
        trial.row,
        trial.dimension,
        trial.seed,
    )


def run_trials(
    config: PipelineConfig,
    workdir: Path,
    trials: Sequence[Trial],
    run: Run,
    results: Results,
    workers: int,
    say: Say,
) -> None:
    """Runs the trials that the results lack, each in a process of its own.

    One that fails (pruning may leave a stage too little room) keeps no other from running.

    Args:
      config: of the split.
      workdir: where `split.prepare` left the data.
      trials: in the order to run them.
      run: what trains a row; importable, as it is called in another process.
      results: extended after every trial.
      workers: trials at a time; each has one thread of TensorFlow.
      say: progress.

    Raises:
      ConfigError: some trials failed, after all others are in the results.
    """
    missing = [trial for trial in trials if not results.has(trial)]
    say(f"{len(trials)} trainings, {len(trials) - len(missing)} of them done before")
    started = time.monotonic()
    failed: list[str] = []
    # Spawned, because TensorFlow does not survive a fork; one task each, so that memory is freed.
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        futures = {pool.submit(_run_trial, config, workdir, trial, run): trial for trial in missing}
        for number, future in enumerate(concurrent.futures.as_completed(futures), start=1):
            trial, place = futures[future], f"{number}/{len(missing)}"
            if error := future.exception():
                failed.append(f"{trial}: {error}")
                # A ValueError is about settings or data, and its text says all; others are faults.
                is_fault = not isinstance(error, ValueError)
                told = "".join(traceback.format_exception(error)) if is_fault else str(error)
                say(f"{place} {trial} failed: {told}")
                continue
            outcomes, seconds = future.result()
            results.add(trial, outcomes, seconds)
            say(f"{place} {trial}: {seconds:.0f} s, {time.monotonic() - started:.0f} s in all")
    if failed:
        raise ConfigError(
            f"{len(failed)} of {len(missing)} trainings failed, all others are in the results:\n"
            + "\n".join(failed)
        )


def _run_trial(
    config: PipelineConfig, workdir: Path, trial: Trial, run: Run
) -> tuple[list[Outcome], float]:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.keras.utils.set_random_seed(trial.seed)
    tf.config.experimental.enable_op_determinism()
    split = load(config, workdir).at(trial.dimension)
    started = time.monotonic()
    outcomes = run(trial.row, split, trial.seed)
    return outcomes, time.monotonic() - started
