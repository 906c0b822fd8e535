"""Writes the synthetic log and catalogue, measures every reader, prints and saves the figures."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.ingestion.catalogue import ITEMS, SyntheticCatalogue
from benchmarks.ingestion.log import LABEL, SyntheticLog
from benchmarks.ingestion.measure import MODULE
from benchmarks.processes import machine, measured_by
from pipeline import console

CURVE_ROWS = (500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000)

_HEAD = "head/log.csv"
_GIB = 1 << 30
_ROWS_PER_ITEM = 2  # of the log; the catalogue is read on its own
_MOST_MEMORY = 6 * _GIB  # for 10 million rows

# Reader, file of the log.
_READERS = (
    ("InteractionGen", "log.parquet"),
    ("InteractionGen", "log.csv"),
    ("InteractionGen", f"{ITEMS}.parquet"),
    ("InteractionGen", f"{ITEMS}.csv"),
    ("CsvExampleGen", _HEAD),
    ("pyarrow", "log.parquet"),
    ("pyarrow", "log.csv"),
)


def run(
    log: SyntheticLog,
    workdir: Path,
    json_path: Path,
    example_gen_rows: int,
    repeats: int,
    curve: bool,
) -> None:
    """Runs the benchmark.

    Args:
      log: what is read; a catalogue of half as many items, too.
      workdir: gets a directory with the log, which is deleted in the end.
      json_path: gets the figures.
      example_gen_rows: that CsvExampleGen reads, the first ones of the log.
      repeats: of each measurement; the readers take turns.
      curve: measure InteractionGen from 0.5 to 10 million rows, too.
    """
    head = min(example_gen_rows, log.rows)
    catalogue = SyntheticCatalogue(log.rows // _ROWS_PER_ITEM, log.seed)
    content: dict[str, Any] = {
        "data": LABEL,
        "log": dataclasses.asdict(log),
        "catalogue": dataclasses.asdict(catalogue),
        "example_gen_rows": head,
        "beam": "DirectRunner, in_memory",
        "machine": machine(),
        "measurements": [],
        "curve": [],
    }
    place = workdir / "synthetic-log"
    console.say(f"writing {log.rows:,} synthetic rows to {place}")
    try:
        log.write(place, head)
        catalogue.write(place)
        for repeat in range(repeats):
            for reader, file in _READERS:
                measured = _measure(reader, place / file, workdir / "output")
                _report(reader, file, measured, f"{repeat + 1} of {repeats}")
                content["measurements"].append({"reader": reader, "file": file} | measured)
        if curve:
            content["curve"] = _curve(log, workdir)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    content["summary"] = summarise(content)
    json_path.write_text(json.dumps(content, indent=1))
    console.say_wide(speeds(content))
    if curve:
        console.say_wide(growth(content))
    console.say_wide(targets(content))


def _curve(log: SyntheticLog, workdir: Path) -> list[dict[str, Any]]:
    points = []
    for rows in CURVE_ROWS:
        place = workdir / "synthetic-curve"
        try:
            dataclasses.replace(log, rows=rows).write(place)
            measured = _measure("InteractionGen", place / "log.parquet", workdir / "output")
        finally:
            shutil.rmtree(place, ignore_errors=True)
        _report("InteractionGen", "log.parquet", measured, "curve")
        points.append(measured)
    return points


def _report(reader: str, file: str, measured: dict[str, Any], which: str) -> None:
    console.say(
        f"{reader} {file} ({which}): {measured['rows']:,} rows, {measured['seconds']:.1f} s,"
        f" {measured['rows_per_second']:,.0f} rows/s, load before {measured['load_before']:.1f}"
    )


def _measure(reader: str, file: Path, output: Path) -> dict[str, Any]:
    shutil.rmtree(output, ignore_errors=True)
    return measured_by(MODULE, reader, str(file), str(output))


def summarise(content: dict[str, Any]) -> dict[str, Any]:
    """Medians, the ratio to CsvExampleGen, and how the cost grows."""
    rates: dict[str, float] = {}
    for reader, file in _READERS:
        found = [
            measured["rows_per_second"]
            for measured in content["measurements"]
            if (measured["reader"], measured["file"]) == (reader, file)
        ]
        rates[f"{reader} {file}"] = median(found)
    summary: dict[str, Any] = {
        "rows_per_second": rates,
        "times_csv_example_gen": rates["InteractionGen log.csv"] / rates[f"CsvExampleGen {_HEAD}"],
    }
    if content["curve"]:
        rows, seconds, cpu = (
            np.log([point[key] for point in content["curve"]])
            for key in ("rows", "seconds", "cpu_seconds")
        )
        # 1 is linear growth; less, because of what a run costs whatever its rows.
        summary["growth_exponent"] = float(np.polyfit(rows, seconds, 1)[0])
        summary["growth_exponent_cpu"] = float(np.polyfit(rows, cpu, 1)[0])
        summary["peak_bytes_of_largest"] = content["curve"][-1]["peak_bytes"]
    return summary


def speeds(content: dict[str, Any]) -> Table:
    """A table of all readers: medians, and from the smallest to the largest."""
    head = content["example_gen_rows"]
    table = Table(
        title=f"Ingestion of a synthetic log and catalogue, {content['beam']},"
        f" {content['machine']['cores']} cores; CsvExampleGen reads the first {head:,} rows only"
    )
    for name in (
        "",
        "rows",
        "rows/s",
        "spread",
        "CPU s",
        "peak MiB",
        "written MiB",
        "load",
        "runs",
    ):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for reader, file in _READERS:
        found = [
            measured
            for measured in content["measurements"]
            if (measured["reader"], measured["file"]) == (reader, file)
        ]
        rates = [measured["rows_per_second"] for measured in found]
        table.add_row(
            f"{reader}, {file}",
            f"{found[0]['rows']:,}",
            f"{median(rates):,.0f}",
            f"{min(rates):,.0f} to {max(rates):,.0f}",
            f"{_median(found, 'cpu_seconds'):.1f}",
            f"{_median(found, 'peak_bytes') / (1 << 20):,.0f}",
            f"{_median(found, 'bytes_written') / (1 << 20):,.1f}",
            f"{_median(found, 'load_before'):.1f}",  # other work on the machine takes time
            str(len(found)),
        )
    return table


def growth(content: dict[str, Any]) -> Table:
    """A table of the curve."""
    table = Table(title="InteractionGen by the rows of the synthetic log (Parquet)")
    names = ("rows", "seconds", "CPU s", "rows/s", "us/row", "peak MiB", "written MiB", "load")
    for name in names:
        table.add_column(name, justify="right")
    for point in content["curve"]:
        table.add_row(
            f"{point['rows']:,}",
            f"{point['seconds']:.1f}",
            f"{point['cpu_seconds']:.1f}",
            f"{point['rows_per_second']:,.0f}",
            f"{1e6 * point['seconds'] / point['rows']:.2f}",
            f"{point['peak_bytes'] / (1 << 20):,.0f}",
            f"{point['bytes_written'] / (1 << 20):,.1f}",
            f"{point['load_before']:.1f}",
        )
    return table


def targets(content: dict[str, Any]) -> Table:
    """What was asked for, and whether it was reached."""
    summary = content["summary"]
    rates = summary["rows_per_second"]
    lines = [
        ("CSV: times the rows/s of CsvExampleGen", ">= 20", summary["times_csv_example_gen"], 20),
        ("Parquet: rows/s", ">= 400,000", rates["InteractionGen log.parquet"], 400_000),
        ("CSV: rows/s", ">= 250,000", rates["InteractionGen log.csv"], 250_000),
    ]
    rows = [(what, asked, f"{value:,.0f}", value >= bound) for what, asked, value, bound in lines]
    if content["curve"]:
        exponent, peak = summary["growth_exponent"], summary["peak_bytes_of_largest"]
        rows += [
            (
                "time grows with the rows to the power of",
                "<= 1.05",
                f"{exponent:.2f}",
                exponent <= 1.05,
            ),
            (
                f"peak memory of {content['curve'][-1]['rows']:,} rows, GiB",
                "< 6",
                f"{peak / _GIB:.2f}",
                peak < _MOST_MEMORY,
            ),
        ]
    table = Table(title="csmf bench ingestion, synthetic log")
    for name in ("", "asked", "measured", "met"):
        table.add_column(name, justify="right" if name else "left")
    for what, asked, shown, met in rows:
        table.add_row(what, asked, shown, "yes" if met else "NO")
    return table


def _median(found: Sequence[dict[str, Any]], key: str) -> float:
    return float(median(measured[key] for measured in found))
