"""Counts of an ingestion -> the report that is written, reconciled and judged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from components.interaction_gen import spec
from components.interaction_gen.faults import BROKEN_FILE
from components.interaction_gen.values import iso
from schemas import names
from schemas.logs import DataError, DataSettings

# A count is addressed by words, for example ("dropped", "interactions", "repeat").
CountKey = tuple[str, ...]

READ = "read"  # table, file
USED = "used"  # table
DROPPED = "dropped"  # table, rule
EVENTS = "events"  # split, level
TARGETS = "targets"  # split, level
USERS = "users"  # total | train | eval | without_features
ITEMS = "items"  # total | without_features | after_cut
EXAMPLES = "examples"  # split
CLOSED = "closed_rows"
UNUSABLE = "unusable"  # table, feature

TIMELINE_SPLITS = (names.TRAIN_SPLIT, names.EVAL_SPLIT)


@dataclass(frozen=True)
class DeadLetterKind:
    """How often one kind of fault occurred, and the first case by file and line."""

    count: int
    file: str
    line: int
    reason: str
    raw: str


@dataclass(frozen=True)
class TableCounts:
    """What became of the rows of one table: read == used + dead_letters + sum(dropped)."""

    read: int
    used: int
    dead_letters: int
    dropped: dict[str, int]  # rule -> rows
    dead_letter_kinds: dict[str, DeadLetterKind]

    @property
    def reconciled(self) -> bool:
        """Whether every row read is accounted for."""
        return self.read == self.used + self.dead_letters + sum(self.dropped.values())


@dataclass(frozen=True)
class InputFile:
    """A file that was read."""

    path: str
    table: str
    rows: int
    sha256: str | None


@dataclass(frozen=True)
class IngestionReport:
    """Everything there is to say about one ingestion; `summary.json` is its JSON form."""

    objectives: list[str]
    seed: int
    split: dict[str, Any]  # kind, cut (ISO 8601), cut_ms, first_event, last_event, eval_share
    tables: dict[str, TableCounts]
    events: dict[str, dict[str, int]]  # split -> objective -> events whose level it is
    targets: dict[str, dict[str, int]]  # split -> objective -> targets whose level it is
    users: dict[str, int]  # total, train, eval, without_features
    items: dict[str, int]  # total, without_features, after_cut
    examples: dict[str, int]  # split -> tf.Examples
    closed_rows: int  # a higher objective held while a lower one did not
    unusable_feature_values: dict[str, int]  # table.feature -> fields that were not a number
    files: list[InputFile]

    def to_json(self) -> str:
        """Returns the report as indented JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def facts(self) -> dict[str, Any]:
        """The part that lineage shows, as JSON types; small whatever the size of the log."""
        whole = asdict(self)
        tables = {
            name: {key: value for key, value in table.items() if key != "dead_letter_kinds"}
            for name, table in whole["tables"].items()
        }
        return {"tables": tables} | {
            key: whole[key] for key in ("files", "users", "items", "split", "events")
        }

    def positives(self, split: str) -> dict[str, int]:
        """Objective -> targets of a split that reach it; a conversion is also a click."""
        at_level = [self.targets[split][name] for name in self.objectives]
        return {name: sum(at_level[level:]) for level, name in enumerate(self.objectives)}


def build_report(
    facts: Iterable[Mapping[str, Any]],
    data: DataSettings,
    objectives: Sequence[str],
    seed: int,
    files: Sequence[tuple[str, str]],
    fingerprint: Mapping[str, str],
) -> IngestionReport:
    """Puts the facts that the Beam pipeline wrote together.

    Args:
      facts: lines of the facts file: counts, dead letter kinds, and the cut.
      data: settings of the run.
      objectives: names, first of the funnel first.
      seed: of the run.
      files: (table, path) of every file, in reading order.
      fingerprint: path -> SHA-256, possibly empty.
    """
    counts: dict[CountKey, int] = {}
    kinds: dict[str, dict[str, DeadLetterKind]] = {table: {} for table in spec.TABLES}
    time: Mapping[str, Any] = {}
    for fact in facts:
        if "count" in fact:
            counts[tuple(fact["count"])] = fact["n"]
        elif "dead_letter" in fact:
            table, kind = fact["dead_letter"]
            kinds[table][kind] = DeadLetterKind(**fact["kind"])
        else:
            time = fact["time"]

    def under(*prefix: str) -> dict[str, int]:
        depth = len(prefix)
        found: dict[str, int] = {}
        for key, n in sorted(counts.items()):
            if key[:depth] == prefix:
                found[key[depth]] = found.get(key[depth], 0) + n
        return found

    def by_level(what: str, split: str) -> dict[str, int]:
        return {
            name: counts.get((what, split, str(level)), 0) for level, name in enumerate(objectives)
        }

    present = {table for table, _ in files}
    return IngestionReport(
        objectives=list(objectives),
        seed=seed,
        split=_split_facts(data, time),
        tables={
            table: TableCounts(
                read=sum(under(READ, table).values()),
                used=counts.get((USED, table), 0),
                dead_letters=sum(kind.count for kind in kinds[table].values()),
                dropped=under(DROPPED, table),
                dead_letter_kinds=dict(sorted(kinds[table].items())),
            )
            for table in spec.TABLES
            if table in present
        },
        events={split: by_level(EVENTS, split) for split in TIMELINE_SPLITS},
        targets={split: by_level(TARGETS, split) for split in TIMELINE_SPLITS},
        users={
            what: counts.get((USERS, what), 0)
            for what in ("total", "train", "eval", "without_features")
        },
        items={
            what: counts.get((ITEMS, what), 0)
            for what in ("total", "without_features", "after_cut")
        },
        examples={
            split: counts.get((EXAMPLES, split), 0)
            for split in (*TIMELINE_SPLITS, names.CATALOGUE_SPLIT)
        },
        closed_rows=counts.get((CLOSED,), 0),
        unusable_feature_values={
            f"{table}.{feature}": n
            for table in (spec.CATALOGUE, spec.USERS)
            for feature, n in under(UNUSABLE, table).items()
        },
        files=[
            InputFile(path, table, counts.get((READ, table, path), 0), fingerprint.get(path))
            for table, path in files
        ],
    )


def _split_facts(data: DataSettings, time: Mapping[str, Any]) -> dict[str, Any]:
    def moment(key: str) -> str | None:
        return None if time.get(key) is None else iso(time[key])

    return {
        "kind": data.split.kind,
        "eval_share": None if data.split.eval_from is not None else data.split.share,
        "cut": moment("cut_ms"),
        "cut_ms": time.get("cut_ms"),
        "first_event": moment("first_ms"),
        "last_event": moment("last_ms"),
    }


def check_report(report: IngestionReport, data: DataSettings) -> None:
    """Refuses data that nothing good can be trained on.

    Raises:
      DataError: a file breaks off, no usable event, too many dead letters, no positive of an
        objective in a split. The text says which and what to change.
      RuntimeError: rows are unaccounted for, which would be a fault of this program.
    """
    for table, counts in report.tables.items():
        if not counts.reconciled:
            raise RuntimeError(
                f"{table}: {counts.read} rows read, but {counts.used} used +"
                f" {counts.dead_letters} dead letters + {counts.dropped} dropped do not add up"
            )
    _check_complete(report)
    _check_not_empty(report)
    _check_dead_letters(report, data)
    _check_positives(report, data)


def _check_complete(report: IngestionReport) -> None:
    for counts in report.tables.values():
        broken = counts.dead_letter_kinds.get(BROKEN_FILE)
        if broken is not None:
            raise DataError(
                f"{broken.file}: {broken.reason}. What follows is unknown, so nothing was written"
                " off; get a complete copy of the file."
            )


def _check_not_empty(report: IngestionReport) -> None:
    log = report.tables[spec.INTERACTIONS]
    if log.used:
        return
    paths = [file.path for file in report.files if file.table == spec.INTERACTIONS]
    if not log.read:
        raise DataError(f"The interaction log is empty: there is no row in {', '.join(paths)}.")
    dropped = ", ".join(f"{n} {rule}" for rule, n in log.dropped.items())
    raise DataError(
        f"The interaction log has no usable event: {log.read} rows were read from"
        f" {', '.join(paths)}, {log.dead_letters} of them are dead letters"
        + (f" and {dropped} were dropped by rule" if dropped else "")
        + "."
        + _kinds_text(log)
    )


def _check_dead_letters(report: IngestionReport, data: DataSettings) -> None:
    for table, counts in report.tables.items():
        if counts.read and counts.dead_letters > data.max_dead_letter_share * counts.read:
            raise DataError(
                f"{table}: {counts.dead_letters} of {counts.read} rows cannot be used"
                f" ({counts.dead_letters / counts.read:.1%}); at most"
                f" {data.max_dead_letter_share:.1%} are allowed."
                f"{_kinds_text(counts)}\nRepair the rows or the settings of the source; if this"
                " loss is acceptable, raise data.max_dead_letter_share."
            )


def _kinds_text(counts: TableCounts, top: int = 5) -> str:
    ranked = sorted(counts.dead_letter_kinds.items(), key=lambda pair: (-pair[1].count, pair[0]))
    lines = [
        f"\n  {kind.count} x {name}, for example {kind.file}:{kind.line}: {kind.reason}"
        for name, kind in ranked[:top]
    ]
    if len(ranked) > top:
        lines.append(f"\n  and {len(ranked) - top} more kinds in the dead letters")
    return "".join(lines)


def _check_positives(report: IngestionReport, data: DataSettings) -> None:
    rule = (
        "Lower the objective's rule (at_least) or map an event to it under"
        " data.interactions, or remove it from objectives:."
    )
    for split in TIMELINE_SPLITS:
        for objective, count in report.positives(split).items():
            if count:
                continue
            faults = f"The {split} split has no positive of the objective '{objective}'"
            in_other = report.positives(_other(split))[objective]
            if not in_other:
                raise DataError(f"{faults}, and neither has the other split. {rule}")
            raise DataError(
                f"{faults} (a user reaching it on an item new to the user), while the"
                f" {_other(split)} split has {in_other}. {_split_advice(report, data, split)}"
            )


def _other(split: str) -> str:
    return names.EVAL_SPLIT if split == names.TRAIN_SPLIT else names.TRAIN_SPLIT


def _split_advice(report: IngestionReport, data: DataSettings, split: str) -> str:
    larger = split == names.EVAL_SPLIT
    if data.split.kind == "leave_out":
        change = "Raise" if larger else "Lower"
        return f"{change} data.split.eval_share ({data.split.share:g}), or use a longer log."
    span = f"the log runs from {report.split['first_event']} to {report.split['last_event']}"
    cut = report.split["cut"]
    if cut is None:
        return (
            f"All events have the same time ({span}), so the log cannot be cut in time; use"
            " `split: {kind: leave_out}`."
        )
    if data.split.eval_from is not None:
        change = "earlier" if larger else "later"
        return f"The cut is {cut}; {span}. Set an {change} data.split.eval_from."
    change = "Raise" if larger else "Lower"
    return (
        f"The cut is {cut}; {span}. {change} data.split.eval_share ({data.split.share:g}), or use"
        " a longer log."
    )
