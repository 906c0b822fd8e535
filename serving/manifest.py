"""Proof that a SavedModel directory holds exactly the files that were exported together."""

from __future__ import annotations

import hashlib
import json
import posixpath
from typing import Any

import grpc
import tensorflow as tf

from schemas.names import MANIFEST_FILE
from serving.config import GRAPH_FILES
from serving.errors import ServingError

_CHUNK_BYTES = 1 << 20


class ManifestError(ServingError):
    """The directory does not match its own manifest; it must not be served."""

    def __init__(self, path: str, fault: str) -> None:
        super().__init__(
            grpc.StatusCode.DATA_LOSS,
            f"{path}: {fault}. The files of this version were not exported together; publish the "
            "model again instead of replacing single files.",
        )


def verify_manifest(path: str) -> dict[str, Any] | None:
    """Checks the SHA-256 of every file that the manifest of a SavedModel lists.

    A query tower must never meet another model's index, so the graph and every variables file
    have to be listed. A SavedModel without a manifest comes from elsewhere and is not checked.

    Returns:
      the manifest, or None if there is none.

    Raises:
      ManifestError: a file is missing, changed or not listed, or the manifest is unreadable.
    """
    manifest_path = posixpath.join(path, MANIFEST_FILE)
    if not tf.io.gfile.exists(manifest_path):
        return None
    with tf.io.gfile.GFile(manifest_path, "rb") as file:
        raw = file.read()
    try:
        manifest = json.loads(raw)
    except ValueError as error:
        raise ManifestError(path, f"{MANIFEST_FILE} is not JSON ({error})") from error
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise ManifestError(path, f"{MANIFEST_FILE} has no object 'files' of path: sha256")
    for relative in _must_be_listed(path):
        if relative not in files:
            raise ManifestError(path, f"{relative} is not listed in {MANIFEST_FILE}")
    for relative, expected in files.items():
        _verify_file(path, relative, expected)
    return manifest


def _must_be_listed(path: str) -> list[str]:
    graphs = [name for name in GRAPH_FILES if tf.io.gfile.exists(posixpath.join(path, name))]
    variables = posixpath.join(path, "variables")
    if not tf.io.gfile.isdir(variables):
        return graphs
    return graphs + [f"variables/{name}" for name in tf.io.gfile.listdir(variables)]


def _verify_file(path: str, relative: str, expected: object) -> None:
    if posixpath.isabs(relative) or ".." in relative.split("/"):
        raise ManifestError(path, f"{MANIFEST_FILE} lists {relative!r} outside the SavedModel")
    full = posixpath.join(path, relative)
    if not tf.io.gfile.exists(full):
        raise ManifestError(path, f"{relative} is listed in {MANIFEST_FILE} but missing")
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(full, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise ManifestError(
            path,
            f"{relative} has SHA-256 {digest.hexdigest()}, {MANIFEST_FILE} says {expected}",
        )
