"""TensorFlow Metadata schemas: a curated core, plus the features that the configuration declares.

Two schemas, because the splits hold two kinds of examples:
  - `timelines` describes train and eval. It also declares the catalogue's features, without asking
    for their presence: one Transform reads all three splits with it, so that ids agree.
  - `catalogue` describes the catalogue split and requires what every item must have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from schemas import names
from schemas.files import write_atomically
from schemas.logs import DataSettings, Feature

TIMELINES = "timelines"
CATALOGUE = "catalogue"

_CORE_DIRECTORY = Path(__file__).parent


def core_schema(name: str) -> schema_pb2.Schema:
    """Returns the curated core of a schema as it stands in `<name>.pbtxt`."""
    return text_format.Parse(
        (_CORE_DIRECTORY / f"{name}.pbtxt").read_text(encoding="utf-8"), schema_pb2.Schema()
    )


def build_schemas(data: DataSettings, n_objectives: int) -> dict[str, schema_pb2.Schema]:
    """Builds the schemas of a configuration.

    Args:
      data: declares the features of items and users.
      n_objectives: number of levels.

    Returns:
      {"timelines": .., "catalogue": ..}.
    """
    timelines = core_schema(TIMELINES)
    for feature in timelines.feature:
        if feature.name in (names.LEVELS, names.TARGET_LEVELS):
            feature.int_domain.max = n_objectives - 1
    catalogue = core_schema(CATALOGUE)
    if data.users is not None:
        _add(timelines, data.users.features, names.user_feature)
    if data.catalogue is not None:
        _add(catalogue, data.catalogue.features, names.item_feature)
    for feature in catalogue.feature:
        optional = timelines.feature.add()
        optional.CopyFrom(feature)
        optional.ClearField("presence")
    return {TIMELINES: timelines, CATALOGUE: catalogue}


def write_schemas(schemas: Mapping[str, schema_pb2.Schema], directory: Path) -> dict[str, Path]:
    """Writes schemas as text protos.

    Each file carries the hash of its content in its name, because TFX takes a file of the same
    path for an unchanged input.

    Args:
      schemas: from `build_schemas`.
      directory: made if necessary.

    Returns:
      Name of the schema -> path of its file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, schema in schemas.items():
        content = text_format.MessageToString(schema).encode()
        path = directory / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}.pbtxt"
        if not path.exists():
            write_atomically(path, content)
        paths[name] = path
    return paths


def _add(
    schema: schema_pb2.Schema, features: Iterable[Feature], key_of: Callable[[str], str]
) -> None:
    for feature in features:
        added = schema.feature.add(name=key_of(feature.name))
        if feature.kind == "categorical":
            added.type = schema_pb2.BYTES
            if feature.values is not None:
                added.string_domain.value.extend(feature.values)
            if feature.separator is None:
                added.value_count.min = 1
        else:
            added.type = schema_pb2.FLOAT
            if feature.min is not None:
                added.float_domain.min = feature.min
            if feature.max is not None:
                added.float_domain.max = feature.max
