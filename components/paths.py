"""Where an artifact lies on the file system, for executors that need real files."""

from __future__ import annotations

from pathlib import Path

# Where the launcher of Kubeflow Pipelines puts inputs and takes outputs from, bucket by bucket; on
# Vertex AI the bucket itself is mounted there.
_MOUNTS = {"gs://": "/gcs/", "s3://": "/s3/", "minio://": "/minio/", "file://": ""}


def local_path(uri: str) -> Path:
    """Returns the local path of an artifact.

    Args:
      uri: of the artifact: a path, a file:// URI, or a URI of a bucket that the orchestrator
        mirrors.

    Raises:
      ValueError: no orchestrator mirrors what has such a URI.
    """
    for scheme, mount in _MOUNTS.items():
        if uri.startswith(scheme):
            return Path(mount + uri.removeprefix(scheme))
    if "://" in uri:
        raise ValueError(
            f"{uri!r} is no local path, and only {', '.join(_MOUNTS)} are mirrored on one. Choose "
            "a pipeline root of one of these kinds."
        )
    return Path(uri)
