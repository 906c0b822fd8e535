"""What changed between two versions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.lineage.config_keys import flatten
from pipeline.lineage.facts import Check, Metrics, VersionFacts


@dataclass(frozen=True)
class Change:
    """One thing that differs.

    Attributes:
      what: dotted key, path, or whatever names it.
      old, new: None where it is not there; of a configuration: left at its default.
    """

    what: str
    old: Any
    new: Any


@dataclass(frozen=True)
class MetricChange:
    """One metric of both versions; None for what was not measured.

    Attributes:
      objective, metric: names.
      old, new: values.
      difference: new - old.
    """

    objective: str
    metric: str
    old: float | None
    new: float | None
    difference: float | None


@dataclass(frozen=True)
class SlotChange:
    """Slots of a layer that a stage owns; None where there is no such stage or layer."""

    stage: str
    layer: str
    old: int | None
    new: int | None


@dataclass(frozen=True)
class Diff:
    """What differs between two versions; what is empty does not.

    Attributes:
      model: served name of the newer.
      old, new: versions.
      general: model id, versions of the code, baseline.
      config: keys of the configuration, whose default is None; not compared if this is None.
      seeds: by node.
      data: files by path (SHA-256 and rows), rows of tables.
      schemas: by node.
      stages: settings that the stages were trained with, defaults included.
      slots: ownership by stage and layer.
      metrics: all that either has, the same ones as well.
      checks: verdicts of checks.
      notes: what cannot be compared.
    """

    model: str
    old: int | None
    new: int | None
    general: tuple[Change, ...]
    config: tuple[Change, ...] | None
    seeds: tuple[Change, ...]
    data: tuple[Change, ...]
    schemas: tuple[Change, ...]
    stages: tuple[Change, ...]
    slots: tuple[SlotChange, ...]
    metrics: tuple[MetricChange, ...]
    checks: tuple[Change, ...]
    notes: tuple[str, ...]


def compare(old: VersionFacts, new: VersionFacts) -> Diff:
    """Compares what is recorded of two versions."""
    return Diff(
        model=new.model,
        old=old.version,
        new=new.version,
        general=tuple(_changes(_general(old), _general(new))),
        config=_config(old, new),
        seeds=tuple(_changes(old.seeds, new.seeds)),
        data=tuple(_changes(_data(old), _data(new))),
        schemas=tuple(_changes(_schemas(old), _schemas(new))),
        stages=tuple(_changes(_settings(old), _settings(new))),
        slots=tuple(_slots(old, new)),
        metrics=tuple(_metrics(old.metrics, new.metrics)),
        checks=tuple(_changes(_checks(old), _checks(new))),
        notes=tuple(_notes(old, new)),
    )


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for key in _in_order(old, new):
        if old.get(key) != new.get(key):
            yield Change(key, old.get(key), new.get(key))


def _config(old: VersionFacts, new: VersionFacts) -> tuple[Change, ...] | None:
    if old.config is None or new.config is None:
        return None
    return tuple(_changes(flatten(old.config), flatten(new.config)))


def _in_order(*keys: Iterable[str]) -> list[str]:
    """All keys, in the order of the first that has them."""
    return list(dict.fromkeys(key for some in keys for key in some))


def _general(facts: VersionFacts) -> dict[str, Any]:
    return {
        "model": facts.model or None,
        "model id": facts.model_id or None,
        "code (csmf)": facts.csmf_version or None,
        "baseline version": facts.baseline_version,
        "ANN recall@100": facts.ann_recall,
    }


def _data(facts: VersionFacts) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in facts.files:
        found[f"{file.path}: SHA-256"] = file.sha256
        if file.rows is not None:
            found[f"{file.path}: rows"] = file.rows
    for table, rows in facts.tables.items():
        found |= {
            f"{table}: rows read": rows.read,
            f"{table}: rows used": rows.used,
            f"{table}: dead letters": rows.dead_letters,
        }
        found |= {f"{table}: dropped, {rule}": n for rule, n in rows.dropped.items()}
    return found


def _schemas(facts: VersionFacts) -> dict[str, str]:
    return {schema.node: schema.path for schema in facts.schemas}


def _settings(facts: VersionFacts) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for stage in facts.stages:
        found |= {f"{stage.objective}.{key}": value for key, value in stage.settings.items()}
        found |= {f"request weights of {key}": value for key, value in stage.weights.items()}
    return found


def _slots(old: VersionFacts, new: VersionFacts) -> Iterator[SlotChange]:
    before, after = ({s.objective: s.owned for s in facts.stages} for facts in (old, new))
    for stage in _in_order(before, after):
        mine, theirs = before.get(stage, {}), after.get(stage, {})
        for layer in _in_order(mine, theirs):
            if mine.get(layer) != theirs.get(layer):
                yield SlotChange(stage, layer, mine.get(layer), theirs.get(layer))


def _metrics(old: Metrics, new: Metrics) -> Iterator[MetricChange]:
    for objective in _in_order(old, new):
        mine, theirs = old.get(objective, {}), new.get(objective, {})
        for metric in _in_order(mine, theirs):
            a, b = mine.get(metric), theirs.get(metric)
            difference = None if a is None or b is None else b - a
            yield MetricChange(objective, metric, a, b, difference)


def _checks(facts: VersionFacts) -> dict[str, str]:
    return {
        f"{gate.name}: {check.name}": _verdict(check)
        for gate in facts.gates
        for check in gate.checks
    }


def _verdict(check: Check) -> str:
    verdict = "passed" if check.passed else "failed"
    return verdict if check.threshold is None else f"{verdict}, asked for {check.threshold:.4g}"


def _notes(old: VersionFacts, new: VersionFacts) -> Iterator[str]:
    for facts in (old, new):
        if facts.config is None:
            yield (
                f"Configurations are not compared: that of version {facts.version} is not "
                "recorded. The settings of the stages are."
            )
        if facts.missing:
            yield f"Not recorded of version {facts.version}: {', '.join(facts.missing)}."
        for note in facts.notes:
            yield f"Version {facts.version}: {note}"
