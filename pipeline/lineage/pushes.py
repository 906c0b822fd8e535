"""Versions that were pushed, and which of them a number or an answer means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pipeline.lineage.answer import Answer
from pipeline.lineage.graph import PUSHED_MODEL, first_run, is_gone
from pipeline.metadata.runs import COMPLETE, Run, list_runs
from pipeline.metadata.store import MetadataError, properties
from schemas.names import STOCK_SUFFIX

if TYPE_CHECKING:
    from ml_metadata import MetadataStore
    from ml_metadata.proto.metadata_store_pb2 import Artifact

_MODEL_TYPE = "Model"
_LISTED_RUNS = 3


@dataclass(frozen=True)
class Push:
    """One version that was published; the same number may be published twice.

    Attributes:
      artifact: id of the PushedModel in ML Metadata.
      model: served name.
      version: its number.
      model_id: of the manifest, which every answer's version carries; "" if not recorded.
      destination: directory it was published in; "" if not recorded.
      pushed: UTC.
      run: id of the run that pushed; "" if not recorded.
      deleted: nothing is at the destination any more.
    """

    artifact: int
    model: str
    version: int
    model_id: str
    destination: str
    pushed: datetime
    run: str
    deleted: bool


def list_pushes(store: MetadataStore) -> list[Push]:
    """All pushed versions, the oldest push first; none is no error."""
    found = [_push(store, artifact) for artifact in store.get_artifacts_by_type(PUSHED_MODEL)]
    return sorted((push for push in found if push is not None), key=lambda push: push.artifact)


def require_pushes(store: MetadataStore, model: str | None) -> list[Push]:
    """As `list_pushes`, of one model if it is named.

    Raises:
      MetadataError: nothing was pushed, or nothing of that model.
    """
    pushes = list_pushes(store)
    if not pushes:
        raise MetadataError(
            "no version is pushed yet: no run has passed the gates. Look at the run's summary.json "
            f"for the reasons, then `csmf run` again.{_unfinished(store)}"
        )
    return _of_model(pushes, model)


def by_version(
    store: MetadataStore, version: int, model: str | None = None
) -> tuple[Push, list[str]]:
    """The push of a version, and what there is to say about the choice.

    Args:
      store: ML Metadata.
      version: its number.
      model: served name; needed only if several models have that version.

    Raises:
      MetadataError: no such version (the text names those that exist), or it is of several models.
    """
    pushes = require_pushes(store, model)
    found = [push for push in pushes if push.version == version]
    if not found:
        of_model = f" of model {model!r}" if model else ""
        raise MetadataError(
            f"no push of version {version}{of_model} is recorded. Versions that are: "
            f"{_listed(pushes)}.{_unfinished(store)}"
        )
    models = sorted({push.model for push in found})
    if len(models) > 1:
        raise MetadataError(
            f"version {version} is one of the models {', '.join(models)}: choose one by --model."
        )
    notes = []
    if len(found) > 1:
        told = "; ".join(f"{p.pushed:%Y-%m-%d %H:%M:%S} UTC, model id {p.model_id}" for p in found)
        notes.append(
            f"Version {version} was pushed {len(found)} times ({told}); this is the last one. An "
            "answer that carries the model id tells them apart: --request."
        )
    return found[-1], notes


def by_answer(
    store: MetadataStore, answer: Answer, model: str | None = None
) -> tuple[Push | None, int, list[str]]:
    """The push behind an answer: by its model id if it carries one, else by its version.

    Args:
      store: ML Metadata.
      answer: what it says of its origin.
      model: served name, where the answer does not say.

    Returns:
      (the push, None if only the model is recorded; artifact id to trace; what there is to say).

    Raises:
      MetadataError: nothing recorded fits the answer.
    """
    pushes = list_pushes(store)
    named = model or _known_name(answer.model, pushes)
    if answer.model_id is None:
        if answer.version is None:
            raise MetadataError("the answer names neither a version nor a model id.")
        push, notes = by_version(store, answer.version, named)
        return push, push.artifact, notes
    same = [push for push in pushes if push.model_id == answer.model_id]
    if not same:
        made = _models(store, answer.model_id)
        if not made:
            raise MetadataError(
                f"no model with the id {answer.model_id} is recorded. It was made elsewhere: name "
                f"the store of the run that made it. Versions that are recorded: "
                f"{_listed(pushes) or 'none'}."
            )
        note = (
            f"A model with the id {answer.model_id} was made, but no push of it is recorded: the "
            "run was interrupted while it pushed, or the model was copied by hand."
        )
        return None, made[-1], [note]
    fit = [p for p in same if (p.model, p.version) == (named or p.model, answer.version)]
    push = (fit or same)[-1]
    notes = []
    if answer.version is not None and not fit:
        notes.append(
            f"The answer says version {answer.version}, but the model with the id "
            f"{answer.model_id} was pushed as version {_listed(same)}: the directory was renamed "
            "or copied, or its push was not recorded."
        )
    elif len(fit or same) > 1:
        notes.append(
            f"The model with the id {answer.model_id} was pushed {len(fit or same)} times, as "
            f"version {_listed(fit or same)}; this is the last one."
        )
    return push, push.artifact, notes


def unfinished_runs(store: MetadataStore) -> list[Run]:
    """Runs since the last that came to its end, which may have left things unrecorded."""
    unfinished = []
    for run in list_runs(store):
        if run.state == COMPLETE:
            break
        unfinished.append(run)
    return unfinished


def _unfinished(store: MetadataStore) -> str:
    runs = [f"{run.id} is {run.state}" for run in unfinished_runs(store)][:_LISTED_RUNS]
    if not runs:
        return ""
    return (
        f" Of the newest runs, {', '.join(runs)}: what such a run pushes is recorded only when its "
        "Pusher is done (`csmf runs` shows where they are)."
    )


def _of_model(pushes: Sequence[Push], model: str | None) -> list[Push]:
    found = [push for push in pushes if model in (None, push.model)]
    if not found:
        names = sorted({push.model for push in pushes})
        raise MetadataError(
            f"no version of a model {model!r} is recorded. Models that are: {', '.join(names)}."
        )
    return found


def _known_name(name: str | None, pushes: Iterable[Push]) -> str | None:
    """The name that was pushed; both flavours are one push."""
    names = {push.model for push in pushes}
    if name is not None and name not in names and name.removesuffix(STOCK_SUFFIX) in names:
        return name.removesuffix(STOCK_SUFFIX)
    return name


def _listed(pushes: Iterable[Push]) -> str:
    return ", ".join(str(number) for number in sorted({push.version for push in pushes}))


def _models(store: MetadataStore, model_id: str) -> list[int]:
    """Artifact ids of the models with an id of the manifest, the oldest first."""
    found = store.get_artifacts_by_type(_MODEL_TYPE)
    return sorted(a.id for a in found if properties(a).get("model_id") == model_id)


def _push(store: MetadataStore, artifact: Artifact) -> Push | None:
    values = properties(artifact)
    version = str(values.get("pushed_version", ""))
    if not version.isdecimal():  # a gate refused, or the push is under way
        return None
    run = first_run(store.get_contexts_by_artifact(artifact.id))
    destination = str(values.get("pushed_destination", ""))
    return Push(
        artifact=artifact.id,
        model=str(values.get("model_name", "")),
        version=int(version),
        model_id=str(values.get("model_id", "")),
        destination=destination,
        pushed=datetime.fromtimestamp(artifact.create_time_since_epoch / 1000, UTC),
        run="" if run is None else run.name,
        deleted=bool(destination) and is_gone(destination),
    )
