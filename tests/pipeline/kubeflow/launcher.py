"""Runs a compiled pipeline as Kubeflow Pipelines does, with processes in place of pods.

What its driver and launcher do (backend/src/v2/driver, backend/src/v2/component/launcher_v2.go of
kubeflow/pipelines) is done here from the YAML alone: inputs are resolved through the wiring of the
tasks, outputs get URIs and their parent directories, placeholders are filled in, the command runs
in an environment that holds nothing but the container's own variables, and what it writes to its
output file is all that the next tasks hear of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

ExecutorInput = pipeline_spec_pb2.ExecutorInput
ExecutorOutput = pipeline_spec_pb2.ExecutorOutput
Deployment = pipeline_spec_pb2.PipelineDeploymentConfig


class TaskFailedError(AssertionError):
    """A container ended with an error."""


@dataclass
class Done:
    """What a task has left."""

    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)  # RuntimeArtifacts as JSON
    parameters: dict[str, Any] = field(default_factory=dict)
    log: str = ""

    def path(self, key: str) -> Path:
        """Where an output lies."""
        return Path(self.artifacts[key]["uri"])

    def metadata(self, key: str) -> dict[str, Any]:
        """What ML Metadata knows of an output."""
        return self.artifacts[key]["metadata"]


def read_pipeline(
    text: str,
) -> tuple[pipeline_spec_pb2.PipelineSpec, Deployment, pipeline_spec_pb2.PlatformSpec]:
    """Parses both documents; anything that the schema does not know is an error."""
    first, second = yaml.safe_load_all(text)
    spec = json_format.ParseDict(first, pipeline_spec_pb2.PipelineSpec())
    deployment = json_format.ParseDict(
        json_format.MessageToDict(spec.deployment_spec), Deployment()
    )
    platform = json_format.ParseDict(second, pipeline_spec_pb2.PlatformSpec())
    return spec, deployment, platform


class Launcher:
    """A cluster of one machine."""

    def __init__(self, text: str, pipeline_root: Path, scratch: Path) -> None:
        """Reads the pipeline.

        Args:
          text: the two YAML documents.
          pipeline_root: overrides the compiled one, as a run's own root does.
          scratch: working directories and homes of the containers.
        """
        self.spec, self.deployment, _ = read_pipeline(text)
        self._root = pipeline_root / self.spec.pipeline_info.name / str(uuid.uuid4())
        self._scratch = scratch
        self._ids = iter(range(1, 1_000_000))
        self.done: dict[str, Done] = {}

    def run(self, pods: int = 2) -> dict[str, Done]:
        """Runs all tasks, each as soon as those that it depends on are done.

        Raises:
          TaskFailedError: with the end of the container's log.
        """
        tasks = dict(self.spec.root.dag.tasks)
        running: dict[Any, str] = {}
        with ThreadPoolExecutor(pods) as pool:
            while tasks or running:
                ready = [
                    name
                    for name, task in tasks.items()
                    if all(one in self.done for one in task.dependent_tasks)
                ]
                if not ready and not running:
                    raise AssertionError(f"{sorted(tasks)} wait for each other or for no task")
                for name in ready:
                    running[pool.submit(self.run_task, name, tasks.pop(name))] = name
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    self.done[running.pop(future)] = future.result()
        return self.done

    def run_task(self, name: str, task: pipeline_spec_pb2.PipelineTaskSpec) -> Done:
        """One pod: driver, launcher, and what comes out."""
        component = self.spec.components[task.component_ref.name]
        container = self.deployment.executors[component.executor_label].container
        message = self._executor_input(name, task, component)
        for parameter in message.outputs.parameters.values():
            Path(parameter.output_file).parent.mkdir(parents=True, exist_ok=True)
        for artifacts in message.outputs.artifacts.values():
            Path(artifacts.artifacts[0].uri).parent.mkdir(parents=True, exist_ok=True)

        filled = json_format.MessageToJson(message, indent=None)
        command = [word.replace("{{$}}", filled) for word in (*container.command, *container.args)]
        pod = self._scratch / f"{name}-{uuid.uuid4().hex[:8]}"
        work, home = pod / "work", pod / "home"
        for directory in (work, home):
            directory.mkdir(parents=True)
        environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(home),
            "HOSTNAME": name,
            **{variable.name: variable.value for variable in container.env},
        }
        ended = subprocess.run(
            command,
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=1200,
        )
        if ended.returncode:
            raise TaskFailedError(f"{name}: exit code {ended.returncode}\n{ended.stdout[-6000:]}")
        left = sorted(path.name for path in work.iterdir())
        assert not left, f"{name} wrote {left} into its working directory, which is lost"
        return self._collect(name, message, component, ended.stdout)

    def _executor_input(
        self,
        name: str,
        task: pipeline_spec_pb2.PipelineTaskSpec,
        component: pipeline_spec_pb2.ComponentSpec,
    ) -> ExecutorInput:
        message: dict[str, Any] = {
            "inputs": {"artifacts": {}, "parameterValues": {}},
            "outputs": {"artifacts": {}, "parameters": {}},
        }
        for key, source in task.inputs.artifacts.items():
            assert key in component.input_definitions.artifacts, f"{name} takes no {key}"
            producer = source.task_output_artifact
            artifact = self.done[producer.producer_task].artifacts[producer.output_artifact_key]
            message["inputs"]["artifacts"][key] = {"artifacts": [artifact]}
        for key, source in task.inputs.parameters.items():
            assert key in component.input_definitions.parameters, f"{name} takes no {key}"
            message["inputs"]["parameterValues"][key] = self._parameter(source)
        for kind in ("artifacts", "parameters"):
            for key, definition in getattr(component.input_definitions, kind).items():
                given = getattr(task.inputs, kind)
                assert key in given or definition.is_optional, f"{name} lacks its input {key}"

        task_root = self._root / name / str(uuid.uuid4())
        for key, definition in component.output_definitions.artifacts.items():
            message["outputs"]["artifacts"][key] = {
                "artifacts": [
                    {
                        "name": key,
                        "uri": str(task_root / key),
                        "type": json_format.MessageToDict(definition.artifact_type),
                        "metadata": json_format.MessageToDict(definition.metadata),
                    }
                ]
            }
        for key in component.output_definitions.parameters:
            file = self._scratch / name / "outputs" / key
            message["outputs"]["parameters"][key] = {"outputFile": str(file)}
        message["outputs"]["outputFile"] = str(task_root / "output_metadata.json")
        return json_format.ParseDict(message, ExecutorInput())

    def _parameter(self, source: pipeline_spec_pb2.TaskInputsSpec.InputParameterSpec) -> Any:
        if source.WhichOneof("kind") == "task_output_parameter":
            producer = source.task_output_parameter
            return self.done[producer.producer_task].parameters[producer.output_parameter_key]
        assert source.runtime_value.WhichOneof("value") == "constant", source
        return json_format.MessageToDict(source.runtime_value.constant)

    def _collect(
        self,
        name: str,
        message: ExecutorInput,
        component: pipeline_spec_pb2.ComponentSpec,
        log: str,
    ) -> Done:
        file = Path(message.outputs.output_file)
        # As strict as the launcher: an unknown field is an error.
        output = json_format.Parse(file.read_text(), ExecutorOutput())
        done = Done(parameters=dict(_plain(output.parameter_values)), log=log)
        for key, artifacts in message.outputs.artifacts.items():
            artifact = json_format.MessageToDict(artifacts.artifacts[0])
            if output.artifacts[key].artifacts:
                written = json_format.MessageToDict(output.artifacts[key].artifacts[0])
                artifact["uri"] = written.get("uri") or artifact["uri"]
                artifact["metadata"] = artifact.get("metadata", {}) | written.get("metadata", {})
            artifact["metadata"] = {
                one: _as_ml_metadata_keeps_it(value) for one, value in artifact["metadata"].items()
            }
            artifact["name"] = str(next(self._ids))  # the id in ML Metadata
            done.artifacts[key] = artifact
        missing = component.output_definitions.parameters.keys() - done.parameters.keys()
        assert not missing, f"{name} did not write its parameters {missing}"
        return done


def _as_ml_metadata_keeps_it(value: Any) -> Any:
    """What becomes of a value in StructValueToMLMDValue and back."""
    assert value is not None, "Kubeflow refuses metadata without a value"
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, dict | list):
        return {"struct" if isinstance(value, dict) else "list": value}
    return value


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: json.loads(json_format.MessageToJson(value)) for key, value in values.items()}
