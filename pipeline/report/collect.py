"""A run in ML Metadata and the files of its artifacts -> `ReportData`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorflow_metadata.proto.v0 import anomalies_pb2

from components.cascaded_trainer import spec as trainer
from components.interaction_gen import spec as interaction_gen
from components.pusher import spec as pusher
from components.retrieval_evaluator import spec as evaluator
from components.serving_validator import spec as serving_validator
from pipeline.metadata.runs import (
    CONFIG_SHA256,
    CSMF_VERSION,
    FAILED,
    INTERRUPTED,
    NodeRun,
    Run,
    read_run,
)
from pipeline.metadata.store import properties
from pipeline.report.data import (
    Known,
    Missing,
    NodeFacts,
    Part,
    Pushed,
    ReportData,
    RunFacts,
    Verdict,
)
from pipeline.report.drift import drift
from pipeline.report.recorded import Evaluation, Ingestion, Stage, Validation
from pipeline.report.sources import end_of_log, output, parsed, recorded
from pipeline.report.statistics import distributions
from schemas.names import CATALOGUE_SPLIT, EVAL_SPLIT, TRAIN_SPLIT

if TYPE_CHECKING:
    from ml_metadata import MetadataStore

_STAGE_NODE = "CascadedTrainer."
_VALIDATORS = {  # node -> splits it judges
    "ExampleValidator.timelines": (TRAIN_SPLIT, EVAL_SPLIT),
    "ExampleValidator.catalogue": (CATALOGUE_SPLIT,),
}


def collect(store: MetadataStore, run_id: str | None = None) -> ReportData:
    """All that is known of a run.

    Args:
      store: ML Metadata.
      run_id: or the beginning of it; None = the newest.

    Raises:
      MetadataError: there is no such run.
    """
    run = read_run(store, run_id)
    ingestion = recorded(
        Ingestion,
        output(run, "InteractionGen", interaction_gen.SUMMARY_KEY),
        interaction_gen.SUMMARY_FILE,
    )
    evaluation = recorded(
        Evaluation,
        output(run, "RetrievalEvaluator", evaluator.EVALUATION_KEY),
        evaluator.REPORT_FILE,
    )
    statistics = output(run, "StatisticsGen", "statistics")
    objectives = _objectives(run, ingestion)
    infra = output(run, "ServingValidator", serving_validator.BLESSING_KEY)
    return ReportData(
        run=_run_facts(run, objectives),
        nodes=tuple(_node_facts(run, node) for node in run.nodes.values()),
        ingestion=ingestion,
        anomalies=_anomalies(run, evaluation),
        distributions=distributions(statistics),
        drift=drift(store, run, statistics),
        stages={
            name: recorded(
                Stage, output(run, f"{_STAGE_NODE}{name}", trainer.STAGE_KEY), trainer.REPORT_FILE
            )
            for name in objectives
        },
        evaluation=evaluation,
        validation=recorded(Validation, infra, serving_validator.REPORT_FILE),
        model_verdict=_verdict(output(run, "RetrievalEvaluator", evaluator.BLESSING_KEY)),
        infra_verdict=_verdict(infra),
        pushed=_pushed(output(run, "Pusher", pusher.PUSHED_MODEL_KEY)),
    )


def _run_facts(run: Run, objectives: tuple[str, ...]) -> RunFacts:
    ends = [node.started.timestamp() + node.seconds for node in run.nodes.values()]
    return RunFacts(
        id=run.id,
        pipeline=run.pipeline,
        state=run.state,
        started=run.started,
        seconds=max([0.0, *(end - run.started.timestamp() for end in ends)]),
        error=run.error,
        version=_text(run.notes.get(CSMF_VERSION)),
        config=run.config,
        config_sha256=_text(run.notes.get(CONFIG_SHA256)),
        objectives=objectives,
    )


def _objectives(run: Run, ingestion: Part[Ingestion]) -> tuple[str, ...]:
    """In funnel order: as configured, else as ingested, else those that were trained."""
    configured = run.config.get("objectives")
    if isinstance(configured, list):
        names = [str(settings["name"]) for settings in configured if "name" in settings]
        if names:
            return tuple(names)
    if isinstance(ingestion, Known) and ingestion.value.objectives:
        return tuple(ingestion.value.objectives)
    return tuple(
        node.removeprefix(_STAGE_NODE) for node in run.nodes if node.startswith(_STAGE_NODE)
    )


def _node_facts(run: Run, node: NodeRun) -> NodeFacts:
    return NodeFacts(
        name=node.node,
        state=node.state,
        start=max(0.0, (node.started - run.started).total_seconds()),
        seconds=node.seconds,
        peak_bytes=node.peak_bytes,
        error=node.error,
        log=end_of_log(node) if node.error or node.state in (FAILED, INTERRUPTED) else None,
    )


def _anomalies(run: Run, evaluation: Part[Evaluation]) -> Part[tuple[str, ...]]:
    """As the evaluator collected them, else as the ExampleValidators found them."""
    if isinstance(evaluation, Known) and evaluation.value.anomalies is not None:
        return Known(tuple(evaluation.value.anomalies))
    lines: list[str] = []
    for node, splits in _VALIDATORS.items():
        artifact = output(run, node, "anomalies")
        if isinstance(artifact, Missing):
            return artifact
        for split in splits:
            path = Path(artifact.value.uri) / f"Split-{split}" / "SchemaDiff.pb"
            found = parsed(anomalies_pb2.Anomalies, path)
            if isinstance(found, Missing):
                return found
            lines += [
                f"{split}: {feature}: {info.description}"
                for feature, info in sorted(found.value.anomaly_info.items())
            ]
            if found.value.HasField("dataset_anomaly_info"):
                lines.append(f"{split}: {found.value.dataset_anomaly_info.description}")
    return Known(tuple(lines))


def _verdict(artifact: Part[Any]) -> Part[Verdict]:
    if isinstance(artifact, Missing):
        return artifact
    noted = properties(artifact.value)
    if pusher.BLESSED_PROPERTY not in noted:
        return Missing("ML Metadata has a blessing without a verdict.")
    return Known(
        Verdict(bool(noted[pusher.BLESSED_PROPERTY]), str(noted.get(pusher.FAILED_PROPERTY, "")))
    )


def _pushed(artifact: Part[Any]) -> Part[Pushed]:
    if isinstance(artifact, Missing):
        return artifact
    noted = properties(artifact.value)
    version = noted.get(pusher.PUSHED_VERSION_PROPERTY)
    return Known(
        Pushed(
            version=None if version is None else int(version),
            destination=_text(noted.get(pusher.PUSHED_DESTINATION_PROPERTY)),
            model_id=_text(noted.get(pusher.MODEL_ID_PROPERTY)),
            reason=_text(noted.get(pusher.REASON_PROPERTY)),
        )
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)
