"""`csmf recommend`: lists of one user under several weightings, side by side."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from pipeline import console
from pipeline.serve import any_server
from pipeline.versions import served_models
from schemas.names import MANIFEST_FILE
from schemas.settings import ConfigError, nearest
from schemas.versions import newest_version
from serving.client import RecommenderClient


class RecommendedItem(NamedTuple):
    """One place of a list."""

    item: str
    title: str
    score: float


@dataclass(frozen=True)
class Recommendations:
    """Lists of one user, one for each weighting.

    Attributes:
      user: their id.
      model, version: what answered.
      model_id: id in the manifest of that version, which `csmf lineage --request` looks for; ""
        where the version is not in the workdir.
      lists: weighting as it was asked -> items, best first.
    """

    user: str
    model: str
    version: int
    model_id: str
    lists: dict[str, list[RecommendedItem]]

    def to_json(self) -> str:
        """The answer for machines."""
        lists = [
            {"weights": weights, "items": [item._asdict() for item in items]}
            for weights, items in self.lists.items()
        ]
        answer = {
            "user": self.user,
            "model": self.model,
            "version": self.version,
            "model_id": self.model_id,
            "lists": lists,
        }
        return json.dumps(answer, indent=2, ensure_ascii=False)


def parse_weights(text: str, objectives: Sequence[str]) -> list[float]:
    """Reads "click=1,conversion=2" into one weight per objective; those left out weigh 0.

    Raises:
      ConfigError: an objective that the model does not have, or no number.
    """
    weights = dict.fromkeys(objectives, 0.0)
    for part in text.split(","):
        name, separator, value = (piece.strip() for piece in part.partition("="))
        if name not in weights:
            raise ConfigError(
                f"--weights {text}: the model has no objective {name!r}."
                f"{nearest(name, list(objectives))} Objectives: {', '.join(objectives)}."
            )
        try:
            weights[name] = float(value if separator else "")
        except ValueError:
            raise ConfigError(
                f"--weights {text}: {name!r} needs a number, as in {name}=1, got {value!r}"
            ) from None
    return list(weights.values())


def recommend(
    workdir: Path,
    user: str,
    weightings: Sequence[str],
    count: int,
    exclude: Sequence[str],
    address: str | None,
) -> Recommendations:
    """Asks a server, or one that is started for the call.

    Raises:
      ConfigError: nothing was pushed, or a weighting is not understood.
      RecommenderError: the server did not answer.
    """
    model, base = next(iter(served_models(workdir).items()))
    newest = newest_version(base)
    assert newest is not None  # served_models names only models that have a version
    objectives = _manifest(newest)["objectives"]
    texts = list(weightings) or [",".join(f"{name}=1" for name in objectives)]
    weights = [parse_weights(text, objectives) for text in texts]
    server = contextlib.nullcontext(address) if address else any_server(workdir, model)
    with server as where, RecommenderClient(where, model, timeout_seconds=30.0) as client:
        answers = [client.recommend(user, w, exclude=exclude, n=count) for w in weights]
        titles = [
            client.titles([item for item, _ in answer.items], answer.version) for answer in answers
        ]
    version = answers[0].version
    return Recommendations(
        user,
        model,
        version,
        _manifest(base / str(version)).get("model_id", ""),
        {
            text: [
                RecommendedItem(item, title, score)
                for (item, score), title in zip(answer.items, named, strict=True)
            ]
            for text, answer, named in zip(texts, answers, titles, strict=True)
        },
    )


def _manifest(version: Path) -> dict[str, Any]:
    """Of a version; empty where the server that answered has it elsewhere."""
    path = version / MANIFEST_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def show(result: Recommendations) -> None:
    """Prints one column per weighting."""
    table = Table(
        title=Text(
            f"Recommendations for user {result.user}, {result.model} version {result.version}"
        )
    )
    table.add_column("#", justify="right")
    for weighting in result.lists:
        table.add_column(Text(weighting.replace(",", "\n")))
    columns = [[f"{e.title}  {e.score:.2f}" for e in items] for items in result.lists.values()]
    for place, row in enumerate(zip_longest(*columns, fillvalue=""), start=1):
        table.add_row(str(place), *(Text(cell) for cell in row))
    console.say(table)
