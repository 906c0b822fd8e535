"""One measurement in a process of its own, so that its peak of memory is its own.

`python -m benchmarks.ingestion.measure READER FILE OUTPUT` prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# TFX asks for nothing of this; it keeps the libraries' notices out of the answer.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from benchmarks.ingestion.catalogue import ITEMS, catalogue_section
from benchmarks.ingestion.log import COLUMNS, OBJECTIVES, data_section
from benchmarks.processes import answer

BEAM_ARGUMENTS = ["--direct_running_mode=in_memory", "--direct_num_workers=1"]
MODULE = "benchmarks.ingestion.measure"  # runs by this name

Run = Callable[[], dict[str, Any]]


def interaction_gen(file: Path, output: Path) -> Run:
    """The executor of InteractionGen on the log, or on the catalogue and a few lines of a log."""
    from tfx.types import standard_artifacts

    from components.artifacts import DeadLetters, IngestionSummary
    from components.interaction_gen import spec
    from components.interaction_gen.executor import Executor
    from schemas.logs import DataSettings

    read, section = spec.INTERACTIONS, data_section
    if file.stem == ITEMS:
        read, section = spec.CATALOGUE, catalogue_section
    outputs = {}
    for key, kind in (
        (spec.EXAMPLES_KEY, standard_artifacts.Examples),
        (spec.DEAD_LETTERS_KEY, DeadLetters),
        (spec.SUMMARY_KEY, IngestionSummary),
    ):
        artifact = kind()
        artifact.uri = str(output / key / "1")
        outputs[key] = [artifact]
    properties = {
        spec.DATA_KEY: DataSettings.parse(section(file)).model_dump_json(),
        spec.OBJECTIVES_KEY: json.dumps(OBJECTIVES),
        spec.SEED_KEY: 1,
        spec.FINGERPRINT_KEY: "{}",
    }
    executor = Executor(Executor.Context(beam_pipeline_args=BEAM_ARGUMENTS))

    def run() -> dict[str, Any]:
        executor.Do({}, outputs, properties)
        summary = output / spec.SUMMARY_KEY / "1" / spec.SUMMARY_FILE
        report = json.loads(summary.read_text())
        table = report["tables"][read]
        accounted = table["used"] + table["dead_letters"] + sum(table["dropped"].values())
        assert accounted == table["read"]
        return {"rows": table["read"], "used": table["used"], "examples": report["examples"]}

    return run


def csv_example_gen(file: Path, output: Path) -> Run:
    """The executor of TFX's CsvExampleGen on the directory of the file."""
    from tfx.components.example_gen.csv_example_gen.executor import Executor
    from tfx.proto import example_gen_pb2
    from tfx.types import standard_artifacts
    from tfx.utils import proto_utils

    examples = standard_artifacts.Examples()
    examples.uri = str(output / "examples" / "1")
    whole = example_gen_pb2.Input(
        splits=[example_gen_pb2.Input.Split(name="all", pattern=file.name)]
    )
    properties = {
        "input_base": str(file.parent),
        "input_config": proto_utils.proto_to_json(whole),
        "output_config": proto_utils.proto_to_json(example_gen_pb2.Output()),
        "output_data_format": example_gen_pb2.FORMAT_TF_EXAMPLE,
    }
    executor = Executor(Executor.Context(beam_pipeline_args=BEAM_ARGUMENTS))

    def run() -> dict[str, Any]:
        executor.Do({}, {"examples": [examples]}, properties)
        with file.open("rb") as lines:
            return {"rows": sum(1 for _ in lines) - 1}

    return run


def arrow(file: Path, output: Path) -> Run:
    """Arrow's reader alone: every column into memory, batch by batch, and nothing else."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    def run() -> dict[str, Any]:
        if file.suffix == ".parquet":
            batches = pq.ParquetFile(file).iter_batches()
        else:
            kinds = pa.csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string()))
            batches = iter(pa.csv.open_csv(file, convert_options=kinds))
        return {"rows": sum(batch.num_rows for batch in batches)}

    return run


READERS: dict[str, Callable[[Path, Path], Run]] = {
    "InteractionGen": interaction_gen,
    "CsvExampleGen": csv_example_gen,
    "pyarrow": arrow,
}


def main(reader: str, file: Path, output: Path) -> None:
    """Measures one reader on one file."""
    run = READERS[reader](file, output)
    before = resource.getrusage(resource.RUSAGE_SELF)
    load = os.getloadavg()[0]
    began = time.perf_counter()
    found = run()
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    written = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    shutil.rmtree(output, ignore_errors=True)
    measured = found | {
        "seconds": seconds,
        "rows_per_second": found["rows"] / seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_bytes": after.ru_maxrss * 1024,
        "peak_bytes_before": before.ru_maxrss * 1024,
        "bytes_read": file.stat().st_size,
        "bytes_written": written,
        "load_before": load,
    }
    answer(measured)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
