"""Writes a servable: two SavedModels of one model, its vectors, and a manifest that binds them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_transform as tft
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.saved_model import fingerprinting_utils

from models.catalogue import Catalogue
from models.index import ScannSearcher
from models.preprocessing import USER_VOCABULARY
from models.recommender import Profiles, Recommender, item_vectors
from models.settings import IndexSettings
from models.towers import TwoTower
from models.warmup import write_warm_up
from models.weighting import default_weights
from schemas import names

MANIFEST_FILE = "manifest.json"

_WITH_DEFAULTS = (
    names.SIGNATURE_RECOMMEND,
    names.SIGNATURE_EMBED_USER,
    names.SIGNATURE_SCORE_ITEMS,
)


def export(
    directory: Path,
    towers: TwoTower,
    transform: tft.TFTransformOutput,
    feature_kinds: dict[str, str],
    catalogue: Catalogue,
    profiles: Profiles,
    settings: IndexSettings,
    objectives: list[str],
    weights: dict[str, list[float]],
) -> dict[str, Any]:
    """Writes `scann/`, `stock/`, `vectors.npz` and `manifest.json` into `directory`.

    Args:
      directory: must exist.
      towers: the network after its last stage.
      transform: the Transform graph the towers were trained with.
      feature_kinds: user feature name -> "categorical" or "numeric".
      catalogue: the candidates.
      profiles: stored histories and features of the known users.
      settings: of the index.
      objectives: names, in the order of the stages.
      weights: objective -> the request weights that serve it; those that are missing become
        `default_weights`.

    Returns:
      The manifest.

    Raises:
      ValueError: an item id occurs twice, or an item vector is not finite.
    """
    vectors = item_vectors(towers, catalogue)
    _check(catalogue, vectors)
    manifest: dict[str, Any] = {
        "objectives": objectives,
        "block_sizes": towers.block_sizes(),
        "weights": default_weights(objectives) | weights,
        "top_k": settings.top_k,
        "n_items": len(vectors),
        "n_users": len(profiles.offsets) - 2,
        "tower_sha256": _sha256(
            *(weight.numpy().tobytes() for weight in towers.weights.values()),
            *(owners.tobytes() for owners in towers.owners.values()),
        ),
        "vocabulary_sha256": _sha256(*catalogue.item_ids.tolist()),
    }
    manifest["model_id"] = _sha256(
        json.dumps(manifest, sort_keys=True).encode(), vectors.tobytes()
    )[:16]
    user_ids = transform.vocabulary_by_name(USER_VOCABULARY)
    for flavour in names.FLAVOURS:
        searcher = ScannSearcher(vectors, settings) if flavour == names.SCANN_FLAVOUR else None
        recommender = Recommender(
            towers,
            transform,
            feature_kinds,
            catalogue,
            profiles,
            searcher,
            settings.top_k,
            objectives,
        )
        _save(recommender, directory / flavour)
        write_warm_up(
            directory / flavour / names.WARMUP_FILE,
            recommender.defaults(),
            user_ids,
            catalogue.item_ids.tolist(),
            list(manifest["weights"].values()),
        )
        _bind(directory / flavour, manifest | {"flavour": flavour})
    np.savez(
        directory / names.VECTORS_FILE,
        item_ids=catalogue.item_ids.astype(np.bytes_),
        item_vectors=vectors,
    )
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2))
    return manifest


def _check(catalogue: Catalogue, vectors: npt.NDArray[np.float32]) -> None:
    if len(set(catalogue.item_ids.tolist())) < len(catalogue.item_ids):
        raise ValueError("the item vocabulary holds an id twice: every answer could repeat it")
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise ValueError(
            f"{len(broken)} item vectors are not finite, the first is that of item "
            f"{catalogue.item_ids[broken[0]]!r}: lower the learning rate of the stages"
        )


def _save(recommender: Recommender, directory: Path) -> None:
    tf.saved_model.save(
        recommender,
        str(directory),
        signatures=recommender.signatures(),
        options=tf.saved_model.SaveOptions(namespace_whitelist=["Scann"]),
    )
    _write_defaults(directory / "saved_model.pb", recommender.defaults())


def _bind(directory: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest beside the SavedModel, with the hash of every file."""
    files = {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    (directory / names.MANIFEST_FILE).write_text(json.dumps(manifest | {"files": files}, indent=2))


def _write_defaults(path: Path, defaults: dict[str, npt.NDArray]) -> None:
    """Adds the default inputs to the signatures (TensorFlow Serving >= 2.14 fills them in).

    TensorFlow takes defaults only from literal Python parameters of the function, and the names
    of ours depend on the configuration; so they are written into the proto.
    """
    saved_model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for name in _WITH_DEFAULTS:
        signature = saved_model.meta_graphs[0].signature_def[name]
        for key, value in defaults.items():
            if key in signature.inputs:
                signature.defaults[key].CopyFrom(
                    tf.make_tensor_proto(value, dtype=signature.inputs[key].dtype)
                )
    path.write_bytes(saved_model.SerializeToString())
    fingerprinting_utils.write_fingerprint(str(path.parent))  # it holds a checksum of the graph


def _sha256(*parts: bytes) -> str:
    """Hash of a sequence of parts; lengths go in, so that no two sequences look alike."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
