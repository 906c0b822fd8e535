"""Reading the TFRecords of an Examples artifact without Beam."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator

import tensorflow as tf
from tfx.types import artifact_utils
from tfx.types.artifact import Artifact

from components.paths import local_path


def read_split(examples: list[Artifact], split: str) -> Iterator[bytes]:
    """Yields the serialised examples of one split; the order of files is by name."""
    directory = local_path(artifact_utils.get_split_uri(examples, split))
    files = sorted(glob.glob(os.path.join(directory, "*.gz")))
    for record in tf.data.TFRecordDataset(files, compression_type="GZIP"):
        yield record.numpy()
