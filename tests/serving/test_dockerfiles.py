"""The Dockerfiles: rules as of hadolint, the dependencies, and the entry point run for real."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from serving.client import RecommenderClient

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "serving" / "docker"
DOCKERFILES = sorted(
    path for path in DOCKER.glob("Dockerfile*") if not path.name.endswith(".dockerignore")
)


class Instruction(NamedTuple):
    """One instruction of a Dockerfile, its lines joined."""

    name: str
    value: str


def parse(text: str) -> list[Instruction]:
    """The instructions, without comments and with continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        Instruction(name.upper(), value.strip())
        for name, _, value in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def faults(text: str) -> set[str]:
    """Names of the rules that a Dockerfile breaks; hadolint's numbers where it has the rule."""
    instructions = parse(text)
    names = [instruction.name for instruction in instructions]
    broken = set()
    stages = set()
    for name, value in instructions:
        if name == "FROM":
            image, _, stage = value.partition(" AS ")
            if image not in stages:
                broken |= _image_faults(image)
            stages.add(stage)
        elif name == "COPY" and (source := re.match(r"--from=(\S+)", value)):
            if source[1] not in stages:
                broken.add("DL3022 unknown stage")
        elif name == "ADD":
            broken.add("DL3020 ADD")
        elif name == "RUN":
            broken |= _run_faults(value, instructions)
    last_stage = instructions[len(names) - 1 - names[::-1].index("FROM") :]
    users = [value for name, value in last_stage if name == "USER"]
    if not users or users[-1].partition(":")[0] in ("root", "0"):
        broken.add("DL3002 root")
    for entry in ("ENTRYPOINT", "CMD"):
        if any(name == entry and not value.startswith("[") for name, value in instructions):
            broken.add("DL3025 shell form")
    return broken


def _image_faults(image: str) -> set[str]:
    tag = image.rpartition("/")[2].partition(":")[2]
    if not tag:
        return {"DL3006 no tag"}
    return {"DL3007 latest"} if not re.search(r"\d+\.\d+\.\d+", tag) else set()


def _run_faults(command: str, instructions: list[Instruction]) -> set[str]:
    broken = set()
    if "apt-get install" in command:
        if "--no-install-recommends" not in command:
            broken.add("DL3015 recommends")
        if "rm -rf /var/lib/apt/lists" not in command:
            broken.add("DL3009 lists")
        if "apt-get update" not in command:
            broken.add("update")
    if re.search(r"\bsudo\b", command):
        broken.add("DL3004 sudo")
    if re.search(r"\bcd /", command):
        broken.add("DL3003 cd")
    if re.search(r"(?<!\|)\|(?!\|)", re.sub(r"'[^']*'", "", command)) and not any(
        name == "SHELL" and "pipefail" in value for name, value in instructions
    ):
        broken.add("DL4006 pipefail")
    if re.search(r"pip install(?!.*(-c|--constraint|--no-deps))", command):
        broken.add("DL3013 versions")
    return broken


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_rules(path: Path) -> None:
    assert faults(path.read_text()) == set()


def test_all_dockerfiles_are_checked() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile", "Dockerfile.tf-serving-scann"]


GOOD = "FROM python:3.11.11-slim AS build\nRUN true\nUSER 1:1\n"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("python:3.11.11-slim", "python"), "DL3006 no tag"),
        (("python:3.11.11-slim", "host:5000/python"), "DL3006 no tag"),
        (("python:3.11.11-slim", "python:latest"), "DL3007 latest"),
        (("python:3.11.11-slim", "python:3-slim"), "DL3007 latest"),
        (("USER 1:1\n", ""), "DL3002 root"),
        (("USER 1:1", "USER root"), "DL3002 root"),
        (("USER 1:1", "USER 1:1\nUSER 0:0"), "DL3002 root"),
        (("USER 1:1", "USER 1:1\nFROM debian:12.1.0"), "DL3002 root"),
        (("RUN true", "ADD https://example.org/x /x"), "DL3020 ADD"),
        (("RUN true", "COPY --from=other /x /x"), "DL3022 unknown stage"),
        (("RUN true", "RUN apt-get update \\\n && apt-get install -y x"), "DL3015 recommends"),
        (
            ("RUN true", "RUN apt-get update && apt-get install --no-install-recommends x"),
            "DL3009 lists",
        ),
        (
            (
                "RUN true",
                "RUN apt-get install --no-install-recommends x \\\n"
                "# why\n && rm -rf /var/lib/apt/lists/*",
            ),
            "update",
        ),
        (("RUN true", "RUN curl x | tar -x"), "DL4006 pipefail"),
        (("RUN true", "RUN sudo true"), "DL3004 sudo"),
        (("RUN true", "RUN cd /x && true"), "DL3003 cd"),
        (("RUN true", "RUN pip install tensorflow"), "DL3013 versions"),
        (("RUN true", "ENTRYPOINT serve"), "DL3025 shell form"),
    ],
)
def test_the_rules_find_faults(change: tuple[str, str], fault: str) -> None:
    assert faults(GOOD) == set()
    assert fault in faults(GOOD.replace(*change))


# --- the image of our server ----------------------------------------------------------------


@pytest.fixture(scope="module")
def instructions() -> list[Instruction]:
    return parse((DOCKER / "Dockerfile").read_text())


def test_versions_are_those_of_the_project(instructions: list[Instruction]) -> None:
    images = [value.split()[0] for name, value in instructions if name == "FROM"]
    uv, *pythons = images
    (version,) = re.findall(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.M)
    assert uv == f"ghcr.io/astral-sh/uv:{version}"
    assert len(set(pythons)) == 1, "the environment moves between equal pythons"
    assert pythons[0].startswith(f"python:{sys.version_info.major}.{sys.version_info.minor}.")


def test_what_is_copied_exists_and_is_let_through(instructions: list[Instruction]) -> None:
    sources = [
        source
        for name, value in instructions
        if name == "COPY" and not value.startswith("--from")
        for source in value.split()[:-1]
    ]
    assert "requirements.lock" in sources
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().split("\n")
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source.partition("/")[0] in allowed, source
        assert not source.startswith("tests")
    assert "*" in ignored


def _locked() -> set[str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}


def _requirements() -> set[str]:
    lines = (DOCKER / "requirements.in").read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def test_the_lock_pins_everything_that_is_installed() -> None:
    todo, seen = set(_requirements()), set()
    while todo:
        name = canonicalize_name(todo.pop())
        if name in seen:
            continue
        seen.add(name)
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.add(requirement.name)
    assert seen <= _locked()
    assert {"tensorflow", "scann", "grpcio"} <= seen
    assert not seen & {"tfx", "apache-beam", "jupyter", "tensorflow-transform"}


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_all_that_the_server_imports_is_installed() -> None:
    todo, seen = set((ROOT / "serving").rglob("*.py")), set()
    packages = set()
    while todo:
        path = todo.pop()
        seen.add(path)
        for name in _imports(path):
            packages.add(name.partition(".")[0])
            module = (ROOT / name.replace(".", "/")).with_suffix(".py")
            if module.exists() and module not in seen:
                todo.add(module)
    third_party = packages - sys.stdlib_module_names - {"serving", "schemas"}
    assert {"tensorflow", "grpc", "aiohttp"} <= third_party
    assert not packages & {"models", "pipeline", "components", "tests", "benchmarks"}
    owners = importlib.metadata.packages_distributions()
    required = {canonicalize_name(name) for name in _requirements()}
    for package in third_party:
        assert required & {canonicalize_name(owner) for owner in owners[package]}, package


# --- the entry point ------------------------------------------------------------------------


def _entry_point(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        [str(DOCKER / "entrypoint.sh"), *arguments],
        cwd=ROOT,
        env={**os.environ, "PATH": path, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.slow
def test_the_entry_point_serves_and_stops(
    recommender: Path, publish: Any, tmp_path: Path, wait_for: Any
) -> None:
    publish(recommender, tmp_path / "models" / "shop", 1)
    port_file = tmp_path / "port"
    process = _entry_point(
        "--host=127.0.0.1",
        "--port=0",
        "--rest_api_port=0",
        f"--port_file={port_file}",
        MODEL_NAME="shop",
        MODEL_BASE_PATH=str(tmp_path / "models"),
    )
    try:
        wait_for(lambda: port_file.exists() or process.poll() is not None, "serving", 60.0)
        assert process.poll() is None, process.communicate()[0]
        with RecommenderClient(f"127.0.0.1:{port_file.read_text()}", "shop") as client:
            assert client.recommend("ann").version == 1
        # The shell has made way for the server, which therefore gets the signal.
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_entry_point_refuses_a_misspelt_flag() -> None:
    process = _entry_point("--enable_betching")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "enable_betching" in printed
