"""Executor of the Pusher: reads the blessings, publishes, waits for the server, prunes."""

from __future__ import annotations

import json
import logging
from typing import Any

from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.types.artifact import Artifact

from components.paths import local_path
from components.pusher import spec
from components.pusher.push import local_directory, prune, publish
from schemas.names import STOCK_SUFFIX
from serving.config_files import MODELS_FILE, pinned_versions

_LOG = logging.getLogger(__name__)


class Executor(base_executor.BaseExecutor):
    """Publishes a model that both gates blessed; records why if it does not."""

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Runs the component.

        Args:
          input_dict:
            - model: the servable, with folders `scann` and `stock`.
            - model_blessing: verdict on quality, custom property `blessed`.
            - infra_blessing: verdict on serving, custom property `blessed`.
          output_dict:
            - pushed_model: gets `push.json` and the custom properties `pushed` (0 or 1), then
              either `reason`, or `pushed_version`, `pushed_destination`, `model_name`, `model_id`.
          exec_properties:
            - serving_dir: parent of the served directories, local.
            - model_name: served name.
            - keep_versions: how many versions stay on disk.
            - address: "host:port" of a server to wait for, or absent.
            - poll_timeout_seconds: how long to wait for it.

        Raises:
          PushError: the files do not fit their manifest, or the server did not load the version.
          ConfigFileError: the file that says what is served is not understood.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        pushed = artifact_utils.get_single_instance(output_dict[spec.PUSHED_MODEL_KEY])
        refusals = [
            f"{key}: {refusal}"
            for key, file in (
                (spec.MODEL_BLESSING_KEY, spec.MODEL_BLESSED_FILE),
                (spec.INFRA_BLESSING_KEY, spec.INFRA_BLESSED_FILE),
            )
            if (refusal := refused(artifact_utils.get_single_instance(input_dict[key]), file))
        ]
        if refusals:
            reason = "; ".join(refusals)
            _LOG.warning("The model is not pushed: %s", reason)
            _record(pushed, {spec.PUSHED_PROPERTY: 0, spec.REASON_PROPERTY: reason})
            return

        model = artifact_utils.get_single_instance(input_dict[spec.MODEL_KEY])
        serving_dir = local_directory(exec_properties[spec.SERVING_DIR_KEY])
        model_name = exec_properties[spec.MODEL_NAME_KEY]
        # Versions that a rollback has chosen: they serve, whatever is pushed, until it is ended.
        pinned = pinned_versions(serving_dir / MODELS_FILE, model_name)
        done = publish(local_path(model.uri), serving_dir, model_name)
        address = exec_properties.get(spec.ADDRESS_KEY)
        if pinned:
            _LOG.warning("Version %d is not served: rolled back to %s", done.version, pinned)
        elif address:
            _wait(address, model_name, done.version, exec_properties)
        # Only now: until a server has the new version, an old one is what it would fall back to.
        deleted = prune(
            serving_dir,
            model_name,
            exec_properties[spec.KEEP_VERSIONS_KEY],
            {done.version, *pinned},
        )
        _LOG.info("Pushed version %d to %s, deleted %s", done.version, done.destination, deleted)
        _record(
            pushed,
            {
                spec.PUSHED_PROPERTY: 1,
                spec.PUSHED_VERSION_PROPERTY: done.version,
                spec.PUSHED_DESTINATION_PROPERTY: str(done.destination),
                spec.MODEL_NAME_PROPERTY: model_name,
                spec.MODEL_ID_PROPERTY: done.model_id,
            },
        )


def is_blessed(blessing: Artifact, blessed_file: str) -> bool:
    """Reads a verdict: the custom property decides; a blessing without it needs the file."""
    if blessing.has_custom_property(spec.BLESSED_PROPERTY):
        return blessing.get_int_custom_property(spec.BLESSED_PROPERTY) == 1
    return (local_path(blessing.uri) / blessed_file).exists()


def refused(blessing: Artifact, blessed_file: str) -> str:
    """Returns why a verdict is no, or an empty string."""
    if is_blessed(blessing, blessed_file):
        return ""
    failed = blessing.get_string_custom_property(spec.FAILED_PROPERTY) or "not blessed"
    return f"{failed} (see {blessing.uri})"


def _wait(address: str, model_name: str, version: int, exec_properties: dict[str, Any]) -> None:
    # Imports TensorFlow's protocol messages, which only this path needs.
    from components.pusher.availability import wait_until_available

    wait_until_available(
        address,
        [model_name, f"{model_name}{STOCK_SUFFIX}"],
        version,
        exec_properties.get(spec.POLL_TIMEOUT_SECONDS_KEY) or spec.DEFAULT_POLL_TIMEOUT_SECONDS,
    )


def _record(pushed: Artifact, properties: dict[str, int | str]) -> None:
    for key, value in properties.items():
        if isinstance(value, int):
            pushed.set_int_custom_property(key, value)
        else:
            pushed.set_string_custom_property(key, value)
    directory = local_path(pushed.uri)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / spec.PUSH_FILE).write_text(json.dumps(properties, indent=2) + "\n")
