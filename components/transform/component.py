"""TFX's Transform with an executor that is faster on many examples."""

from __future__ import annotations

from tfx.components.transform import component
from tfx.dsl.components.base import executor_spec

from components.transform.executor import Executor


class Transform(component.Transform):
    """TFX's component in all but the time it takes: same arguments, same outputs."""

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)
