"""Versions, labels, status and metadata: checks 31 to 41 of the conformance list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from serving.config import All, ModelConfig
from serving.server import ModelServer, ServerOptions

AVAILABLE, END = 30, 50
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND


@pytest.fixture(scope="module")
def caller(
    half_plus_two: Path,
    half_plus_three: Path,
    zoo: Path,
    publish: Any,
    connect: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    root = tmp_path_factory.mktemp("status")
    publish(half_plus_two, root / "pair", 1)
    publish(half_plus_three, root / "pair", 2)
    publish(half_plus_two, root / "single", 123)
    publish(zoo, root / "zoo", 7)
    models = {
        "pair": ModelConfig(str(root / "pair"), All(), {"stable": 1, "canary": 2, "gone": 9}),
        "single": root / "single",
        "zoo": root / "zoo",
    }
    options = ServerOptions(models=models, host="127.0.0.1", port=0, max_load_retries=0)
    with ModelServer(options) as server:
        yield connect(server.port)


def y_and_version(response: Any) -> tuple[float, int]:
    return response.outputs["y"].float_val[0], response.model_spec.version.value


def test_check_31_latest_and_explicit_version(caller: Any) -> None:
    x = {"x": [2.0]}
    assert y_and_version(caller.predict("pair", x)) == (4.0, 2)
    assert y_and_version(caller.predict("pair", x, version=1)) == (3.0, 1)
    assert y_and_version(caller.predict("pair", x, version=2)) == (4.0, 2)


def test_check_32_version_labels(caller: Any) -> None:
    x = {"x": [2.0]}
    response = caller.predict("pair", x, label="stable")
    assert y_and_version(response) == (3.0, 1)
    assert response.model_spec.version_label == ""
    assert y_and_version(caller.predict("pair", x, label="canary")) == (4.0, 2)
    assert caller.predict_error("pair", x, label="L") == (
        INVALID,
        "Unrecognized servable version label: L",
    )


def test_check_32_label_of_a_missing_version(caller: Any) -> None:
    assert caller.predict_error("pair", {"x": [2.0]}, label="gone") == (
        NOT_FOUND,
        "Servable not found for request: Specific(pair, 9)",
    )


def test_check_33_status_of_the_only_version(caller: Any) -> None:
    (entry,) = caller.status("single")
    assert (entry.version, entry.state) == (123, AVAILABLE)
    assert (entry.status.error_code, entry.status.error_message) == (0, "")


def test_check_34_status_of_one_version(caller: Any) -> None:
    assert [entry.version for entry in caller.status("pair")] == [2, 1]
    (entry,) = caller.status("pair", version=1)
    assert (entry.version, entry.state) == (1, AVAILABLE)


def test_check_35_status_of_unknown_model_or_version(caller: Any, error_of: Any) -> None:
    assert error_of(lambda: caller.status("m")) == (
        NOT_FOUND,
        "Could not find any versions of model m",
    )
    assert error_of(lambda: caller.status("pair", version=9)) == (
        NOT_FOUND,
        "Could not find version 9 of model pair",
    )


def test_check_36_status_without_model_spec(caller: Any, error_of: Any) -> None:
    request = get_model_status_pb2.GetModelStatusRequest()
    assert error_of(lambda: caller.models.GetModelStatus(request, timeout=5)) == (
        INVALID,
        "Missing ModelSpec",
    )


def test_check_37_status_after_a_swap(
    half_plus_two: Path,
    half_plus_three: Path,
    publish: Any,
    start_server: Any,
    connect: Any,
    wait_for: Any,
    tmp_path: Path,
) -> None:
    publish(half_plus_two, tmp_path, 1)
    caller = connect(start_server({"m": tmp_path}).port)
    publish(half_plus_three, tmp_path, 2)
    wait_for(lambda: caller.states("m") == {2: AVAILABLE, 1: END}, "swapped")
    entries = caller.status("m")
    assert [entry.version for entry in entries] == [2, 1]
    assert [entry.status.error_code for entry in entries] == [0, 0]


def test_check_38_status_of_a_version_that_does_not_load(
    half_plus_two: Path,
    publish: Any,
    start_server: Any,
    connect: Any,
    wait_for: Any,
    tmp_path: Path,
) -> None:
    publish(half_plus_two, tmp_path, 1)
    caller = connect(start_server({"m": tmp_path}).port)
    broken = tmp_path / "2"
    broken.mkdir()
    (broken / "saved_model.pb").write_bytes(b"\xffnot a protocol buffer")
    wait_for(lambda: caller.states("m") == {2: END, 1: AVAILABLE}, "given up")
    failed, serving = caller.status("m")
    assert failed.status.error_code != 0
    assert "saved_model.pb" in failed.status.error_message
    assert serving.status.error_code == 0


def test_check_39_metadata_holds_all_signatures(caller: Any) -> None:
    response = caller.metadata("zoo", "signature_def")
    assert (response.model_spec.name, response.model_spec.version.value) == ("zoo", 7)
    assert response.model_spec.signature_name == ""
    assert list(response.metadata) == ["signature_def"]
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    names = set(signatures.signature_def)
    assert {"serving_default", "triple", "text", "__saved_model_init_op"} <= names
    inputs = signatures.signature_def["serving_default"].inputs
    assert inputs["x"].name == "serving_default_x:0"


def test_check_40_metadata_field(caller: Any, error_of: Any) -> None:
    assert error_of(lambda: caller.metadata("single")) == (
        INVALID,
        "GetModelMetadataRequest must specify at least one metadata_field",
    )
    assert error_of(lambda: caller.metadata("single", "foo")) == (
        INVALID,
        "Metadata field foo is not supported",
    )


def test_check_40_metadata_without_model_spec(caller: Any, error_of: Any) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    assert error_of(lambda: caller.prediction.GetModelMetadata(request, timeout=5)) == (
        INVALID,
        "Missing ModelSpec",
    )


def test_check_41_metadata_of_unknown_model(caller: Any, error_of: Any) -> None:
    assert error_of(lambda: caller.metadata("m", "signature_def")) == (
        NOT_FOUND,
        "Servable not found for request: Latest(m)",
    )
