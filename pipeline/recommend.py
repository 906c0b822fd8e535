"""`csmf recommend`: lists of one user under several weightings, side by side."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from pipeline.serve import any_server
from pipeline.versions import served_models
from schemas.names import MANIFEST_FILE
from schemas.settings import ConfigError, nearest
from schemas.versions import newest_version
from serving.client import RecommenderClient


@dataclass(frozen=True)
class Recommendations:
    """A table: one column per weighting, one row per place."""

    user: str
    model: str
    version: int
    weightings: list[str]
    rows: list[list[str]]


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


def recommend_table(
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
    manifest = json.loads((newest / MANIFEST_FILE).read_text(encoding="utf-8"))
    objectives = manifest["objectives"]
    texts = list(weightings) or [",".join(f"{name}=1" for name in objectives)]
    weights = [parse_weights(text, objectives) for text in texts]
    server = contextlib.nullcontext(address) if address else any_server(workdir, model)
    with server as where, RecommenderClient(where, model, timeout_seconds=30.0) as client:
        answers = [client.recommend(user, w, exclude=exclude, n=count) for w in weights]
        columns = [
            [
                f"{title}  {score:.2f}"
                for title, (_, score) in zip(
                    client.titles([item for item, _ in answer.items], answer.version),
                    answer.items,
                    strict=True,
                )
            ]
            for answer in answers
        ]
    return Recommendations(
        user,
        model,
        answers[0].version,
        texts,
        [list(row) for row in zip_longest(*columns, fillvalue="")],
    )
