from __future__ import annotations

import json
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from tensorflow_serving.apis import get_model_status_pb2
from tfx.types import standard_artifacts
from tfx.types.channel import Channel

from components.pusher import spec
from components.pusher.availability import NotAvailableError, wait_until_available
from components.pusher.component import Pusher
from components.pusher.executor import Executor, is_blessed, refused
from components.pusher.push import PushError


def write_model(root: Path) -> Path:
    for flavour in ("scann", "stock"):
        (root / flavour / "assets.extra").mkdir(parents=True)
        (root / flavour / "saved_model.pb").write_bytes(b"")
        empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        manifest = {"model_id": "m1", "flavour": flavour, "files": {"saved_model.pb": empty}}
        (root / flavour / "assets.extra" / "manifest.json").write_text(json.dumps(manifest))
    return root


def artifact(kind, uri: Path, blessed: int | None = None):
    uri.mkdir(parents=True, exist_ok=True)
    made = kind()
    made.uri = str(uri)
    if blessed is not None:
        made.set_int_custom_property("blessed", blessed)
    return made


def run(tmp_path: Path, model: int = 1, infra: int = 1, **properties):
    if not (tmp_path / "model").exists():
        write_model(tmp_path / "model")
    pushed = artifact(standard_artifacts.PushedModel, tmp_path / "pushed")
    Executor().Do(
        {
            spec.MODEL_KEY: [artifact(standard_artifacts.Model, tmp_path / "model")],
            spec.MODEL_BLESSING_KEY: [
                artifact(standard_artifacts.ModelBlessing, tmp_path / "mb", model)
            ],
            spec.INFRA_BLESSING_KEY: [
                artifact(standard_artifacts.InfraBlessing, tmp_path / "ib", infra)
            ],
        },
        {spec.PUSHED_MODEL_KEY: [pushed]},
        {
            spec.SERVING_DIR_KEY: str(tmp_path / "served"),
            spec.MODEL_NAME_KEY: "rec",
            spec.KEEP_VERSIONS_KEY: 2,
            **properties,
        },
    )
    return pushed


def test_blessed_model_is_pushed_and_recorded(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        pushed = run(tmp_path)
        assert pushed.get_int_custom_property(spec.PUSHED_PROPERTY) == 1
        assert pushed.get_int_custom_property(spec.PUSHED_VERSION_PROPERTY) == version
    destination = tmp_path / "served" / "rec" / "3"
    assert pushed.get_string_custom_property(spec.PUSHED_DESTINATION_PROPERTY) == str(destination)
    assert pushed.get_string_custom_property(spec.MODEL_ID_PROPERTY) == "m1"
    assert {p.name for p in (tmp_path / "served" / "rec").iterdir()} == {"2", "3"}
    report = json.loads((tmp_path / "pushed" / spec.PUSH_FILE).read_text())
    assert report["pushed_version"] == 3


@pytest.mark.parametrize(
    ("model", "infra", "named"),
    [
        (0, 1, ["model_blessing"]),
        (1, 0, ["infra_blessing"]),
        (0, 0, ["model_blessing", "infra_blessing"]),
    ],
)
def test_not_blessed_is_a_result_with_a_reason(
    tmp_path: Path, model: int, infra: int, named: list[str]
) -> None:
    pushed = run(tmp_path, model, infra)
    assert pushed.get_int_custom_property(spec.PUSHED_PROPERTY) == 0
    reason = pushed.get_string_custom_property(spec.REASON_PROPERTY)
    assert [k for k in ("model_blessing", "infra_blessing") if k in reason] == named
    assert not pushed.has_custom_property(spec.PUSHED_VERSION_PROPERTY)
    assert not (tmp_path / "served").exists()


def test_reason_names_the_failed_checks(tmp_path: Path) -> None:
    blessing = artifact(standard_artifacts.ModelBlessing, tmp_path / "b", 0)
    assert refused(blessing, "BLESSED") == f"not blessed (see {tmp_path / 'b'})"
    blessing.set_string_custom_property("failed", "recall; ann_recall")
    assert refused(blessing, "BLESSED").startswith("recall; ann_recall (see ")


def test_property_decides_and_the_file_stands_in_for_it(tmp_path: Path) -> None:
    blessing = artifact(standard_artifacts.ModelBlessing, tmp_path / "b")
    assert not is_blessed(blessing, "BLESSED")
    (tmp_path / "b" / "BLESSED").touch()
    assert is_blessed(blessing, "BLESSED")
    blessing.set_int_custom_property("blessed", 0)
    assert not is_blessed(blessing, "BLESSED")


def test_remote_serving_dir_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PushError, match="not a local directory"):
        run(tmp_path, **{spec.SERVING_DIR_KEY: "s3://bucket/served"})


def test_component_declares_its_channels(tmp_path: Path) -> None:
    made = Pusher(
        model=Channel(type=standard_artifacts.Model),
        model_blessing=Channel(type=standard_artifacts.ModelBlessing),
        infra_blessing=Channel(type=standard_artifacts.InfraBlessing),
        serving_dir="served",
    )
    assert made.outputs[spec.PUSHED_MODEL_KEY].type is standard_artifacts.PushedModel
    assert made.exec_properties[spec.MODEL_NAME_KEY] == "recommender"
    assert made.exec_properties[spec.ADDRESS_KEY] is None
    with pytest.raises(ValueError, match="at least 1"):
        Pusher(
            model=Channel(type=standard_artifacts.Model),
            model_blessing=Channel(type=standard_artifacts.ModelBlessing),
            infra_blessing=Channel(type=standard_artifacts.InfraBlessing),
            serving_dir="served",
            keep_versions=0,
        )


class StatusServer:
    """A gRPC server that answers GetModelStatus from a script, one entry per call and model."""

    def __init__(self, script: dict[str, list[tuple[int, str, str]]]) -> None:
        self._script = script
        self._server = grpc.server(futures.ThreadPoolExecutor(1))
        handler = grpc.unary_unary_rpc_method_handler(
            self._answer,
            request_deserializer=get_model_status_pb2.GetModelStatusRequest.FromString,
            response_serializer=get_model_status_pb2.GetModelStatusResponse.SerializeToString,
        )
        self._server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(
                    "tensorflow.serving.ModelService", {"GetModelStatus": handler}
                )
            ]
        )
        self.address = f"localhost:{self._server.add_insecure_port('localhost:0')}"

    def _answer(self, request, context):
        script = self._script.get(request.model_spec.name)
        if script is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "Could not find any versions of model")
        version, state, error = script.pop(0) if len(script) > 1 else script[0]
        response = get_model_status_pb2.GetModelStatusResponse()
        entry = response.model_version_status.add(version=version, state=state)
        if error:
            entry.status.error_code = 3
            entry.status.error_message = error
        return response

    def __enter__(self) -> StatusServer:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()


def test_waits_through_loading_until_both_are_available() -> None:
    script = {
        "rec": [(1, "AVAILABLE", ""), (2, "LOADING", ""), (2, "AVAILABLE", "")],
        "rec_stock": [(2, "AVAILABLE", "")],
    }
    with StatusServer(script) as server:
        wait_until_available(server.address, ["rec", "rec_stock"], 2, timeout_seconds=10)
    assert len(script["rec"]) == 1


def test_a_flavour_the_server_does_not_serve_is_left_out() -> None:
    with StatusServer({"rec_stock": [(2, "AVAILABLE", "")]}) as server:
        wait_until_available(server.address, ["rec", "rec_stock"], 2, timeout_seconds=10)


def test_failed_load_raises_the_servers_error() -> None:
    with (
        StatusServer({"rec": [(2, "LOADING", ""), (2, "END", "Op type not registered")]}) as server,
        pytest.raises(NotAvailableError, match="Op type not registered"),
    ):
        wait_until_available(server.address, ["rec"], 2, timeout_seconds=10)


def test_timeout_tells_the_last_states() -> None:
    with (
        StatusServer({"rec": [(1, "AVAILABLE", "")]}) as server,
        pytest.raises(NotAvailableError, match="rec: the version is not seen yet"),
    ):
        wait_until_available(server.address, ["rec"], 2, timeout_seconds=0.3)


def test_no_server_is_an_error_in_time(tmp_path: Path) -> None:
    with pytest.raises(NotAvailableError, match="UNAVAILABLE"):
        run(tmp_path, address="localhost:1", poll_timeout_seconds=0.3)
    assert (tmp_path / "served" / "rec" / "1").is_dir()
