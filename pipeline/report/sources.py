"""Reads what a node recorded: the file of its artifact, else what ML Metadata has of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from pydantic import ValidationError

from pipeline.metadata.runs import FAILED, INTERRUPTED, NodeRun, Run
from pipeline.metadata.store import properties
from pipeline.report.data import Known, Missing, Part
from pipeline.report.recorded import Recorded

R = TypeVar("R", bound=Recorded)
P = TypeVar("P", bound=Message)

_LOG_BYTES = 16_384
_LOG_LINES = 60


def output(run: Run, node: str, key: str) -> Part[Any]:
    """The artifact (ML Metadata's message) that a node put out under a key."""
    if (executed := run.nodes.get(node)) is None:
        return Missing(f"{node} has not been executed: {_why(run)}.")
    if not executed.done:
        return Missing(f"{node} has no result: it is {executed.state}.")
    if key not in executed.outputs:
        return Missing(f"{node} is {executed.state}, but ML Metadata has no output {key!r} of it.")
    return Known(executed.outputs[key])


def recorded(model: type[R], artifact: Part[Any], file: str) -> Part[R]:
    """What a node wrote as JSON.

    Args:
      model: its shape.
      artifact: in whose directory the file is, or why there is none.
      file: its name.

    Returns:
      The file's content; without the file what the artifact's properties say, with a note.
    """
    if isinstance(artifact, Missing):
        return artifact
    path = Path(artifact.value.uri) / file
    try:
        return Known(model.model_validate(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        return _from_properties(model, artifact.value, path)
    except (OSError, ValueError) as error:
        return Missing(f"{path} cannot be read: {_first_line(error)}.")


def parsed(message: type[P], path: Path) -> Part[P]:
    """A file that holds one serialised protocol buffer."""
    try:
        found = message()
        found.ParseFromString(path.read_bytes())
        return Known(found)
    except FileNotFoundError:
        return Missing(f"{path} is gone.")
    except (OSError, DecodeError) as error:
        return Missing(f"{path} cannot be read: {_first_line(error)}.")


def end_of_log(node: NodeRun) -> Part[str]:
    """The last lines of a node's log."""
    if node.log is None:
        return Missing("No log of this node is on this machine, or the run kept none.")
    try:
        with node.log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _LOG_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError as error:
        return Missing(f"{node.log} cannot be read: {_first_line(error)}.")
    lines = text.splitlines()[-_LOG_LINES:]
    return Known("\n".join(lines), note=str(node.log))


def _from_properties(model: type[R], artifact: Any, path: Path) -> Part[R]:
    try:
        return Known(
            model.model_validate(dict(_values(artifact))),
            note=f"{path} is gone; this is what ML Metadata has of it.",
        )
    except ValidationError:
        return Missing(f"{path} is gone, and this run noted nothing of it in ML Metadata.")


def _values(artifact: Any) -> Iterator[tuple[str, Any]]:
    """Properties, those that are JSON decoded."""
    for key, value in properties(artifact).items():
        if isinstance(value, str) and value[:1] in ("{", "["):
            try:
                yield key, json.loads(value)
            except ValueError:
                continue
        else:
            yield key, value


def _why(run: Run) -> str:
    ended = [node.node for node in run.nodes.values() if node.state in (FAILED, INTERRUPTED)]
    if ended:
        return f"the run ended at {', '.join(ended)}"
    return {
        "RUNNING": "the run is still under way",
        "COMPLETE": "this run did not get that far, or the pipeline has no such node",
    }.get(run.state, f"the run is {run.state}")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
