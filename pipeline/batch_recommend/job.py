"""The whole of `csmf batch-recommend`: checks, the Beam job, and what is published of it."""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import apache_beam as beam
import pyarrow.parquet as pq
from apache_beam.io.parquetio import WriteToParquetBatched
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.batch_recommend import transforms as steps
from pipeline.batch_recommend.model import AskedModel, find_model
from pipeline.batch_recommend.scorer import SCHEMA
from pipeline.batch_recommend.users import Part, plan
from pipeline.recommend import parse_weights
from schemas.logs import DataError
from schemas.settings import ConfigError

DEAD_LETTERS_FILE = "dead_letters.jsonl"
SUMMARY_FILE = "summary.json"
LISTS_DIRECTORY = "recommendations"  # of Parquet files only, so that it can be read as one table
_COUNTS_FILE = "counts.jsonl"  # what Beam tells this process; deleted once read
_LOG = logging.getLogger("csmf.batch_recommend")


@dataclass(frozen=True)
class Request:
    """What was asked for; see the options of the command."""

    workdir: Path
    users: str
    output: Path
    weights: str | None = None
    count: int | None = None
    version: int | None = None
    model: str | None = None
    stock: bool = False
    batch_size: int = 1


@dataclass(frozen=True)
class Result:
    """What summary.json holds.

    Attributes:
      model, version, model_id: what answered.
      weights: objective -> weight, as asked.
      items_per_list: at most.
      batch_size: users in one run of the model.
      read: rows of the input; `written` and all `dead_letters` together.
      written: lists.
      dead_letters: reason -> rows.
      seconds: of the job.
    """

    model: str
    version: int
    model_id: str
    weights: Mapping[str, float]
    items_per_list: int
    batch_size: int
    read: int
    written: int
    dead_letters: Mapping[str, int]
    seconds: float


def run(request: Request, beam_arguments: Sequence[str] = ()) -> Result:
    """Writes lists for all users.

    Args:
      request: what and for whom.
      beam_arguments: of the pipeline, e.g. --runner=FlinkRunner; none = in this process.

    Raises:
      ConfigError: no such model, weights or users file, the output exists, or no row is usable.
      RuntimeError: the job failed; the output directory is then not made.
    """
    started = time.monotonic()
    output = request.output.absolute()
    _check_output(output)
    model = find_model(request.workdir, request.model, request.stock, request.version)
    count = _count(request.count, model)
    weights = None if request.weights is None else _weights(request.weights, model)
    parts, unused = plan(request.users, model)
    if unused:
        _LOG.info(
            "columns that are not used: %s (inputs of the model: %s)",
            ", ".join(unused),
            ", ".join(model.inputs),
        )
    _LOG.info("asking %s version %d", model.name, model.version)
    with _staging(output) as directory:
        with beam.Pipeline(options=PipelineOptions(list(beam_arguments))) as pipeline:
            scoring = steps.ScoreUsers(model, weights, count, request.batch_size)
            _build(pipeline, parts, model, scoring, request.batch_size, directory)
        counts = _take_counts(directory)
        result = Result(
            model.name,
            model.version,
            model.model_id,
            dict(zip(model.objectives, weights or [1.0] * len(model.objectives), strict=True)),
            count,
            request.batch_size,
            counts.get(steps.READ, 0),
            counts.get(steps.WRITTEN, 0),
            {
                name.removeprefix(steps.DEAD_PREFIX): rows
                for name, rows in sorted(counts.items())
                if name.startswith(steps.DEAD_PREFIX)
            },
            round(time.monotonic() - started, 3),
        )
        _remove_leftovers(directory)
        _check_result(result, directory)
        text = json.dumps(asdict(result), indent=2, ensure_ascii=False)
        (directory / SUMMARY_FILE).write_text(text + "\n", encoding="utf-8")
        _check_output(output)
        directory.rename(output)
    return result


# --- before the job -------------------------------------------------------------------------------


def _check_output(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"-o {output} exists already: choose another directory, or remove it")


def _count(asked: int | None, model: AskedModel) -> int:
    if asked is not None and asked > model.top_k:
        raise ConfigError(
            f"-n {asked}: {model.name} version {model.version} returns {model.top_k} items at "
            "most (index.top_k of its configuration)"
        )
    return asked or model.top_k


def _weights(text: str, model: AskedModel) -> list[float]:
    weights = parse_weights(text, model.objectives)
    if not all(map(math.isfinite, weights)):
        raise ConfigError(f"--weights {text}: weights must be finite numbers")
    return weights


# --- the job --------------------------------------------------------------------------------------


def _build(
    pipeline: beam.Pipeline,
    parts: Sequence[Part],
    model: AskedModel,
    scoring: steps.ScoreUsers,
    batch_size: int,
    directory: Path,
) -> None:
    rows = (
        pipeline
        | "Parts" >> beam.Create(parts)
        | "SpreadParts" >> beam.Reshuffle()
        | "Read"
        >> beam.ParDo(
            steps.ReadUsers(model.inputs, len(model.objectives), batch_size)
        ).with_outputs(steps.DEAD, steps.COUNTS, main="users")
    )
    lists = (
        rows["users"]
        # One large file must not keep all but one worker idle.
        | "SpreadUsers" >> beam.Reshuffle()
        | "Score" >> beam.ParDo(scoring).with_outputs(steps.COUNTS, main="lists")
    )
    about = {"model": model.name, "version": model.version, "model_id": model.model_id}
    lists["lists"] | "Write" >> WriteToParquetBatched(
        str(directory / LISTS_DIRECTORY / "part"),
        SCHEMA.with_metadata({"csmf": json.dumps(about)}),
        file_name_suffix=".parquet",
    )
    dead = rows[steps.DEAD]
    _write_lines(dead | "Lines" >> beam.Map(steps.dead_letter_line), directory / DEAD_LETTERS_FILE)
    counts = (
        (rows[steps.COUNTS], lists[steps.COUNTS], dead | beam.Map(steps.dead_letter_count))
        | "AllCounts" >> beam.Flatten()
        | "Sum" >> beam.CombinePerKey(sum)
        | "CountLines" >> beam.Map(json.dumps)
    )
    _write_lines(counts, directory / _COUNTS_FILE)


def _write_lines(lines: beam.PCollection, path: Path) -> None:
    lines | f"Write {path.name}" >> beam.io.WriteToText(
        str(path), num_shards=1, shard_name_template=""
    )


# --- after the job --------------------------------------------------------------------------------


@contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """A directory beside the output, which a rename makes the output; deleted if it is left."""
    output.parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    directory.chmod(0o755)  # mkdtemp's 0700 would hide it from workers and readers of other users
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _take_counts(directory: Path) -> dict[str, int]:
    path = directory / _COUNTS_FILE
    if not path.exists():
        raise RuntimeError(
            f"the workers have written nothing to {directory}. Workers on other machines need "
            "--output, --users and --workdir on a file system that all share."
        )
    counts = dict(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    path.unlink()
    return counts


def _remove_leftovers(directory: Path) -> None:
    """Temporary files of Beam that an attempt, which died, has left."""
    for path in [*directory.glob("beam-temp-*"), *directory.glob("*/beam-temp-*")]:
        shutil.rmtree(path)


def _check_result(result: Result, directory: Path) -> None:
    """Refuses what would be published with rows missing."""
    dead = sum(result.dead_letters.values())
    on_disk = sum(
        pq.read_metadata(path).num_rows for path in (directory / LISTS_DIRECTORY).iterdir()
    )
    if not result.read == result.written + dead or on_disk != result.written:
        raise RuntimeError(
            f"{result.read} rows were read, but {result.written} written ({on_disk} are on disk) "
            f"and {dead} became dead letters. Nothing was published; please report this."
        )
    if not result.read:
        raise DataError("--users: the files hold no rows")
    if not result.written:
        with (directory / DEAD_LETTERS_FILE).open(encoding="utf-8") as file:
            first = file.readline().strip()
        raise DataError(
            f"--users: none of the {result.read} rows can be used. One of them: {first}"
        )
