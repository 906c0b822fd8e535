"""Loading, hot swap and rollback: checks 42 to 51 and 63 of the conformance list."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from tensorflow.core.framework import tensor_pb2, types_pb2

from serving.config import All, Latest, ModelConfig, Specific
from serving.server import ModelServer, ServerOptions
from serving.versions import StartupError

LOADING, AVAILABLE, UNLOADING, END = 20, 30, 40, 50

# Long enough for five polls: what has not happened by then is taken as not happening.
SETTLE_SECONDS = 0.5


@pytest.fixture
def settle() -> Callable[[], bool]:
    return lambda: threading.Event().wait(SETTLE_SECONDS)


@pytest.fixture
def serve(
    half_plus_two: Path, publish: Any, start_server: Any, connect: Any, tmp_path: Path
) -> Callable[..., Any]:
    """serve(*versions, **options): model m on tmp_path/m with these versions, and a caller."""

    def start(*versions: int | str, policy: Any = None, **options: Any) -> Any:
        base = tmp_path / "m"
        for version in versions:
            publish(half_plus_two, base, version)
        model = ModelConfig(str(base), policy) if policy else base
        return connect(start_server({"m": model}, **options).port)

    return start


def y_and_version(response: Any) -> tuple[float, int]:
    return response.outputs["y"].float_val[0], response.model_spec.version.value


def answer(caller: Any, **kwargs: Any) -> tuple[float, int]:
    return y_and_version(caller.predict("m", {"x": [2.0]}, **kwargs))


def loop_until(stop: threading.Event, caller: Any) -> list[tuple[float, int]]:
    """Answers up to the stop, and of one call that began after it: it sees what came last."""
    answers = []
    while not stop.is_set():
        answers.append(answer(caller))
    return [*answers, answer(caller)]


def test_check_42_hot_swap_and_rollback_fail_no_call(
    serve: Any, half_plus_three: Path, publish: Any, wait_for: Any, tmp_path: Path
) -> None:
    caller = serve(1)
    stop = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        # A failed call raises out of its loop and fails the test at result().
        loops = [pool.submit(loop_until, stop, caller) for _ in range(3)]
        try:
            publish(half_plus_three, tmp_path / "m", 2)
            wait_for(lambda: caller.states("m") == {2: AVAILABLE, 1: END}, "swapped")
            shutil.rmtree(tmp_path / "m" / "2")
            wait_for(lambda: caller.states("m") == {2: END, 1: AVAILABLE}, "rolled back")
        finally:
            stop.set()
        answers = [loop.result(timeout=10) for loop in loops]
    for seen in answers:
        # Every answer is whole: the value belongs to the version it names.
        assert set(seen) <= {(3.0, 1), (4.0, 2)}
        # Each client goes 1 -> 2 -> 1 and never flips in between.
        versions = [version for _, version in seen]
        changes = [b for a, b in itertools.pairwise(versions) if a != b]
        assert changes == [2, 1]


def test_check_43_calls_in_flight_finish_on_the_old_version(
    zoo: Path,
    publish: Any,
    start_server: Any,
    connect: Any,
    wait_for: Any,
    settle: Any,
    tmp_path: Path,
) -> None:
    publish(zoo, tmp_path, 1)
    server: ModelServer = start_server({"m": tmp_path})
    caller = connect(server.port)
    steps = tensor_pb2.TensorProto(dtype=types_pb2.DT_INT64, int64_val=[200_000])
    request = caller.request("m", {"n": steps}, signature="loop")
    with server.versions.lease("m") as old:
        running = caller.prediction.Predict.future(request, timeout=60)
        wait_for(lambda: old.calls_in_flight > 1, "the long call runs")
        publish(zoo, tmp_path, 2)
        wait_for(lambda: caller.states("m") == {2: AVAILABLE, 1: UNLOADING}, "swapped")
        # New calls go to the new version while the old one still answers.
        assert caller.predict("m", {"x": [2.0]}).model_spec.version.value == 2
        response = running.result(timeout=60)
        assert response.outputs["n"].int64_val[0] == 200_000
        assert response.model_spec.version.value == 1
        settle()
        assert caller.states("m")[1] == UNLOADING
    wait_for(lambda: caller.states("m")[1] == END, "unloaded after its last call")


def test_check_44_corrupt_new_version_leaves_the_old_one(
    serve: Any, half_plus_three: Path, publish: Any, wait_for: Any, tmp_path: Path
) -> None:
    caller = serve(1, max_load_retries=2, load_retry_seconds=0.05)
    broken = publish(half_plus_three, tmp_path / "staging", 2)
    for shard in (broken / "variables").glob("*.data-*"):
        shard.unlink()
    broken.rename(tmp_path / "m" / "2")
    wait_for(lambda: caller.states("m") == {2: END, 1: AVAILABLE}, "given up")
    assert answer(caller) == (3.0, 1)
    assert caller.predict_error("m", {"x": [1.0]}, version=2)[0] is grpc.StatusCode.NOT_FOUND
    # Only once it has gone and come back is it tried again.
    shutil.rmtree(tmp_path / "m" / "2")
    publish(half_plus_three, tmp_path / "m", 3)
    wait_for(lambda: answer(caller) == (4.0, 3), "a good version heals it")


def test_check_44_version_that_failed_is_tried_again_when_it_comes_back(
    serve: Any, half_plus_three: Path, publish: Any, wait_for: Any, settle: Any, tmp_path: Path
) -> None:
    caller = serve(1)
    broken = tmp_path / "m" / "2"
    broken.mkdir()
    (broken / "saved_model.pb").write_bytes(b"\xff")
    wait_for(lambda: caller.states("m") == {2: END, 1: AVAILABLE}, "given up")
    shutil.rmtree(broken)
    settle()
    publish(half_plus_three, tmp_path / "m", 2)
    wait_for(lambda: answer(caller) == (4.0, 2), "loaded")
    assert caller.status("m", 2)[0].status.error_code == 0


def test_check_45_only_numbers_are_versions(
    serve: Any, half_plus_two: Path, publish: Any, settle: Any, tmp_path: Path
) -> None:
    for name in ("tmp", ".124", "124.temp", "_x", "-5", "1e3", "99999999999999999999"):
        publish(half_plus_two, tmp_path / "m", name)
    (tmp_path / "m" / "200").write_text("a file")
    caller = serve("00000123")
    settle()
    assert caller.states("m") == {123: AVAILABLE}
    assert answer(caller) == (3.0, 123)
    assert answer(caller, version=123) == (3.0, 123)


def test_check_46_directory_is_served_once_it_is_complete(
    serve: Any, half_plus_three: Path, wait_for: Any, settle: Any, tmp_path: Path
) -> None:
    caller = serve(1)
    slow = tmp_path / "m" / "2"
    shutil.copytree(half_plus_three, slow, ignore=shutil.ignore_patterns("saved_model.pb"))
    settle()
    assert caller.states("m") == {1: AVAILABLE}
    shutil.copy(half_plus_three / "saved_model.pb", slow / ".partial")
    (slow / ".partial").rename(slow / "saved_model.pb")
    wait_for(lambda: answer(caller) == (4.0, 2), "served")


def test_check_46_incomplete_directory_alone_unloads_nothing(
    serve: Any, settle: Any, tmp_path: Path
) -> None:
    caller = serve(1)
    (tmp_path / "m" / "2").mkdir()
    shutil.rmtree(tmp_path / "m" / "1")
    settle()
    assert answer(caller) == (3.0, 1)


def test_check_47_deleted_newest_version_falls_back(
    serve: Any, half_plus_three: Path, publish: Any, wait_for: Any, tmp_path: Path
) -> None:
    publish(half_plus_three, tmp_path / "m", 5)
    caller = serve(1, 2)
    assert answer(caller) == (4.0, 5)
    shutil.rmtree(tmp_path / "m" / "5")
    wait_for(lambda: caller.states("m") == {5: END, 2: AVAILABLE}, "fallen back")
    assert answer(caller) == (3.0, 2)


def test_check_48_vanished_base_path_unloads_nothing(
    serve: Any, half_plus_three: Path, publish: Any, wait_for: Any, settle: Any, tmp_path: Path
) -> None:
    caller = serve(1)
    (tmp_path / "m").rename(tmp_path / "away")
    settle()
    assert answer(caller) == (3.0, 1)
    (tmp_path / "away").rename(tmp_path / "m")
    publish(half_plus_three, tmp_path / "m", 2)
    wait_for(lambda: answer(caller) == (4.0, 2), "watched again")


def test_check_48_empty_base_path_unloads_everything(
    serve: Any, half_plus_two: Path, publish: Any, wait_for: Any, tmp_path: Path
) -> None:
    caller = serve(1)
    shutil.rmtree(tmp_path / "m" / "1")
    wait_for(lambda: caller.states("m") == {1: END}, "unloaded")
    assert caller.predict_error("m", {"x": [1.0]}) == (
        grpc.StatusCode.NOT_FOUND,
        "Servable not found for request: Latest(m)",
    )
    publish(half_plus_two, tmp_path / "m", 1)
    wait_for(lambda: caller.states("m") == {1: AVAILABLE}, "back")


def test_check_48_missing_base_path_stops_the_round_for_every_model(
    half_plus_two: Path,
    half_plus_three: Path,
    publish: Any,
    start_server: Any,
    connect: Any,
    wait_for: Any,
    settle: Any,
    tmp_path: Path,
) -> None:
    for name in ("m", "other"):
        publish(half_plus_two, tmp_path / name, 1)
    server = start_server({name: tmp_path / name for name in ("m", "other")})
    caller = connect(server.port)
    (tmp_path / "other").rename(tmp_path / "away")
    settle()
    publish(half_plus_three, tmp_path / "m", 2)
    settle()
    assert caller.states("m") == {1: AVAILABLE}
    (tmp_path / "away").rename(tmp_path / "other")
    wait_for(lambda: caller.states("m") == {2: AVAILABLE, 1: END}, "watched again")
    assert caller.states("other") == {1: AVAILABLE}


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        (Latest(0), {3: AVAILABLE}),
        (Latest(2), {3: AVAILABLE, 2: AVAILABLE}),
        (All(), {3: AVAILABLE, 2: AVAILABLE, 1: AVAILABLE}),
        (Specific((1, 3, 8)), {3: AVAILABLE, 1: AVAILABLE}),
    ],
    ids=str,
)
def test_check_49_policies(serve: Any, wait_for: Any, policy: Any, served: dict[int, int]) -> None:
    caller = serve(1, 2, 3, policy=policy)
    wait_for(lambda: caller.states("m") == served, f"exactly {served}")


def test_check_50_specific_without_versions_serves_nothing(serve: Any) -> None:
    caller = serve(1, policy=Specific(()))
    assert caller.predict_error("m", {"x": [1.0]})[0] is grpc.StatusCode.NOT_FOUND


def test_check_51_two_directories_with_one_number(serve: Any) -> None:
    caller = serve("1", "001")
    assert caller.states("m") == {1: AVAILABLE}
    assert answer(caller) == (3.0, 1)


def test_check_52_poll_period_zero_looks_once(
    serve: Any, half_plus_three: Path, publish: Any, settle: Any, tmp_path: Path
) -> None:
    caller = serve(1, poll_seconds=0.0)
    publish(half_plus_three, tmp_path / "m", 2)
    settle()
    assert answer(caller) == (3.0, 1)


def test_check_52_negative_poll_period_never_looks(
    half_plus_two: Path, publish: Any, settle: Any, tmp_path: Path
) -> None:
    publish(half_plus_two, tmp_path / "m", 1)
    options = ServerOptions(models={"m": tmp_path / "m"}, port=0, poll_seconds=-1.0)
    server = ModelServer(options)
    starter = threading.Thread(target=server.start)
    starter.start()
    try:
        settle()
        assert starter.is_alive()
        assert server.port == 0
    finally:
        server.stop()
        starter.join(timeout=10)


def test_check_53_two_models(
    half_plus_two: Path,
    half_plus_three: Path,
    publish: Any,
    start_server: Any,
    connect: Any,
    tmp_path: Path,
) -> None:
    publish(half_plus_two, tmp_path / "two", 1)
    publish(half_plus_three, tmp_path / "three", 1)
    server = start_server({"two": tmp_path / "two", "three": tmp_path / "three"})
    caller = connect(server.port)
    assert y_and_version(caller.predict("two", {"x": [2.0]})) == (3.0, 1)
    assert y_and_version(caller.predict("three", {"x": [2.0]})) == (4.0, 1)


def test_check_63_port_opens_after_the_first_load(
    half_plus_two: Path, publish: Any, connect: Any, settle: Any, wait_for: Any, tmp_path: Path
) -> None:
    # No base path yet: the server waits for it.
    options = ServerOptions(
        models={"m": tmp_path / "m"}, host="127.0.0.1", port=0, poll_seconds=0.1
    )
    server = ModelServer(options)
    starter = threading.Thread(target=server.start)
    starter.start()
    try:
        settle()
        assert starter.is_alive()
        assert server.port == 0
        publish(half_plus_two, tmp_path / "m", 1)
        starter.join(timeout=10)
        assert answer(connect(server.port)) == (3.0, 1)
    finally:
        server.stop()
        starter.join(timeout=10)


def test_check_63_waiting_server_can_be_stopped(tmp_path: Path, wait_for: Any) -> None:
    server = ModelServer(ServerOptions(models={"m": tmp_path}, port=0))
    outcome: list[bool] = []
    starter = threading.Thread(target=lambda: outcome.append(server.start()))
    starter.start()
    server.stop()
    starter.join(timeout=10)
    assert outcome == [False]


def test_failed_initial_load_is_a_startup_error(start_server: Any, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"\xff")
    with pytest.raises(StartupError, match=r"1 servable\(s\) did not become available.*name: m"):
        start_server({"m": tmp_path})


def test_occupied_port_is_a_startup_error(serve: Any, start_server: Any, tmp_path: Path) -> None:
    serve(1)
    running = start_server({"m": tmp_path / "m"})
    with pytest.raises(StartupError, match="cannot listen on"):
        start_server({"m": tmp_path / "m"}, port=running.port)
