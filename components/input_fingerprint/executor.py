"""Executor of InputFingerprint."""

from __future__ import annotations

import json
from typing import Any

from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.types.artifact import Artifact

from components.input_fingerprint import spec
from components.input_fingerprint.digest import digest
from components.interaction_gen.files import fingerprint_inputs
from schemas.logs import DataSettings


class Executor(base_executor.BaseExecutor):
    """Runs `fingerprint_inputs`."""

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes the fingerprint.

        Args:
          input_dict: empty.
          output_dict:
            - fingerprint: String.
          exec_properties:
            - data: JSON of DataSettings.

        Raises:
          DataError: a path matches nothing, or a file cannot be read.
        """
        data = DataSettings.parse(json.loads(exec_properties[spec.DATA_KEY]))
        fingerprint = artifact_utils.get_single_instance(output_dict[spec.FINGERPRINT_KEY])
        fingerprint.value = digest(fingerprint_inputs(data))
