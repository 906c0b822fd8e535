"""Several worker processes behind one port, some of which come to harm."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from tensorflow_serving.apis.model_management_pb2 import ReloadConfigRequest

from serving.client import RecommenderClient, RecommenderError

pytestmark = pytest.mark.slow

CONNECTIONS = 12  # the kernel spreads them over the workers
METRICS = "prometheus_config { enable: true path: '/metrics' }"


@pytest.fixture
def server(start_process: Any, recommender: Path, zoo: Path, publish: Any, tmp_path: Path) -> Any:
    publish(recommender, tmp_path / "models" / "recommender", 1)
    publish(zoo, tmp_path / "models" / "zoo", 1)
    monitoring = tmp_path / "monitoring"
    monitoring.write_text(METRICS)
    models = {name: tmp_path / "models" / name for name in ("recommender", "zoo")}
    return start_process(
        models, "--workers=2", "--enable_batching", f"--monitoring_config_file={monitoring}"
    )


def test_a_killed_worker_is_replaced_and_no_client_notices(server: Any, wait_for: Any) -> None:
    before = {worker.pid for worker in server.workers()}
    assert len(before) == 2
    done, failures, answered = threading.Event(), [], Counter()

    def call(number: int) -> None:
        with RecommenderClient(f"127.0.0.1:{server.port}", timeout_seconds=20.0) as client:
            while not done.is_set():
                try:
                    (first, *_) = client.recommend(f"u{number}", exclude=["x"]).items
                except RecommenderError as error:
                    failures.append(str(error))
                    return
                if first[0] != f"u{number}":
                    failures.append(f"u{number} got {first}")
                answered[number] += 1

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(1.0)
        victim = sorted(before)[0]
        os.kill(victim, signal.SIGKILL)

        def is_replaced() -> bool:
            return len({worker.pid for worker in server.workers()} - before) == 1

        wait_for(is_replaced, "replaced", seconds=60.0)
        wait_for(lambda: "starting another" in server.text(), "logged", seconds=10.0)
        counted = Counter(answered)
        time.sleep(1.0)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert all(answered[number] > counted[number] for number in range(8)), "all go on"


def test_workers_end_with_their_supervisor(server: Any, wait_for: Any) -> None:
    workers = server.workers()
    server.process.kill()
    server.process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []

    def nobody_listens() -> bool:
        return not any(
            connection.laddr.port in (server.port, server.rest_port)
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        )

    wait_for(nobody_listens, "the ports are free")


def reload_request(models: dict[str, str]) -> ReloadConfigRequest:
    request = ReloadConfigRequest()
    for name, path in models.items():
        request.config.model_config_list.config.add(
            name=name, base_path=path, model_platform="tensorflow"
        )
    return request


def code_of(call: Any) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_a_configuration_reaches_every_worker_and_a_bad_one_none(
    server: Any, connect: Any, tmp_path: Path
) -> None:
    zoo = str(tmp_path / "models" / "zoo")
    callers = [connect(server.port) for _ in range(CONNECTIONS)]
    status = grpc.StatusCode

    def seen(model: str) -> set[grpc.StatusCode]:
        inputs = {"x": [1.0]}
        return {code_of(lambda c=caller: c.predict(model, inputs)) for caller in callers}

    assert seen("zoo") == {status.OK}
    callers[0].call(
        "HandleReloadConfigRequest", reload_request({"zoo": zoo, "menagerie": zoo}), timeout=60
    )
    assert seen("menagerie") == {status.OK}
    bad = (
        (reload_request({"zoo": "relative/path"}), status.INVALID_ARGUMENT),
        (ReloadConfigRequest(), status.INVALID_ARGUMENT),
    )
    for request, expected in bad:
        for caller in callers[:4]:
            code, _ = caller.error(
                lambda r=request, c=caller: c.call("HandleReloadConfigRequest", r)
            )
            assert code is expected
        assert seen("zoo") == seen("menagerie") == {status.OK}
    callers[1].call("HandleReloadConfigRequest", reload_request({"zoo": zoo}), timeout=60)
    assert seen("menagerie") == {status.NOT_FOUND}
    # A worker that replaces a dead one has the new configuration, too.
    before = {worker.pid for worker in server.workers()}
    os.kill(min(before), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while server.text().count("serving ") < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    again = [connect(server.port) for _ in range(CONNECTIONS)]
    codes = {
        code_of(lambda c=caller: c.predict("recommender", {"user_id": [b"u"]})) for caller in again
    }
    assert codes == {status.NOT_FOUND}


def test_a_wrong_path_holds_up_neither_workers_nor_later_configurations(
    server: Any, connect: Any, wait_for: Any, tmp_path: Path
) -> None:
    zoo = str(tmp_path / "models" / "zoo")
    before = {worker.pid for worker in server.workers()}

    def ask(models: dict[str, str]) -> Any:
        message = reload_request(models).SerializeToString()
        return connect(server.port).raw("HandleReloadConfigRequest", message, timeout=120.0)

    def answers(model: str) -> set[grpc.StatusCode]:
        callers = [connect(server.port) for _ in range(CONNECTIONS)]
        return {code_of(lambda c=caller: c.predict(model, {"x": [1.0]})) for caller in callers}

    endless = ask({"zoo": zoo, "menagerie": str(tmp_path / "no-such-path")})
    wait_for(lambda: answers("recommender") == {grpc.StatusCode.NOT_FOUND}, "it holds")
    os.kill(min(before), signal.SIGKILL)
    # The client hears of it, be it that its own worker is gone or another one.
    assert endless.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN)
    wait_for(lambda: server.text().count("serving ") == 3, "replaced", seconds=60.0)
    assert len({worker.pid for worker in server.workers()} - before) == 1
    # The new one began with what could be loaded, and was then told what holds.
    wait_for(lambda: answers("recommender") == {grpc.StatusCode.NOT_FOUND}, "it holds again")
    assert answers("zoo") == {grpc.StatusCode.OK}
    endless = [ask({"zoo": zoo, "menagerie": str(tmp_path / "neither")}) for _ in range(8)]
    wait_for(lambda: sum(call.done() for call in endless) == 7, "the last one alone waits")
    mended = ask({"zoo": zoo, "menagerie": zoo})
    assert mended.code() is grpc.StatusCode.OK
    assert answers("menagerie") == {grpc.StatusCode.OK}
    assert {call.code() for call in endless} <= {
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
    # One that still waits does not keep the server from ending.
    last = ask({"aviary": str(tmp_path / "nor this")})
    wait_for(lambda: answers("zoo") == {grpc.StatusCode.NOT_FOUND}, "it holds")
    started = time.monotonic()
    server.process.terminate()
    server.process.wait(30)
    assert time.monotonic() - started < 10.0
    assert last.code() is grpc.StatusCode.UNAVAILABLE


def test_the_metrics_page_sums_over_the_workers(server: Any, connect: Any) -> None:
    for number in range(CONNECTIONS):
        caller = connect(server.port)
        for _ in range(5):
            assert caller.predict("zoo", {"x": [float(number)]}).outputs["y"].float_val
    pattern = r':tensorflow:serving:request_count\{model_name="zoo",status="OK"\} (\d+)'
    for _ in range(6):  # whichever worker answers
        with urllib.request.urlopen(f"http://127.0.0.1:{server.rest_port}/metrics") as page:
            found = re.findall(pattern, page.read().decode())
        assert found == [str(5 * CONNECTIONS)]
