"""A client of the TensorFlow Serving API that is not ours, unmodified: `ovmsclient`.

It runs in a process of its own: its copies of TensorFlow's messages collide with the originals.
It names a version in every call, 0 if it is told none, which TensorFlow Serving takes literally.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.options import ServerOptions
from serving.server import ModelServer

pytestmark = pytest.mark.slow

Run = Callable[[str], Any]

_BEFORE = """
import json, sys
import numpy as np
import ovmsclient
grpc_port, rest_port = sys.argv[1:]
client = ovmsclient.make_grpc_client(f"127.0.0.1:{grpc_port}")
rest = ovmsclient.make_http_client(f"127.0.0.1:{rest_port}")
def error_of(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
"""


@pytest.fixture(scope="module")
def server(
    half_plus_two: Path,
    recommender: Path,
    publish: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ModelServer]:
    base = tmp_path_factory.mktemp("outside")
    publish(half_plus_two, base / "half", "00000123")
    publish(recommender, base / "recommender", 4)
    models = {name: base / name for name in ("half", "recommender")}
    options = ServerOptions(models=models, host="127.0.0.1", port=0, rest_port=0)
    with ModelServer(options) as running:
        yield running


@pytest.fixture(scope="module")
def run(server: ModelServer) -> Run:
    """run(code): what the expression prints as JSON when the client's process has run the code."""

    def execute(code: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", _BEFORE + code, str(server.port), str(server.rest_port)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout)

    return execute


METADATA = {
    "model_version": 123,
    "inputs": {"x": {"shape": [-1], "dtype": "DT_FLOAT"}},
    "outputs": {"y": {"shape": [-1], "dtype": "DT_FLOAT"}},
}


def assert_error(told: list[str], kind: str, text: str) -> None:
    assert told[0] == kind
    assert text in told[1]


def test_grpc(run: Run) -> None:
    answers = run(
        """
x = np.array([1.0, 2.0], np.float32)
print(json.dumps({
    "predict": client.predict({"x": x}, "half", 123).tolist(),
    "metadata": client.get_model_metadata("half", 123),
    "status": client.get_model_status("half", 123),
    "version 0": error_of(lambda: client.predict({"x": x}, "half")),
    "no model": error_of(lambda: client.predict({"x": x}, "nope", 1)),
    "no version": error_of(lambda: client.get_model_status("half", 9)),
    "no input": error_of(lambda: client.predict({"z": x}, "half", 123)),
    "wrong type": error_of(lambda: client.predict({"x": [b"text"]}, "half", 123)),
}))
"""
    )
    assert answers["predict"] == [2.5, 3.0]
    assert answers["metadata"] == METADATA
    assert answers["status"] == {
        "123": {"state": "AVAILABLE", "error_code": 0, "error_message": ""}
    }
    assert_error(
        answers["version 0"],
        "ModelNotFoundError",
        "Servable not found for request: Specific(half, 0)",
    )
    assert_error(
        answers["no model"],
        "ModelNotFoundError",
        "Servable not found for request: Specific(nope, 1)",
    )
    assert_error(
        answers["no version"], "ModelNotFoundError", "Could not find version 9 of model half"
    )
    assert_error(answers["no input"], "InvalidInputError", "Signature input alias: x")
    assert_error(
        answers["wrong type"],
        "InvalidInputError",
        "Expects arg[0] to be float but string is provided",
    )


def test_rest(run: Run) -> None:
    answers = run(
        """
x = np.array([1.0, 2.0], np.float32)
print(json.dumps({
    "predict": rest.predict({"x": x}, "half", 123).tolist(),
    "metadata": rest.get_model_metadata("half", 123),
    "status": rest.get_model_status("half", 123),
    "no model": error_of(lambda: rest.predict({"x": x}, "nope", 1)),
    "no version": error_of(lambda: rest.get_model_status("half", 9)),
    "no input": error_of(lambda: rest.predict({"z": x}, "half", 123)),
}))
"""
    )
    assert answers["predict"] == [2.5, 3.0]
    signatures = answers["metadata"]["metadata"]["signature_def"]["signature_def"]
    assert signatures["serving_default"]["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert answers["status"] == {
        "123": {"state": "AVAILABLE", "error_code": 0, "error_message": ""}
    }
    assert_error(
        answers["no model"],
        "ModelNotFoundError",
        "Servable not found for request: Specific(nope, 1)",
    )
    assert_error(
        answers["no version"], "ModelNotFoundError", "Could not find version 9 of model half"
    )
    assert_error(
        answers["no input"], "InvalidInputError", "Missing named input: x in 'inputs' object."
    )


def test_recommendations_over_grpc_and_rest(run: Run) -> None:
    answers = run(
        """
inputs = {
    "user_id": np.array([b"ann"]),
    "exclude_item_ids": np.array([[b"coat", b"sock"]]),
    "objective_weights": np.array([[1.0, 2.0]], np.float32),
    "history_item_ids": np.array([[b"shoes", b"hat"]]),
    "history_levels": np.array([[1, 2]], np.int64),
}
def lists(answer):
    ids = np.asarray(answer["item_ids"])[0].tolist()
    texts = [i.decode() if isinstance(i, bytes) else i for i in ids]
    return texts, np.asarray(answer["scores"])[0].tolist()
print(json.dumps({
    "grpc": lists(client.predict(inputs, "recommender", 4)),
    "by id alone": lists(client.predict({"user_id": [b"ann"]}, "recommender", 4)),
    "rest": lists(rest.predict(inputs, "recommender", 4)),
}))
"""
    )
    assert answers["grpc"] == [["ann", "shoes", "coat", ""], [3.0, 3.0, 0.5, 0.0]]
    assert answers["rest"] == answers["grpc"]
    assert answers["by id alone"] == [["ann", "no history", "none", ""], [0.75, 0.0, 0.5, 0.0]]
