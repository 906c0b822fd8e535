"""What went in: volumes, funnel, dead letters, anomalies, distributions, drift."""

from __future__ import annotations

from pipeline.report import text
from pipeline.report.blocks import Beside, Block, Heading, Note, Table
from pipeline.report.data import Missing, Part, ReportData
from pipeline.report.figures.distributions import activity, drift, popularity
from pipeline.report.figures.funnel import funnel
from pipeline.report.recorded import Ingestion
from pipeline.report.sections.notes import missing, not_recorded, of_part


def data_section(data: ReportData) -> list[Block]:
    """All about the data of the run."""
    blocks: list[Block] = [
        *_ingested(data.ingestion, data.run.objectives),
        Heading("Anomalies"),
        *_anomalies(data.anomalies),
        Heading("Activity and popularity"),
        *_distributions(data),
        Heading("Drift to the previous span"),
    ]
    if isinstance(data.drift, Missing):
        blocks.append(Note(data.drift.reason, "missing"))
    elif data.drift.value.features:
        blocks.append(drift(data.drift.value.features, data.drift.value.previous_run))
    else:
        run = data.drift.value.previous_run
        blocks.append(missing(f"no feature could be compared with run {run}."))
    return blocks


def _ingested(part: Part[Ingestion], objectives: tuple[str, ...]) -> list[Block]:
    blocks: list[Block] = [Heading("Volumes"), *of_part(part)]
    if isinstance(part, Missing):
        return blocks
    ingestion = part.value
    blocks += [_volumes(ingestion), Beside(_counts(ingestion)), _files(ingestion)]
    blocks.append(Heading("Funnel"))
    split = ingestion.split
    if split.get("cut"):
        blocks.append(
            Note(
                f"Events from {split.get('first_event')} to {split.get('last_event')}; "
                f"those from {split['cut']} on are held out."
            )
        )
    if ingestion.events:
        blocks.append(funnel(ingestion.events, objectives))
    else:
        blocks.append(not_recorded("how many events reach which objective is"))
    return [*blocks, Heading("Dead letters"), *_dead_letters(ingestion)]


def _volumes(ingestion: Ingestion) -> Table:
    return Table(
        "Rows by table: read = used + dropped by rule + dead letters",
        ("table", "read", "used", "dropped", "dead letters", "dropped by rule"),
        [
            (
                name,
                text.count(table.read),
                text.count(table.used),
                text.count(sum(table.dropped.values())),
                text.count(table.dead_letters),
                ", ".join(f"{n:,} {rule}" for rule, n in sorted(table.dropped.items())) or "none",
            )
            for name, table in ingestion.tables.items()
        ],
        numeric=frozenset({1, 2, 3, 4}),
    )


def _counts(ingestion: Ingestion) -> tuple[Table, ...]:
    counted = [("Users", ingestion.users), ("Items", ingestion.items)]
    mended = dict(ingestion.unusable_feature_values or {})
    if ingestion.closed_rows is not None:
        mended["rows whose lower objectives were filled in"] = ingestion.closed_rows
    counted.append(("Mended and left out", mended))
    return tuple(
        Table(
            title,
            ("what", "number"),
            [(what.replace("_", " "), text.count(n)) for what, n in values.items()],
            numeric=frozenset({1}),
        )
        for title, values in counted
        if values
    )


def _files(ingestion: Ingestion) -> Table:
    return Table(
        "Input files",
        ("file", "table", "rows", "SHA-256"),
        [
            (file.path, file.table, text.count(file.rows), file.sha256 or "not recorded")
            for file in ingestion.files
        ],
        numeric=frozenset({2}),
        folded=True,
    )


def _dead_letters(ingestion: Ingestion) -> list[Block]:
    if not any(table.dead_letters for table in ingestion.tables.values()):
        return [Note("None: every row could be read.")]
    blocks: list[Block] = []
    for name, table in ingestion.tables.items():
        if table.dead_letter_kinds is None:
            if table.dead_letters:
                blocks.append(
                    not_recorded(f"{table.dead_letters:,} rows of {name}; their reasons are")
                )
        elif table.dead_letter_kinds:
            blocks.append(
                Table(
                    f"Dead letters of {name}",
                    ("kind", "rows", "of all rows", "first case", "reason", "row"),
                    [
                        (
                            kind,
                            text.count(letter.count),
                            text.share(letter.count / table.read if table.read else None),
                            f"{letter.file}:{letter.line}",
                            letter.reason,
                            text.clipped(letter.raw),
                        )
                        for kind, letter in sorted(
                            table.dead_letter_kinds.items(), key=lambda pair: -pair[1].count
                        )
                    ],
                    numeric=frozenset({1, 2}),
                )
            )
    return blocks


def _anomalies(part: Part[tuple[str, ...]]) -> list[Block]:
    if isinstance(part, Missing):
        return of_part(part)
    if not part.value:
        return [Note("None: the data are as the schemas of the configuration say.")]
    rows = [(line,) for line in part.value]
    return [Table("Anomalies that TensorFlow Data Validation found", ("anomaly",), rows)]


def _distributions(data: ReportData) -> list[Block]:
    blocks = of_part(data.distributions)
    if isinstance(data.distributions, Missing):
        return blocks
    found = data.distributions.value
    blocks += [activity(found.activity), popularity(found.popularity)]
    top = found.popularity[0]
    blocks.append(
        Table(
            f"Most popular items of the split {top.split}",
            ("rank", "item", "events", "of all events"),
            [
                (
                    str(rank),
                    item,
                    text.count(n),
                    text.share(n / top.events if top.events else None),
                )
                for rank, (item, n) in enumerate(top.top, 1)
            ],
            numeric=frozenset({2, 3}),
            folded=True,
        )
    )
    return blocks
