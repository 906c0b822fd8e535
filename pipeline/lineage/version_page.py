"""The page about one version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pipeline.lineage.config_keys import flatten
from pipeline.lineage.facts import Gate, Stage, Step, VersionFacts
from pipeline.lineage.graph import ArtifactNode, ExecutionNode, Graph
from pipeline.lineage.page import (
    NOT_RECORDED,
    Outline,
    Page,
    Section,
    Table,
    show,
    show_digest,
    show_rows,
    show_time,
)
from pipeline.lineage.query import Lineage

_FIRST_SETTINGS = ("tau", "gamma")
_DATA_KEYS = "data."
_LISTED = 4
_INPUTS_FIRST = "model"  # its branch is what the reader looks for; the others refer to it


def version_page(lineage: Lineage, full: bool = False) -> Page:
    """Returns what a reader wants to know first, in that order.

    Args:
      lineage: of the version.
      full: also the keys of the data's configuration, and what each check of serving has seen.
    """
    facts = lineage.facts
    return Page(
        title=_title(facts),
        lead=tuple(_lead(facts)),
        notes=tuple(_notes(facts)),
        sections=(
            Section("Data", tuple(_data(facts))),
            Section("Configuration", tuple(_configuration(facts, full))),
            Section("Model", tuple(_model(facts.stages))),
            Section("Checks", tuple(_checks(facts, full))),
            Section("Executions", tuple(_executions(facts, lineage.graph))),
        ),
    )


def _title(facts: VersionFacts) -> str:
    if facts.version is None:
        return f"Model {facts.model_id}, no push recorded"
    return f"{facts.model} version {facts.version}" + (", deleted" if facts.deleted else "")


def _lead(facts: VersionFacts) -> Iterator[str]:
    if facts.version is not None:
        yield f"pushed {show_time(facts.pushed)} UTC to {facts.destination or NOT_RECORDED}"
    yield f"model id {facts.model_id or NOT_RECORDED}, run {facts.run or NOT_RECORDED}"
    yield (
        f"code csmf {facts.csmf_version or NOT_RECORDED}, "
        f"configuration {show_digest(facts.config_sha256)}, seed {_seeds(facts.seeds)}"
    )


def _notes(facts: VersionFacts) -> Iterator[str]:
    yield from facts.notes
    if facts.deleted:
        yield (
            f"The version is deleted: nothing is at {facts.destination} any more (or the directory "
            "was moved). What follows is from ML Metadata."
        )
    if facts.gone:
        more = len(facts.gone) - _LISTED
        yield (
            f"Gone since: {', '.join(facts.gone[:_LISTED])}"
            + (f" and {more} more." if more > 0 else ".")
        )
    if facts.missing:
        yield f"Not recorded: {', '.join(facts.missing)}."


def _seeds(seeds: Mapping[str, int]) -> str:
    if len(set(seeds.values())) <= 1:
        return str(next(iter(seeds.values()), NOT_RECORDED))
    return ", ".join(f"{seed} ({node})" for node, seed in seeds.items())


def _data(facts: VersionFacts) -> Iterator[str | Table]:
    yield Table(
        ("file", "table", "#rows", "SHA-256", "now"),
        tuple(
            (
                file.path,
                file.table or NOT_RECORDED,
                show_rows(file.rows),
                show_digest(file.sha256),
                "gone" if file.gone else "",
            )
            for file in facts.files
        ),
        "Log files",
    )
    if facts.tables:
        yield Table(
            ("table", "#read", "#used", "#dead letters", "dropped"),
            tuple(
                (
                    name,
                    show(rows.read),
                    show(rows.used),
                    show(rows.dead_letters),
                    ", ".join(f"{show(n)} {rule}" for rule, n in rows.dropped.items()) or "none",
                )
                for name, rows in facts.tables.items()
            ),
            "Rows",
        )
    for schema in facts.schemas:
        yield f"schema of {schema.node}: {schema.path}" + (", gone" if schema.gone else "")


def _configuration(facts: VersionFacts, full: bool) -> Iterator[str | Table]:
    if facts.config is None:
        yield NOT_RECORDED
        return
    keys = flatten(facts.config)
    shown = {k: v for k, v in keys.items() if full or not k.startswith(_DATA_KEYS)}
    yield Table(
        ("key", "value"), tuple((key, show(value)) for key, value in shown.items()), "Not default"
    )
    if hidden := len(keys) - len(shown):
        yield f"and {hidden} keys of data.*, which --format json and html show"


def _model(stages: Sequence[Stage]) -> Iterator[str | Table]:
    if not stages:
        yield NOT_RECORDED
        return
    names = list(dict.fromkeys(key for stage in stages for key in stage.settings))
    varied = [k for k in names if len({show(stage.settings.get(k)) for stage in stages}) > 1]
    columns = [k for k in _FIRST_SETTINGS if k in names]
    columns += [k for k in varied if k not in columns]
    yield Table(
        ("stage", *(f"#{name}" for name in columns), "#loss", "begun on (SHA-256)"),
        tuple(
            (
                stage.objective,
                *(show(stage.settings.get(name)) for name in columns),
                show(stage.loss),
                show_digest(stage.upstream_sha256),
            )
            for stage in stages
        ),
        "Stages",
    )
    if same := [k for k in names if k not in columns]:
        settings = stages[0].settings
        yield "the same in all: " + ", ".join(f"{k} {show(settings[k])}" for k in same)
    layers = list(dict.fromkeys(layer for stage in stages for layer in stage.owned))
    yield Table(
        ("layer", *(f"#{stage.objective}" for stage in stages), "#together"),
        tuple(
            (
                layer,
                *(show(stage.owned.get(layer)) for stage in stages),
                show(sum(stage.owned.get(layer, 0) for stage in stages)),
            )
            for layer in layers
        ),
        "Slots owned by each stage",
    )
    weights = {objective: given for stage in stages for objective, given in stage.weights.items()}
    for objective, given in weights.items():
        yield f"request weights of {objective}: {show(given)}"


def _checks(facts: VersionFacts, full: bool) -> Iterator[str | Table]:
    if facts.metrics:
        others = {"#popularity": facts.popularity} if facts.popularity else {}
        if facts.baseline:
            others[f"#version {facts.baseline_version or 'before'}"] = facts.baseline
        yield Table(
            ("objective", "metric", "#this", *others),
            tuple(
                (
                    objective,
                    metric,
                    show(value),
                    *(show(other.get(objective, {}).get(metric)) for other in others.values()),
                )
                for objective, values in facts.metrics.items()
                for metric, value in values.items()
            ),
            "On held-out events",
        )
    else:
        yield f"metrics: {NOT_RECORDED}"
    if facts.ann_recall is not None:
        yield f"the index finds {facts.ann_recall:.2%} of the exact top 100"
    for gate in facts.gates:
        yield f"{gate.name} gate: {_verdict(gate)}"
        yield from _check_table(gate, full)


def _verdict(gate: Gate) -> str:
    if gate.blessed is None:
        return NOT_RECORDED
    text = "blessed" if gate.blessed else f"refused: {gate.failed or NOT_RECORDED}"
    if not gate.checks:
        return f"{text}; single checks {NOT_RECORDED}"
    passed = sum(check.passed for check in gate.checks)
    return f"{text}; {passed} of {len(gate.checks)} checks passed"


def _check_table(gate: Gate, full: bool) -> Iterator[Table]:
    shown = [c for c in gate.checks if full or not c.passed or c.value is not None]
    if shown:
        yield Table(
            ("check", "verdict", "#measured", "#asked for", "detail"),
            tuple(
                (
                    check.name,
                    "passed" if check.passed else "FAILED",
                    show(check.value),
                    show(check.threshold),
                    check.detail,
                )
                for check in shown
            ),
        )


def _executions(facts: VersionFacts, graph: Graph) -> Iterator[Outline | str]:
    if graph.maker is None:
        yield NOT_RECORDED
        return
    steps = {step.execution: step for step in facts.steps}
    yield _outline(graph, steps, facts, graph.maker, "", set())


def _outline(
    graph: Graph,
    steps: Mapping[int, Step],
    facts: VersionFacts,
    execution: ExecutionNode,
    role: str,
    seen: set[int],
) -> Outline:
    """An execution with those below it that it rests on; one met again is only referred to."""
    heading = f"{role}: {execution.node}" if role else execution.node
    if execution.id in seen:
        return Outline(f"{heading} ({execution.id}), shown above")
    seen.add(execution.id)
    inputs = sorted(execution.inputs, key=lambda link: (link.key != _INPUTS_FIRST, link.key))
    keys: dict[int, list[str]] = {}  # by the execution that made them
    for link in inputs:
        maker = graph.artifacts[link.artifact].made_by
        if maker is not None:
            keys.setdefault(maker, []).append(link.key)
    return Outline(
        f"{heading}{_step(steps[execution.id], facts)}",
        tuple(_written(graph.artifacts[link.artifact], link.key) for link in execution.outputs),
        tuple(
            _outline(graph, steps, facts, graph.executions[maker], ", ".join(named), seen)
            for maker, named in keys.items()
        ),
    )


def _step(step: Step, facts: VersionFacts) -> str:
    words = [
        f" ({step.execution}) {step.state}",
        f"{show_time(step.started)} UTC, {step.seconds:.1f} s",
    ]
    if step.cached:
        words.append(f"from the cache, executed in run {step.run or NOT_RECORDED}")
    if step.csmf_version not in ("", facts.csmf_version):
        words.append(f"by csmf {step.csmf_version}")
    return ", ".join(words)


def _written(artifact: ArtifactNode, key: str) -> str:
    gone = ", files are gone" if artifact.gone else ""
    return f"wrote {key}: {artifact.type} {artifact.id}{gone}, {artifact.uri}"
