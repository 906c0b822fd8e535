"""`csmf explore` as a user starts and ends it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def url_of(command: Any) -> str:
    deadline = time.monotonic() + 60
    while not (found := re.search(r"http://127\.0\.0\.1:\d+/", command.out.read_text())):
        assert command.process.poll() is None, command.err.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found[0]


def get(url: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def state_when_ready(url: str) -> Any:
    deadline = time.monotonic() + 120
    while (answer := get(f"{url}api/state"))[0] != 200 or "error" in answer[1]:
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)
    return answer[1]


def servers_of(parent: int) -> list[int]:
    """Process ids of the gRPC servers that a process has started."""
    found = subprocess.run(
        ["pgrep", "-P", str(parent), "-f", "serving"], capture_output=True, text=True, check=False
    )
    return [int(line) for line in found.stdout.split()]


def test_it_starts_a_server_of_its_own_and_ends_it(
    csmf: Any, running: list[Any], world: Any
) -> None:
    command = csmf.start("explore", "--workdir", world.workdir, "--port", "0")
    running.append(command)
    url = url_of(command)
    status, answer = get(f"{url}api/state")
    assert status == 202, "the page is there before the server"
    assert "Starting a server" in answer["error"]
    first = state_when_ready(url)
    assert first["default"] == 2
    (server,) = servers_of(command.process.pid)
    # A server that dies is told, and replaced.
    os.kill(server, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while get(f"{url}api/state")[0] == 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    second = state_when_ready(url)
    assert second["address"] != first["address"]
    (server,) = servers_of(command.process.pid)
    done = command.interrupt()
    assert done.code == 0, done
    assert "Traceback" not in done.text
    assert not Path(f"/proc/{server}").exists()


def test_it_uses_the_workdirs_server(csmf: Any, running: list[Any], world: Any) -> None:
    serve = csmf.start("serve", "--workdir", world.workdir, "--port", "0")
    running.append(serve)
    address_file = world.workdir / "server.address"
    deadline = time.monotonic() + 120
    while not address_file.exists():
        assert time.monotonic() < deadline, serve.err.read_text()
        time.sleep(0.1)
    port = address_file.read_text().strip()
    command = csmf.start("explore", "--workdir", world.workdir, "--port", "0")
    running.append(command)
    url = url_of(command)
    assert state_when_ready(url)["address"] == f"127.0.0.1:{port}"
    assert servers_of(command.process.pid) == []
    taken = url.rstrip("/").rpartition(":")[2]
    again = csmf("explore", "--workdir", world.workdir, "--port", taken)
    assert again.code == 1
    assert f"port {taken} of this machine cannot be used" in again.text
    serve.interrupt()
    status, answer = get(f"{url}api/state")
    assert status == 503
    assert f"csmf serve --workdir {world.workdir}" in answer["error"]
    restarted = csmf.start("serve", "--workdir", world.workdir, "--port", "0")
    running.append(restarted)
    assert state_when_ready(url)["default"] == 2
    assert command.interrupt().code == 0
    restarted.interrupt()


def test_a_workdir_without_a_model(csmf: Any, tmp_path: Path) -> None:
    done = csmf("explore", "--workdir", tmp_path / "nowhere", "--port", "0")
    assert done.code == 1
    assert "no pushed model under" in done.text
    assert "Traceback" not in done.text
