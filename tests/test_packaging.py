"""The package, the lock and the Makefile agree with each other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "components", "models", "schemas", "serving", "configs", "benchmarks")
MAKE_TARGETS = (
    "run",
    "test",
    "unit",
    "slow",
    "test-distributed",
    "lint",
    "lock",
    "browser",
    "peers",
    "clean",
    "help",
)


def locked_versions() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.lstrip().startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def copy_of_the_package(destination: Path) -> Path:
    """Copies what a build reads, so that setuptools writes nothing into the checkout."""
    skip = shutil.ignore_patterns("__pycache__")
    for folder in PACKAGES:
        shutil.copytree(ROOT / folder, destination / folder, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE"):
        shutil.copy(ROOT / name, destination / name)
    return destination


@pytest.fixture(scope="module")
def egg_info(tmp_path_factory: pytest.TempPathFactory) -> metadata.PathDistribution:
    source = copy_of_the_package(tmp_path_factory.mktemp("source"))
    setup_py(source, "egg_info", "--egg-base", ".")
    return metadata.PathDistribution(source / "csmf.egg-info")


def setup_py(source: Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", *arguments],
        cwd=source,
        check=True,
        timeout=60,
        capture_output=True,
    )


def test_every_requirement_is_in_the_lock_at_an_allowed_version(
    egg_info: metadata.PathDistribution,
) -> None:
    locked = locked_versions()
    requirements = [Requirement(text) for text in egg_info.requires or []]
    assert len(requirements) > 20
    for requirement in requirements:
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} but {version} is locked"


def test_direct_dependencies_are_pinned(egg_info: metadata.PathDistribution) -> None:
    for requirement in map(Requirement, egg_info.requires or []):
        exact = [spec.operator for spec in requirement.specifier] == ["=="]
        assert exact or requirement.name == "setuptools", str(requirement)


def test_metadata_names_python_and_the_console_script(
    egg_info: metadata.PathDistribution,
) -> None:
    assert egg_info.metadata["Name"] == "csmf"
    assert set(egg_info.metadata["Requires-Python"].split(",")) == {">=3.11", "<3.12"}
    scripts = [entry for entry in egg_info.entry_points if entry.group == "console_scripts"]
    assert [(script.name, script.value) for script in scripts] == [("csmf", "pipeline.cli:main")]


def test_the_environment_is_the_locked_one() -> None:
    locked = locked_versions()
    # Not all of sys.path: setuptools puts its vendored copies there.
    here = metadata.distributions(path=[sysconfig.get_path("purelib")])
    installed = {canonicalize_name(found.name): found.version for found in here}
    different = {n: (v, installed.get(n)) for n, v in locked.items() if installed.get(n) != v}
    assert not different, f"locked and installed versions differ (run `make lock`): {different}"


def test_setuptools_keeps_pkg_resources() -> None:
    assert int(locked_versions()["setuptools"].split(".")[0]) < 81


def test_a_build_ships_every_package_config_and_schema(tmp_path: Path) -> None:
    source = copy_of_the_package(tmp_path / "source")
    # Present even while the repository has none, so that the globs themselves are tested.
    (source / "configs" / "probe.yaml").write_text("a: 1\n")
    (source / "schemas" / "probe.pbtxt").write_text("\n")
    setup_py(source, "build_py", "--build-lib", str(tmp_path / "built"))
    built = {str(p.relative_to(tmp_path / "built")) for p in (tmp_path / "built").rglob("*.*")}
    wanted = {
        str(path.relative_to(source))
        for folder, pattern in (
            ("configs", "*.yaml"),
            ("schemas", "*.pbtxt"),
            ("pipeline", "*.j2"),
            ("pipeline", "static/*"),
            *((package, "*.py") for package in PACKAGES),
        )
        for path in (source / folder).rglob(pattern)
    }
    assert wanted <= built, f"not shipped: {sorted(wanted - built)}"
    assert not [name for name in built if name.startswith("tests")]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", MAKE_TARGETS)
def test_make_knows_the_target(target: str) -> None:
    result = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_help_lists_every_public_target() -> None:
    shown = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    ).stdout
    assert set(MAKE_TARGETS) == set(re.findall(r"^  make ([\w-]+)", shown, re.MULTILINE))


def test_ci_script_stops_at_the_first_failure() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run is not executable"
    assert "set -euo pipefail" in script.read_text()
