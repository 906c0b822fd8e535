"""The ingestion as one function: settings in, files and a report out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import AsSingleton, PCollection

from components.interaction_gen import spec
from components.interaction_gen import transforms as steps
from components.interaction_gen.files import Work, plan_work
from components.interaction_gen.histogram import MergeHistograms
from components.interaction_gen.summary import IngestionReport, build_report, check_report
from schemas.logs import DataSettings, check_objectives
from schemas.names import CATALOGUE_SPLIT, EVAL_SPLIT, TRAIN_SPLIT

_FACTS = "facts.jsonl"  # what Beam tells this process; deleted once read


class Outputs(NamedTuple):
    """Directories to write to."""

    examples: str
    dead_letters: str
    summary: str


def ingest(
    data: DataSettings,
    objectives: Sequence[str],
    seed: int,
    make_pipeline: Callable[[], beam.Pipeline],
    outputs: Outputs,
    fingerprint: Mapping[str, str] | None = None,
) -> IngestionReport:
    """Reads logs, catalogue and users; writes timelines, catalogue, dead letters and summary.

    Dead letters and summary are written whenever the Beam pipeline ran, also if the data are then
    refused.

    Args:
      data: what to read and how.
      objectives: names, first of the funnel first.
      seed: decides what a leave-out split holds out.
      make_pipeline: returns a new Beam pipeline, on whatever runner.
      outputs: where to write.
      fingerprint: path -> SHA-256 of the inputs, for the summary.

    Returns:
      What `summary.json` holds.

    Raises:
      ConfigError: sources and objectives do not fit together.
      DataError: the data cannot be used.
    """
    check_objectives(data, list(objectives))
    work = plan_work(data)
    for directory in outputs:
        _make_directory(directory)
    with make_pipeline() as pipeline:
        build(pipeline, data, objectives, seed, work, outputs)
    facts_file = FileSystems.join(outputs.summary, _FACTS)
    with FileSystems.open(facts_file) as handle:
        facts = [json.loads(line) for line in handle.read().splitlines()]
    FileSystems.delete([facts_file])
    files = list(dict.fromkeys((part.table, part.file) for part in work))
    report = build_report(facts, data, objectives, seed, files, fingerprint or {})
    with FileSystems.create(FileSystems.join(outputs.summary, spec.SUMMARY_FILE)) as handle:
        handle.write(report.to_json().encode())
    check_report(report, data)
    return report


def build(
    pipeline: beam.Pipeline,
    data: DataSettings,
    objectives: Sequence[str],
    seed: int,
    work: Sequence[Work],
    outputs: Outputs,
) -> None:
    """Adds the whole ingestion to a Beam pipeline."""
    tables = (
        pipeline
        | "Parts" >> beam.Create(list(enumerate(work)), reshuffle=False)
        # Spreads the parts over workers as Reshuffle would, whose random keys change their order.
        | "Spread" >> beam.GroupByKey()
        | "Read"
        >> beam.ParDo(steps.ReadTables(data, list(objectives))).with_outputs(
            *spec.TABLES, steps.HISTOGRAMS, steps.COUNTS, steps.DEAD
        )
    )
    histogram = tables[steps.HISTOGRAMS] | "Histogram" >> beam.CombineGlobally(MergeHistograms())
    cut = histogram | "Cut" >> beam.Map(steps.cut_of, data.split)
    timelines = (
        {"events": tables[spec.INTERACTIONS], "users": tables[spec.USERS]}
        | "GroupByUser" >> beam.CoGroupByKey()
        | "Timelines"
        >> beam.ParDo(steps.BuildTimelines(data, seed), AsSingleton(cut)).with_outputs(
            TRAIN_SPLIT, EVAL_SPLIT, steps.SEEN_ITEMS, steps.COUNTS
        )
    )
    items = (
        {"seen": timelines[steps.SEEN_ITEMS], "catalogue": tables[spec.CATALOGUE]}
        | "GroupByItem" >> beam.CoGroupByKey()
        | "Catalogue"
        >> beam.ParDo(steps.BuildCatalogue(data)).with_outputs(steps.COUNTS, main=steps.MAIN)
    )
    for split, examples, shards in (
        (TRAIN_SPLIT, timelines[TRAIN_SPLIT], data.shards),
        (EVAL_SPLIT, timelines[EVAL_SPLIT], data.shards),
        (CATALOGUE_SPLIT, items[steps.MAIN], data.catalogue_shards),
    ):
        _write_examples(examples, split, shards, outputs.examples)

    dead = tables[steps.DEAD]
    _write_lines(
        dead | "DeadLetterLines" >> beam.Map(steps.dead_letter_line),
        FileSystems.join(outputs.dead_letters, spec.DEAD_LETTERS_FILE),
        "WriteDeadLetters",
    )
    kinds = (
        dead
        | "ByKind" >> beam.Map(lambda letter: ((letter.table, letter.kind), letter))
        | "Kinds" >> beam.CombinePerKey(steps.SummariseDeadLetters())
        | "KindFacts" >> beam.Map(steps.dead_letter_fact)
    )
    counts = (
        tuple(part[steps.COUNTS] for part in (tables, timelines, items))
        | "AllCounts" >> beam.Flatten()
        | "Counts" >> beam.CombinePerKey(sum)
        | "CountFacts" >> beam.Map(steps.count_fact)
    )
    time = histogram | "TimeFact" >> beam.Map(steps.time_fact, AsSingleton(cut))
    _write_lines(
        (kinds, counts, time) | "Facts" >> beam.Flatten(),
        FileSystems.join(outputs.summary, _FACTS),
        "WriteFacts",
    )


def _write_examples(examples: PCollection, split: str, shards: int, directory: str) -> None:
    # One writer per file, because Beam's own sharding starts at a random file.
    parts = examples | f"Shard[{split}]" >> beam.Partition(steps.shard_of, shards)
    for index, part in enumerate(parts):
        name = f"{spec.EXAMPLES_PREFIX}-{index:05d}-of-{shards:05d}"
        part | f"Write[{split}-{index}]" >> beam.io.WriteToTFRecord(
            FileSystems.join(directory, f"Split-{split}", name),
            file_name_suffix=".gz",
            num_shards=1,
            shard_name_template="",
        )


def _write_lines(lines: PCollection, path: str, label: str) -> None:
    lines | label >> beam.io.WriteToText(path, num_shards=1, shard_name_template="")


def _make_directory(path: str) -> None:
    if not FileSystems.exists(path):
        FileSystems.mkdirs(path)
