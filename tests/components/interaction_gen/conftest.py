"""Runs the real ingestion on Beam's in-memory runner and reads back what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
import tensorflow as tf

from components.interaction_gen.ingest import Outputs, ingest
from components.interaction_gen.summary import IngestionReport
from schemas.logs import DataSettings

OBJECTIVES = ["exposure", "click", "conversion"]

Chunk = list[tuple[int, str, int, int]]  # time (ms), item, level, target level


@dataclass
class Ingested:
    """What one run wrote."""

    report: IngestionReport
    chunks: dict[str, dict[str, list[Chunk]]]  # split -> user -> chunks
    features: dict[str, dict[str, Any]]  # "user <id>" or "item <id>" -> feature -> values
    titles: dict[str, str]
    dead: list[dict[str, Any]] = field(default_factory=list)


def make_pipeline() -> beam.Pipeline:
    return beam.Pipeline(argv=["--direct_running_mode=in_memory", "--direct_num_workers=1"])


def examples(directory: Path, split: str) -> Iterable[dict[str, list[Any]]]:
    files = sorted(str(path) for path in (directory / f"Split-{split}").iterdir())
    for record in tf.data.TFRecordDataset(files, compression_type="GZIP"):
        parsed = tf.train.Example.FromString(record.numpy())
        yield {
            name: [
                value.decode() if isinstance(value, bytes) else value
                for value in getattr(feature, feature.WhichOneof("kind")).value
            ]
            for name, feature in parsed.features.feature.items()
        }


def dead_letters(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "dead_letters.jsonl").read_text().splitlines()
    return sorted(
        (json.loads(line) for line in lines),
        key=lambda letter: (letter["table"], letter["file"], letter["line"]),
    )


def collect(report: IngestionReport, outputs: Outputs) -> Ingested:
    result = Ingested(report, {"train": {}, "eval": {}}, {}, {})
    for split in ("train", "eval"):
        for example in examples(Path(outputs.examples), split):
            (user,) = example.pop("user_id")
            columns = [
                example.pop(name) for name in ("timestamps", "item_ids", "levels", "target_levels")
            ]
            chunk = list(zip(*columns, strict=True))
            result.chunks[split].setdefault(user, []).append(chunk)
            result.features[f"user {user}"] = example
    for users in result.chunks.values():
        for chunks in users.values():
            chunks.sort(key=lambda chunk: chunk[-1])
    for example in examples(Path(outputs.examples), "catalogue"):
        (item,) = example.pop("item_id")
        (title,) = example.pop("item_title")
        assert item not in result.titles
        result.titles[item] = title
        result.features[f"item {item}"] = example
    result.dead = dead_letters(Path(outputs.dead_letters))
    return result


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    return Outputs(*(str(tmp_path / "out" / name) for name in ("examples", "dead", "summary")))


@pytest.fixture
def run(outputs: Outputs) -> Callable[..., Ingested]:
    """Ingests by a `data:` section given as plain YAML data."""

    def run_(
        data: dict[str, Any],
        objectives: list[str] | None = None,
        seed: int = 7,
        fingerprint: dict[str, str] | None = None,
    ) -> Ingested:
        report = ingest(
            DataSettings.parse(data),
            OBJECTIVES if objectives is None else objectives,
            seed,
            make_pipeline,
            outputs,
            fingerprint,
        )
        return collect(report, outputs)

    return run_
