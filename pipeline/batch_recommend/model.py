"""Which pushed model is asked, and what it can be told of a user."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tensorflow.core.framework import types_pb2
from tensorflow.python.saved_model import loader_impl

from pipeline.versions import flavours, servable_models
from schemas import names
from schemas.settings import ConfigError
from schemas.versions import versions_in

# What the values of an input are; all but the user's id are lists.
Kind = Literal["text", "number", "level"]


@dataclass(frozen=True)
class AskedModel:
    """One version of one flavour.

    Attributes:
      name, version: as clients of the server name them.
      path: absolute, of the SavedModel.
      model_id: what `csmf lineage` knows it by.
      objectives: first of the funnel first.
      top_k: length of its lists.
      inputs: what it can be told of a user, in the signature's words.
    """

    name: str
    version: int
    path: str
    model_id: str
    objectives: tuple[str, ...]
    top_k: int
    inputs: Mapping[str, Kind]


def find_model(workdir: Path, model: str | None, stock: bool, version: int | None) -> AskedModel:
    """Finds what a server of the workdir would answer with.

    Args:
      workdir: of the run that pushed.
      model: its name; needed only if several were pushed.
      stock: the flavour without ScaNN ops.
      version: None = the newest, or what a rollback has chosen.

    Raises:
      ConfigError: nothing was pushed, or not this model, flavour or version.
    """
    pushed = flavours(workdir, model)
    main = next(iter(pushed))
    name = main + names.STOCK_SUFFIX if stock else main
    if name not in pushed:
        raise ConfigError(f"--stock: no flavour {name} was pushed to {pushed[main].parent}")
    found = versions_in(pushed[name])
    if version is None:
        version = max(servable_models(workdir)[name].policy.aspired(sorted(found)))
    if version not in found:
        raise ConfigError(
            f"version {version} of {name} is not in {pushed[name]}; there are "
            f"{', '.join(map(str, sorted(found)))}"
        )
    path = min(found[version]).absolute()
    manifest = json.loads((path / names.MANIFEST_FILE).read_text(encoding="utf-8"))
    return AskedModel(
        name,
        version,
        str(path),
        manifest["model_id"],
        tuple(manifest["objectives"]),
        manifest["top_k"],
        _inputs(str(path)),
    )


def _inputs(path: str) -> dict[str, Kind]:
    graph = loader_impl.parse_saved_model(path).meta_graphs[0]
    described = graph.signature_def[names.SIGNATURE_RECOMMEND].inputs
    kinds: dict[str, Kind] = {}
    for name in sorted(described.keys() - {names.OBJECTIVE_WEIGHTS}):
        if name == names.HISTORY_LEVELS:
            kinds[name] = "level"
        else:
            kinds[name] = "text" if described[name].dtype == types_pb2.DT_STRING else "number"
    return kinds
