"""Configuration by file and by HandleReloadConfigRequest: checks 53 to 62."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from tensorflow_serving.apis import model_management_pb2
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from serving import flags
from serving.config import All, Latest, ModelConfig, Specific
from serving.config_files import to_text
from serving.options import ServerOptions
from serving.server import ModelServer

ROOT = Path(__file__).parents[3]
AVAILABLE, END = 30, 50
INVALID = grpc.StatusCode.INVALID_ARGUMENT
CONFIG_POLL_SECONDS = 0.1
SETTLE_SECONDS = 0.5  # five polls: what has not happened by then is taken as not happening


@pytest.fixture
def bases(
    half_plus_two: Path, half_plus_three: Path, publish: Any, tmp_path: Path
) -> dict[str, str]:
    """Base paths: `two` with versions 1 and 2, `three` with version 1."""
    publish(half_plus_two, tmp_path / "two", 1)
    publish(half_plus_two, tmp_path / "two", 2)
    publish(half_plus_three, tmp_path / "three", 1)
    return {name: str(tmp_path / name) for name in ("two", "three")}


@pytest.fixture
def start(start_server: Any, connect: Any) -> Callable[..., Any]:
    """start(models, **options): a server and a caller of it."""

    def start(models: Any, **options: Any) -> Any:
        return connect(start_server(models, **options).port)

    return start


@pytest.fixture
def start_with_flags(connect: Any) -> Any:
    """start_with_flags(*flags): a server as the command line starts it, and a caller of it."""
    servers: list[ModelServer] = []

    def start(*arguments: str) -> Any:
        common = ("--host=127.0.0.1", "--port=0", "--file_system_poll_wait_seconds=0.1")
        server = ModelServer(flags.parse([*common, *arguments]))
        servers.append(server)
        server.start()
        return connect(server.port)

    yield start
    for server in servers:
        server.stop()


def entry(name: str, base: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "base_path": base, "model_platform": "tensorflow"} | fields


def config(*entries: dict[str, Any]) -> ModelServerConfig:
    proto = ModelServerConfig()
    proto.model_config_list.SetInParent()
    for fields in entries:
        proto.model_config_list.config.add(**fields)
    return proto


def reload(caller: Any, *entries: dict[str, Any], timeout: float = 10.0) -> Any:
    request = model_management_pb2.ReloadConfigRequest(config=config(*entries))
    return caller.models.HandleReloadConfigRequest(request, timeout=timeout)


def answer(caller: Any, model: str, **kwargs: Any) -> tuple[float, int]:
    response = caller.predict(model, {"x": [2.0]}, **kwargs)
    return response.outputs["y"].float_val[0], response.model_spec.version.value


def not_found(caller: Any, model: str, **kwargs: Any) -> str:
    code, details = caller.predict_error(model, {"x": [2.0]}, **kwargs)
    assert code is grpc.StatusCode.NOT_FOUND
    return details


# --- the file -----------------------------------------------------------------------------------


def test_check_53_config_file_with_two_models(
    start_with_flags: Any, bases: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "models.config"
    file.write_text(
        f"""
        model_config_list {{
          config {{ name: "a" base_path: "{bases["two"]}" model_platform: "tensorflow"
                    model_version_policy {{ specific {{ versions: 1 }} }} }}
          config {{ name: "b" base_path: "{bases["three"]}" model_platform: "tensorflow" }}
        }}
        """
    )
    caller = start_with_flags(f"--model_config_file={file}")
    assert answer(caller, "a") == (3.0, 1)
    assert answer(caller, "b") == (4.0, 1)
    assert caller.states("a") == {1: AVAILABLE}


@pytest.mark.slow
def test_check_54_broken_config_text_ends_the_process(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text("improper model config file")
    done = subprocess.run(
        [sys.executable, "-m", "serving", "--port=0", f"--model_config_file={file}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig" in done.stderr
    assert f"Invalid protobuf file: '{file}'" in done.stderr
    assert "Traceback" not in done.stderr


def polled(file: Path, seconds: float) -> tuple[str, ...]:
    return (f"--model_config_file={file}", f"--model_config_file_poll_wait_seconds={seconds}")


def test_check_55_rewritten_config_file_switches_models(
    start_with_flags: Any, wait_for: Any, bases: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "models.config"
    file.write_text(to_text({"a": ModelConfig(bases["two"])}))
    caller = start_with_flags(*polled(file, CONFIG_POLL_SECONDS))
    assert answer(caller, "a") == (3.0, 2)
    file.write_text(to_text({"b": ModelConfig(bases["three"])}))
    wait_for(lambda: "b" in _known(caller, "b"), "b is served")
    assert answer(caller, "b") == (4.0, 1)
    assert not_found(caller, "a") == "Servable not found for request: Latest(a)"


def _known(caller: Any, model: str) -> dict[str, int]:
    try:
        caller.predict(model, {"x": [2.0]})
    except grpc.RpcError:
        return {}
    return {model: AVAILABLE}


def test_check_55_period_zero_reads_the_config_file_once(
    start_with_flags: Any, bases: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "models.config"
    file.write_text(to_text({"a": ModelConfig(bases["two"])}))
    caller = start_with_flags(*polled(file, 0))
    file.write_text(to_text({"b": ModelConfig(bases["three"])}))
    time.sleep(SETTLE_SECONDS)
    assert answer(caller, "a") == (3.0, 2)
    not_found(caller, "b")


@pytest.mark.parametrize("text", ["improper", "", None], ids=["broken", "emptied", "deleted"])
def test_check_55_faulty_file_changes_nothing_and_a_mended_one_does(
    start_with_flags: Any,
    wait_for: Any,
    bases: dict[str, str],
    tmp_path: Path,
    text: str | None,
) -> None:
    file = tmp_path / "models.config"
    file.write_text(to_text({"a": ModelConfig(bases["two"])}))
    caller = start_with_flags(*polled(file, CONFIG_POLL_SECONDS))
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    time.sleep(SETTLE_SECONDS)
    assert answer(caller, "a") == (3.0, 2)
    file.write_text(to_text({"a": ModelConfig(bases["two"], Specific((1,)))}))
    wait_for(lambda: caller.states("a") == {2: END, 1: AVAILABLE}, "the mended file is obeyed")


def test_check_55_wrong_path_in_the_file_can_be_mended(
    start_with_flags: Any, wait_for: Any, bases: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "models.config"
    models = {"a": ModelConfig(bases["two"])}
    file.write_text(to_text(models))
    caller = start_with_flags(*polled(file, CONFIG_POLL_SECONDS))
    file.write_text(to_text(models | {"b": ModelConfig("/no/such/path")}))
    time.sleep(SETTLE_SECONDS)
    assert answer(caller, "a") == (3.0, 2)
    file.write_text(to_text(models | {"b": ModelConfig(bases["three"])}))
    wait_for(lambda: _known(caller, "b"), "b is served from the right path")


def test_check_55_rollback_by_the_file_fails_no_call(
    start_with_flags: Any, wait_for: Any, bases: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "models.config"
    file.write_text(to_text({"a": ModelConfig(bases["two"])}))
    caller = start_with_flags(*polled(file, CONFIG_POLL_SECONDS))
    stop = threading.Event()

    def loop() -> list[int]:
        seen = []
        while not stop.is_set():
            seen.append(answer(caller, "a")[1])
        return seen

    with ThreadPoolExecutor(1) as pool:
        calls = pool.submit(loop)
        try:
            for policy, served in ((Specific((1,)), {2: END, 1: AVAILABLE}),) * 2 + (
                (Latest(), {2: AVAILABLE, 1: END}),
            ):
                file.write_text(to_text({"a": ModelConfig(bases["two"], policy)}))
                wait_for(lambda served=served: caller.states("a") == served, str(policy))
        finally:
            stop.set()
        seen = calls.result(timeout=10)
    assert seen[0] == seen[-1] == 2
    assert 1 in seen


# --- HandleReloadConfigRequest ------------------------------------------------------------------


def test_check_56_reload_serves_new_and_drops_missing_models(
    start: Any, bases: dict[str, str]
) -> None:
    caller = start({"a": bases["two"]})
    response = reload(caller, entry("b", bases["three"]))
    assert response.status.error_code == 0
    # At once, without waiting for anything.
    assert answer(caller, "b") == (4.0, 1)
    assert not_found(caller, "a") == "Servable not found for request: Latest(a)"
    assert not_found(caller, "a", version=2) == "Servable not found for request: Specific(a, 2)"


def test_check_56_versions_of_a_dropped_model_are_reported_as_ended(
    start: Any, wait_for: Any, bases: dict[str, str]
) -> None:
    caller = start({"a": ModelConfig(bases["two"], All())})
    reload(caller)
    wait_for(lambda: caller.states("a") == {2: END, 1: END}, "unloaded")


def test_check_56_reload_waits_for_the_new_model(
    start: Any, publish: Any, half_plus_three: Path, bases: dict[str, str], tmp_path: Path
) -> None:
    caller = start({"a": bases["two"]})
    late = tmp_path / "late"
    late.mkdir()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(reload, caller, entry("b", str(late)), timeout=30.0)
        time.sleep(SETTLE_SECONDS)
        assert not call.done()
        publish(half_plus_three, late, 1)
        call.result(timeout=10)
    assert answer(caller, "b") == (4.0, 1)


def test_check_56_later_reload_releases_one_that_waits_for_ever(
    start: Any, error_of: Any, bases: dict[str, str]
) -> None:
    caller = start({"a": bases["two"]})
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            error_of, lambda: reload(caller, entry("b", "/no/such/path"), timeout=30.0)
        )
        time.sleep(SETTLE_SECONDS)
        assert not waiting.done()
        reload(caller, entry("b", bases["three"]))
        code, details = waiting.result(timeout=10)
    assert (code, "b" in details) == (grpc.StatusCode.ABORTED, True)
    assert answer(caller, "b") == (4.0, 1)


def test_check_56_too_many_reloads_are_refused_and_hold_nobody_up(
    bases: dict[str, str], connect: Any, error_of: Any
) -> None:
    gate = threading.Event()

    def wait(_: ModelServerConfig) -> None:  # as a worker does for all the others
        assert gate.wait(20.0)

    options = ServerOptions(
        models={"a": bases["two"]}, host="127.0.0.1", port=0, rest_port=0, metrics_path="/metrics"
    )
    with (
        ThreadPoolExecutor(4) as pool,
        ModelServer(options, reload=wait) as server,
    ):
        caller = connect(server.port)
        # Clients that have left do not end what they began.
        for _ in range(2):
            code, _ = error_of(lambda: reload(caller, timeout=0.1))
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        waiting = [pool.submit(reload, caller, timeout=20.0) for _ in range(2)]
        time.sleep(SETTLE_SECONDS)
        for _ in range(4):
            code, details = error_of(lambda: reload(caller, timeout=5.0))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert details.startswith("4 configurations are being loaded already")
        with urllib.request.urlopen(
            f"http://127.0.0.1:{server.rest_port}/metrics", timeout=5.0
        ) as page:
            assert page.status == 200
        gate.set()
        for call in waiting:
            call.result(timeout=10)
        reload(caller)  # there is room again


def test_check_56_model_that_cannot_be_loaded_fails_the_reload(
    start: Any, error_of: Any, bases: dict[str, str], tmp_path: Path
) -> None:
    caller = start({"a": bases["two"]})
    broken = tmp_path / "broken" / "1"
    broken.mkdir(parents=True)
    (broken / "saved_model.pb").write_bytes(b"\xff")
    entries = (entry("a", bases["two"]), entry("b", str(broken.parent)))
    code, details = error_of(lambda: reload(caller, *entries))
    assert code is grpc.StatusCode.UNKNOWN
    assert details.startswith("1 servable(s) did not become available: {{name: b version: 1}")
    assert answer(caller, "a") == (3.0, 2)


def test_check_57_dropped_model_can_come_back(
    start: Any, wait_for: Any, bases: dict[str, str]
) -> None:
    caller = start({"a": bases["two"]})
    reload(caller)
    not_found(caller, "a")
    reload(caller, entry("a", bases["two"]))
    assert answer(caller, "a") == (3.0, 2)
    # Somewhere else, with the old version perhaps not yet gone.
    reload(caller)
    reload(caller, entry("a", bases["three"]))
    assert answer(caller, "a") == (4.0, 1)


def test_check_57_new_base_path_takes_effect(
    start: Any, wait_for: Any, bases: dict[str, str]
) -> None:
    caller = start({"a": bases["two"]})
    reload(caller, entry("a", bases["three"]))
    wait_for(lambda: answer(caller, "a") == (4.0, 1), "the other path's version is served")
    assert caller.states("a") == {2: END, 1: AVAILABLE}


def test_check_57_new_base_path_with_the_same_version_number(
    start: Any,
    wait_for: Any,
    publish: Any,
    half_plus_two: Path,
    bases: dict[str, str],
    tmp_path: Path,
) -> None:
    publish(half_plus_two, tmp_path / "other", 1)
    caller = start({"a": tmp_path / "other"})
    assert answer(caller, "a") == (3.0, 1)
    reload(caller, entry("a", bases["three"]))
    wait_for(lambda: answer(caller, "a") == (4.0, 1), "loaded from the new path")
    assert caller.states("a") == {1: AVAILABLE}


def test_check_57_new_base_path_that_cannot_be_loaded_leaves_the_old_version(
    start: Any, bases: dict[str, str], tmp_path: Path
) -> None:
    caller = start({"a": bases["two"]})
    broken = tmp_path / "broken" / "2"
    broken.mkdir(parents=True)
    (broken / "saved_model.pb").write_bytes(b"\xff")
    reload(caller, entry("a", str(broken.parent)))
    time.sleep(SETTLE_SECONDS)
    assert answer(caller, "a") == (3.0, 2)


def test_check_58_duplicate_names(start: Any, error_of: Any, bases: dict[str, str]) -> None:
    caller = start({"a": bases["two"]})
    twice = (entry("m", bases["two"]), entry("m", bases["three"]))
    assert error_of(lambda: reload(caller, *twice)) == (
        INVALID,
        "Illegal to list model m multiple times in config list",
    )
    assert answer(caller, "a") == (3.0, 2)


def test_check_59_relative_base_path(start: Any, error_of: Any, bases: dict[str, str]) -> None:
    caller = start({"a": bases["two"]})
    for path in ("rel", "", "./rel"):
        assert error_of(lambda p=path: reload(caller, entry("b", bases["two"]), entry("m", p))) == (
            INVALID,
            f"Expected model m to have an absolute path or URI; got base_path()={path}",
        )
    assert answer(caller, "a") == (3.0, 2)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": "m", "model_platform": "pytorch"}, "Model m requests unsupported platform"),
        (
            {"name": "m", "model_platform": ""},
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            "ModelServerConfig::model_platform, model name is m",
        ),
        ({"name": "a", "model_platform": "other"}, "Illegal to change a model's platform. For"),
        ({"name": "m", "model_type": 1}, "Illegal setting both ModelServerConfig::model_type"),
        (
            {"name": "m", "model_platform": "", "model_type": 2},
            "Model m requests unsupported platform other",
        ),
    ],
    ids=["unknown", "missing", "changed", "both", "other type"],
)
def test_check_60_platforms(
    start: Any, error_of: Any, bases: dict[str, str], fields: dict[str, Any], text: str
) -> None:
    caller = start({"a": bases["two"]})
    code, details = error_of(lambda: reload(caller, entry("m", bases["three"]) | fields))
    assert code is INVALID
    assert details.startswith(text)
    assert answer(caller, "a") == (3.0, 2)


def test_check_60_deprecated_model_type(start: Any, bases: dict[str, str]) -> None:
    caller = start({"a": bases["two"]})
    reload(caller, entry("m", bases["three"]) | {"model_platform": "", "model_type": 1})
    assert answer(caller, "m") == (4.0, 1)


def labelled(bases: dict[str, str], policy: str = "all", **labels: int) -> dict[str, Any]:
    return entry("a", bases["two"], version_labels=labels, model_version_policy={policy: {}})


UNAVAILABLE_LABEL = (
    grpc.StatusCode.FAILED_PRECONDITION,
    "Request to assign label to version 9 of model a, which is not currently available for "
    "inference",
)


def test_check_61_labels_of_available_versions_can_be_assigned_and_moved(
    start: Any, wait_for: Any, bases: dict[str, str]
) -> None:
    caller = start({"a": ModelConfig(bases["two"], All())})
    wait_for(lambda: caller.states("a") == {2: AVAILABLE, 1: AVAILABLE}, "both are there")
    reload(caller, labelled(bases, stable=1, canary=2))
    assert answer(caller, "a", label="stable") == (3.0, 1)
    assert answer(caller, "a", label="canary") == (3.0, 2)
    reload(caller, labelled(bases, stable=2))
    assert answer(caller, "a", label="stable") == (3.0, 2)
    assert caller.predict_error("a", {"x": [2.0]}, label="canary") == (
        INVALID,
        "Unrecognized servable version label: canary",
    )


def test_check_61_label_of_an_unavailable_version_is_refused(
    start: Any, error_of: Any, wait_for: Any, bases: dict[str, str]
) -> None:
    caller = start({"a": ModelConfig(bases["two"], All())})
    wait_for(lambda: caller.states("a") == {2: AVAILABLE, 1: AVAILABLE}, "both are there")
    reload(caller, labelled(bases, stable=1))
    for labels in ({"stable": 9}, {"stable": 1, "canary": 9}):
        assert (
            error_of(lambda new=labels: reload(caller, labelled(bases, **new))) == UNAVAILABLE_LABEL
        )
    # A model that is only about to be loaded has no version to name.
    code, details = error_of(
        lambda: reload(caller, entry("b", bases["three"], version_labels={"stable": 1}))
    )
    assert (code, "of model b" in details) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    # Nothing was changed by any of them.
    assert answer(caller, "a", label="stable") == (3.0, 1)
    not_found(caller, "b")


def test_check_61_allow_flag_lets_new_labels_pass_but_not_moved_ones(
    start: Any,
    error_of: Any,
    wait_for: Any,
    publish: Any,
    half_plus_three: Path,
    bases: dict[str, str],
) -> None:
    caller = start({"a": ModelConfig(bases["two"], All())}, allow_labels_for_unavailable=True)
    wait_for(lambda: caller.states("a") == {2: AVAILABLE, 1: AVAILABLE}, "both are there")
    reload(caller, labelled(bases, stable=1, next=9))
    assert not_found(caller, "a", label="next") == "Servable not found for request: Specific(a, 9)"
    # It may stay, but the other label cannot be moved there.
    assert error_of(lambda: reload(caller, labelled(bases, stable=9, next=9))) == UNAVAILABLE_LABEL
    publish(half_plus_three, Path(bases["two"]), 9)
    wait_for(lambda: caller.states("a").get(9) == AVAILABLE, "the labelled version")
    assert answer(caller, "a", label="next") == (4.0, 9)
    reload(caller, labelled(bases, stable=9, next=9))
    assert answer(caller, "a", label="stable") == (4.0, 9)


def test_check_62_only_model_config_lists(start: Any, error_of: Any, bases: dict[str, str]) -> None:
    caller = start({"a": bases["two"]})
    for wanted in (ModelServerConfig(), ModelServerConfig(custom_model_config={})):
        request = model_management_pb2.ReloadConfigRequest(config=wanted)
        assert error_of(
            lambda r=request: caller.models.HandleReloadConfigRequest(r, timeout=10)
        ) == (
            INVALID,
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
            "ModelConfigList is currently supported",
        )
    assert answer(caller, "a") == (3.0, 2)


def test_polled_file_replaces_the_given_models_before_the_start(
    start: Any, bases: dict[str, str], tmp_path: Path
) -> None:
    """A worker process that replaces a dead one must not serve what was configured long ago."""
    file = tmp_path / "models.config"
    file.write_text(to_text({"a": ModelConfig(bases["two"], Specific((1,)))}))
    caller = start(
        {"a": bases["two"], "gone": "/no/such/path"},
        config_file=file,
        config_poll_seconds=CONFIG_POLL_SECONDS,
    )
    assert caller.states("a") == {1: AVAILABLE}
