"""Executor of the ServingValidator: draws the requests, validates, writes the verdict."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import Any

from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.types.artifact import Artifact
from tfx.utils import io_utils

from components.artifacts import compact_json
from components.paths import local_path
from components.serving_validator import spec
from components.serving_validator.sample import sample_timelines
from components.serving_validator.validate import validate
from schemas.names import EVAL_SPLIT

_LOG = logging.getLogger(__name__)


class Executor(base_executor.BaseExecutor):
    """Blesses a model that a real server answers with as it should."""

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Runs the component.

        Args:
          input_dict:
            - model: the servable, with `scann/`, `stock/` and `vectors.npz`.
            - examples: raw timelines; split `eval` is read.
          output_dict:
            - blessing: gets `report.json`, the file INFRA_BLESSED or INFRA_NOT_BLESSED, and the
              custom properties `blessed` (1 or 0), `failed` (names of the failed checks) and
              `checks` (JSON of all of them).
          exec_properties:
            - objectives: JSON list of the names, in order.
            - sample_size: users to ask for.
            - seed: decides which.
            - timeout_seconds: for the whole validation.
            - minimum_recall: of the scann flavour against brute force.

        Raises:
          ValueError: the eval split holds no timeline, so there is nobody to ask for.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        model = artifact_utils.get_single_instance(input_dict[spec.MODEL_KEY])
        examples = artifact_utils.get_single_instance(input_dict[spec.EXAMPLES_KEY])
        blessing = artifact_utils.get_single_instance(output_dict[spec.BLESSING_KEY])
        split = str(local_path(artifact_utils.get_split_uri([examples], EVAL_SPLIT)))
        files = sorted(fileio.glob(io_utils.all_files_pattern(split)))
        timelines = sample_timelines(
            files, exec_properties[spec.SAMPLE_SIZE_KEY], exec_properties[spec.SEED_KEY]
        )
        if not timelines:
            raise ValueError(
                f"{split} holds no timeline with events. Lower the eval share's cut-off, so that "
                "some users have events after it."
            )
        report = validate(
            local_path(model.uri),
            timelines,
            json.loads(exec_properties[spec.OBJECTIVES_KEY]),
            exec_properties[spec.TIMEOUT_SECONDS_KEY],
            exec_properties[spec.MINIMUM_RECALL_KEY],
        )
        directory = local_path(blessing.uri)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / spec.REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
        verdict = spec.BLESSED_FILE if report.blessed else spec.NOT_BLESSED_FILE
        (directory / verdict).touch()
        blessing.set_int_custom_property(spec.BLESSED_PROPERTY, int(report.blessed))
        blessing.set_string_custom_property(
            spec.CHECKS_PROPERTY, compact_json([asdict(check) for check in report.checks])
        )
        failed = [check for check in report.checks if not check.passed]
        blessing.set_string_custom_property(
            spec.FAILED_PROPERTY, "; ".join(check.name for check in failed)
        )
        for check in failed:
            _LOG.warning("Check %s failed: %s", check.name, check.detail)
