"""The image of the pipeline's containers. There is no engine here, so it is read, not built."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.serving.test_dockerfiles import Instruction, faults, parse

ROOT = Path(__file__).resolve().parents[3]
DIRECTORY = ROOT / "pipeline" / "kubeflow"
PACKAGES = ("schemas", "models", "serving", "components", "configs", "benchmarks", "pipeline")
# What a task imports; the rest is there for the command line.
EXECUTED = ("schemas", "models", "serving", "components")


@pytest.fixture(scope="module")
def instructions() -> list[Instruction]:
    return parse((DIRECTORY / "Dockerfile").read_text())


def setup_lists() -> dict[str, list[str]]:
    """The lists of plain requirements in setup.py, by name."""
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("REQUIREMENTS", "KUBEFLOW")
    }


def test_rules() -> None:
    assert faults((DIRECTORY / "Dockerfile").read_text()) == set()


def test_versions_are_those_of_the_project(instructions: list[Instruction]) -> None:
    uv, *pythons = [value.split()[0] for name, value in instructions if name == "FROM"]
    (version,) = re.findall(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.M)
    assert uv == f"ghcr.io/astral-sh/uv:{version}"
    assert len(set(pythons)) == 1, "the environment moves between equal pythons"
    assert pythons[0].startswith(f"python:{sys.version_info.major}.{sys.version_info.minor}.")


def test_what_is_copied_exists_and_is_let_through(instructions: list[Instruction]) -> None:
    sources = {
        source
        for name, value in instructions
        if name == "COPY" and not value.startswith("--from")
        for source in value.split()[:-1]
    }
    ignored = (DIRECTORY / "Dockerfile.dockerignore").read_text().split("\n")
    assert {line[1:] for line in ignored if line.startswith("!")} == sources
    assert "*" in ignored
    assert all((ROOT / source).exists() for source in sources)
    assert set(PACKAGES) < sources
    assert "tests" not in sources


def test_dependencies_are_locked_and_lie_below_the_code(instructions: list[Instruction]) -> None:
    steps = [f"{name} {value}" for name, value in instructions]
    installs = [step for step in steps if step.startswith("RUN uv pip install")]
    assert all("--build-constraints requirements.lock" in step for step in installs)
    dependencies, code = (steps.index(step) for step in installs)
    assert "--constraint requirements.lock" in steps[dependencies]
    assert "--extra kubeflow" in steps[dependencies]
    assert "--no-deps" in steps[code]
    packages = [steps.index(f"COPY {package} {package}") for package in PACKAGES]
    assert dependencies < min(packages)
    assert max(packages) < code


def test_the_container_is_what_the_launcher_needs(instructions: list[Instruction]) -> None:
    steps = [f"{name} {value}" for name, value in instructions]
    last = steps[len(steps) - 1 - [step[:4] for step in steps[::-1]].index("FROM") :]
    environment = " ".join(step for step in last if step.startswith("ENV"))
    assert "TF_USE_LEGACY_KERAS=1" in environment
    assert "PATH=/opt/csmf/bin:$PATH" in environment, "the command is `python -m tfx..`"
    assert "HOME=/tmp" in environment, "a user without a name has no home of its own"
    assert "USER 10001:10001" in last
    assert any("--owner=10001" in step and step.endswith(" /gcs") for step in last)
    assert not any(step.startswith("ENTRYPOINT") for step in last), "it would be overridden"


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_all_that_a_task_imports_is_installed() -> None:
    direct = {
        canonicalize_name(Requirement(text).name)
        for requirements in setup_lists().values()
        for text in requirements
    }
    todo, installed = set(direct), set()
    while todo:
        name = todo.pop()
        if name in installed:
            continue
        installed.add(name)
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.add(canonicalize_name(requirement.name))
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}
    assert installed <= locked
    assert {"tfx", "kfp", "scann"} <= installed
    assert not installed & {"pytest", "ruff", "mypy", "playwright"}

    packages = {
        package
        for folder in EXECUTED
        for path in (ROOT / folder).rglob("*.py")
        for package in imports(path)
    }
    third_party = packages - sys.stdlib_module_names - set(EXECUTED)
    assert not third_party & {"pipeline", "benchmarks", "tests"}
    owners = importlib.metadata.packages_distributions()
    for package in sorted(third_party):
        assert installed & {canonicalize_name(owner) for owner in owners[package]}, package
