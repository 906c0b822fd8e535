"""Serving processes that the tests may hurt, and plain calls to them."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

ROOT = Path(__file__).parents[3]
START_SECONDS = 90.0

_PREDICTION = "/tensorflow.serving.PredictionService/"
_MODELS = "/tensorflow.serving.ModelService/"
# method -> path, request, response
METHODS: dict[str, tuple[str, Any, Any]] = {
    "Predict": (
        f"{_PREDICTION}Predict",
        predict_pb2.PredictRequest,
        predict_pb2.PredictResponse,
    ),
    "Classify": (
        f"{_PREDICTION}Classify",
        classification_pb2.ClassificationRequest,
        classification_pb2.ClassificationResponse,
    ),
    "Regress": (
        f"{_PREDICTION}Regress",
        regression_pb2.RegressionRequest,
        regression_pb2.RegressionResponse,
    ),
    "MultiInference": (
        f"{_PREDICTION}MultiInference",
        inference_pb2.MultiInferenceRequest,
        inference_pb2.MultiInferenceResponse,
    ),
    "GetModelMetadata": (
        f"{_PREDICTION}GetModelMetadata",
        get_model_metadata_pb2.GetModelMetadataRequest,
        get_model_metadata_pb2.GetModelMetadataResponse,
    ),
    "GetModelStatus": (
        f"{_MODELS}GetModelStatus",
        get_model_status_pb2.GetModelStatusRequest,
        get_model_status_pb2.GetModelStatusResponse,
    ),
    "HandleReloadConfigRequest": (
        f"{_MODELS}HandleReloadConfigRequest",
        model_management_pb2.ReloadConfigRequest,
        model_management_pb2.ReloadConfigResponse,
    ),
}


def _conftest_of_models() -> Any:
    """pytest shares the fixtures of a conftest.py only with the directories below it."""
    name = "conftest_of_models"
    location = importlib.util.spec_from_file_location(name, ROOT / "tests/models/conftest.py")
    assert location is not None
    assert location.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module


# A real export of both flavours, and what it was made of.
exported, shop = (getattr(_conftest_of_models(), name) for name in ("exported", "shop"))

CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Each channel its own connection: channels of equal options would share one.
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(frozen=True)
class Caller:
    """One connection to a server, for messages and for raw bytes."""

    channel: grpc.Channel

    def raw(self, method: str, message: bytes, timeout: float = 20.0) -> Any:
        """A call whose request and answer are bytes, as a future."""
        return self.channel.unary_unary(METHODS[method][0]).future(message, timeout=timeout)

    def call(self, method: str, request: Any, timeout: float = 20.0) -> Any:
        """The answer to a message."""
        path, _, response = METHODS[method]
        return self.channel.unary_unary(
            path, lambda message: message.SerializeToString(), response.FromString
        )(request, timeout=timeout)

    def predict(self, model: str, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The answer to a Predict request, see `predict_request`."""
        timeout = kwargs.pop("timeout", 20.0)
        return self.call("Predict", predict_request(model, inputs, *args, **kwargs), timeout)

    def error(self, call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
        """Status and details of the error that `call` must end in."""
        with pytest.raises(grpc.RpcError) as caught:
            call()
        return caught.value.code(), caught.value.details()

    def states(self, model: str) -> dict[int, int]:
        """Version -> number of its state."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        answer = self.call("GetModelStatus", request)
        return {entry.version: entry.state for entry in answer.model_version_status}

    def status_error(self, model: str, version: int) -> tuple[int, str]:
        """Code and text of the error of one version."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        request.model_spec.version.value = version
        (entry,) = self.call("GetModelStatus", request).model_version_status
        return entry.status.error_code, entry.status.error_message


def predict_request(
    model: str,
    inputs: dict[str, Any],
    signature: str = "",
    version: int | None = None,
    outputs: tuple[str, ...] = (),
) -> predict_pb2.PredictRequest:
    """A request; inputs are TensorProtos or what `tf.make_tensor_proto` takes."""
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    for alias, value in inputs.items():
        if not isinstance(value, tensor_pb2.TensorProto):
            value = tf.make_tensor_proto(value)
        request.inputs[alias].CopyFrom(value)
    return request


@dataclass
class Process:
    """A `python -m serving` of its own, and what it has written."""

    process: subprocess.Popen[bytes]
    port: int
    rest_port: int
    log: Path

    def workers(self) -> list[psutil.Process]:
        """The worker processes that are alive."""
        return [
            child
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if "spawn_main" in " ".join(_command_line(child))
        ]

    def text(self) -> str:
        """Everything printed and logged so far."""
        return self.log.read_text(errors="replace")


def _command_line(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def methods() -> dict[str, tuple[str, Any, Any]]:
    """Method -> path, request, response."""
    return METHODS


@pytest.fixture(scope="session")
def ask() -> Callable[..., predict_pb2.PredictRequest]:
    """ask(model, inputs, signature, version, outputs): a Predict request."""
    return predict_request


@pytest.fixture
def connect() -> Iterator[Callable[[int], Caller]]:
    """connect(port): a connection of its own, closed after the test."""
    with contextlib.ExitStack() as undo:

        def open_channel(port: int) -> Caller:
            channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS)
            return Caller(undo.enter_context(channel))

        yield open_channel


@pytest.fixture
def start_process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """start_process(models, *flags): a serving process with gRPC and REST, ended after the test."""
    started: list[tuple[Process, list[psutil.Process]]] = []

    def start(models: dict[str, Path], *flags: str) -> Process:
        number = len(started)
        port_file, log = tmp_path / f"port-{number}", tmp_path / f"log-{number}"
        rest_port = free_port()
        arguments = [f"--model={name}={path}" for name, path in models.items()]
        arguments += ["--host=127.0.0.1", "--port=0", f"--rest_api_port={rest_port}"]
        arguments += [f"--port_file={port_file}", "--file_system_poll_wait_seconds=0.1", *flags]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "serving", *arguments],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        server = Process(process, 0, rest_port, log)
        children: list[psutil.Process] = []
        started.append((server, children))
        deadline = time.monotonic() + START_SECONDS
        while not port_file.exists():
            assert process.poll() is None, server.text()
            assert time.monotonic() < deadline, server.text()
            time.sleep(0.05)
        server.port = int(port_file.read_text())
        children += psutil.Process(process.pid).children(recursive=True)
        return server

    yield start
    for server, children in started:
        if server.process.poll() is None:
            children += psutil.Process(server.process.pid).children(recursive=True)
            server.process.terminate()
            try:
                server.process.wait(30)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
