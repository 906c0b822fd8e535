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
from components.interaction_gen.records import delete_parts
from components.interaction_gen.shards import ShardCounts
from components.interaction_gen.summary import IngestionReport, build_report, check_report
from schemas.logs import DataSettings, check_objectives
from schemas.names import CATALOGUE_SPLIT, EVAL_SPLIT, TRAIN_SPLIT

_SHARDED = (spec.INTERACTIONS, spec.USERS, spec.CATALOGUE)
_FACTS = "facts.jsonl"  # what Beam tells this process; deleted once read
_PARTS = "parts"  # directory in that of the examples; deleted in the end


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
    places = steps.Places(
        examples=outputs.examples,
        dead_letters=FileSystems.join(outputs.dead_letters, spec.DEAD_LETTERS_FILE),
        parts=FileSystems.join(outputs.examples, _PARTS),
    )
    facts_file = FileSystems.join(outputs.summary, _FACTS)
    delete_parts(places.parts)  # of a run that was killed
    # Not by the workers, of which two could be at it at the same time.
    for split in (TRAIN_SPLIT, EVAL_SPLIT, CATALOGUE_SPLIT):
        _make_directory(places.split_directory(split))
    _make_directory(places.parts)
    try:
        with make_pipeline() as pipeline:
            build(pipeline, data, objectives, seed, work, places, facts_file)
    finally:
        delete_parts(places.parts)
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
    places: steps.Places,
    facts_file: str,
) -> None:
    """Adds the whole ingestion to a Beam pipeline."""
    shards = ShardCounts.for_rows(
        *(sum(part.rows for part in work if part.table == table) for table in _SHARDED)
    )
    tables = (
        pipeline
        | "Work" >> beam.Create(list(enumerate(work)), reshuffle=False)
        # Spreads the work over workers as Reshuffle would, whose random keys change its order.
        | "Spread" >> beam.GroupByKey()
        | "Read"
        >> beam.ParDo(steps.ReadTables(data, list(objectives), shards, places)).with_outputs(
            *spec.TABLES, steps.HISTOGRAMS, steps.COUNTS, steps.KINDS, steps.PARTS
        )
    )
    histogram = tables[steps.HISTOGRAMS] | "Histogram" >> beam.CombineGlobally(MergeHistograms())
    cut = histogram | "Cut" >> beam.Map(steps.cut_of, data.split)
    timelines = (
        {"events": tables[spec.INTERACTIONS], "users": tables[spec.USERS]}
        | "GroupUsers" >> beam.CoGroupByKey()
        | "Timelines"
        >> beam.ParDo(
            steps.BuildTimelines(data, seed, shards, places), AsSingleton(cut)
        ).with_outputs(steps.SEEN_ITEMS, steps.COUNTS, steps.PARTS)
    )
    items = (
        {"seen": timelines[steps.SEEN_ITEMS], "catalogue": tables[spec.CATALOGUE]}
        | "GroupItems" >> beam.CoGroupByKey()
        | "Catalogue"
        >> beam.ParDo(steps.BuildCatalogue(data, places)).with_outputs(steps.COUNTS, steps.PARTS)
    )
    _write_files(pipeline, data, [part[steps.PARTS] for part in (tables, timelines, items)], places)
    kinds = (
        tables[steps.KINDS]
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
    (
        (kinds, counts, time)
        | "Facts" >> beam.Flatten()
        | "AllFacts" >> beam.combiners.ToList()
        | "WriteFacts" >> beam.Map(steps.write_lines, facts_file)
    )


def _write_files(
    pipeline: beam.Pipeline, data: DataSettings, parts: list[PCollection], places: steps.Places
) -> None:
    files = [(places.dead_letters, None)]
    for split, number in (
        (TRAIN_SPLIT, data.shards),
        (EVAL_SPLIT, data.shards),
        (CATALOGUE_SPLIT, data.catalogue_shards),
    ):
        files += [(file, None) for file in places.example_files(split, number)]
    # Files of which there is no part are to be there, too.
    every_file = pipeline | "Files" >> beam.Create(files, reshuffle=False)
    (
        (every_file, *parts)
        | "AllParts" >> beam.Flatten()
        | "GroupParts" >> beam.GroupByKey()
        | "WriteFiles" >> beam.Map(steps.write_file, places)
    )


def _make_directory(path: str) -> None:
    if not FileSystems.exists(path):
        FileSystems.mkdirs(path)
