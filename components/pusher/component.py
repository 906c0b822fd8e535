"""TFX component `Pusher`."""

from __future__ import annotations

from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts
from tfx.types.channel import BaseChannel, Channel

from components.pusher import spec
from components.pusher.executor import Executor


class PusherSpec(component_spec.ComponentSpec):
    """Inputs, outputs and parameters of the Pusher."""

    INPUTS = {
        spec.MODEL_KEY: component_spec.ChannelParameter(type=standard_artifacts.Model),
        spec.MODEL_BLESSING_KEY: component_spec.ChannelParameter(
            type=standard_artifacts.ModelBlessing
        ),
        spec.INFRA_BLESSING_KEY: component_spec.ChannelParameter(
            type=standard_artifacts.InfraBlessing
        ),
    }
    OUTPUTS = {
        spec.PUSHED_MODEL_KEY: component_spec.ChannelParameter(type=standard_artifacts.PushedModel),
    }
    PARAMETERS = {
        spec.SERVING_DIR_KEY: component_spec.ExecutionParameter(type=str),
        spec.MODEL_NAME_KEY: component_spec.ExecutionParameter(type=str),
        spec.KEEP_VERSIONS_KEY: component_spec.ExecutionParameter(type=int),
        spec.ADDRESS_KEY: component_spec.ExecutionParameter(type=str, optional=True),
        spec.POLL_TIMEOUT_SECONDS_KEY: component_spec.ExecutionParameter(type=float, optional=True),
    }


class Pusher(base_component.BaseComponent):
    """Publishes a blessed model as the next version of `<serving_dir>/<model_name>`.

    Output `pushed_model`: a PushedModel; see the executor for its custom properties.
    """

    SPEC_CLASS = PusherSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        model: BaseChannel,
        model_blessing: BaseChannel,
        infra_blessing: BaseChannel,
        serving_dir: str,
        model_name: str = "recommender",
        keep_versions: int = spec.DEFAULT_KEEP_VERSIONS,
        address: str | None = None,
        poll_timeout_seconds: float = spec.DEFAULT_POLL_TIMEOUT_SECONDS,
    ) -> None:
        """Builds the component.

        Args:
          model: channel of the servable made by IndexBuilder.
          model_blessing: channel of the quality gate's verdict.
          infra_blessing: channel of the serving gate's verdict.
          serving_dir: local parent of the served directories.
          model_name: served name; the stock flavour's has "_stock" appended.
          keep_versions: how many versions stay on disk, at least 1.
          address: "host:port" of a server that must load the version, or None to not wait.
          poll_timeout_seconds: how long to wait for that server.

        Raises:
          ValueError: `keep_versions` is less than 1.
        """
        if keep_versions < 1:
            raise ValueError(f"keep_versions is {keep_versions}; at least 1 version must be kept.")
        super().__init__(
            PusherSpec(
                model=model,
                model_blessing=model_blessing,
                infra_blessing=infra_blessing,
                pushed_model=Channel(type=standard_artifacts.PushedModel),
                serving_dir=serving_dir,
                model_name=model_name,
                keep_versions=keep_versions,
                address=address,
                poll_timeout_seconds=float(poll_timeout_seconds),
            )
        )
