"""The code version in a real git checkout."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from pipeline.local import code

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(directory: Path, *arguments: str) -> str:
    settings = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(directory), *settings, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copy(str(code.__file__), tmp_path / "code.py")
    (tmp_path / "other.py").write_text("1\n")
    git(tmp_path, "init", "--quiet")
    return tmp_path


def version_of(checkout: Path) -> str:
    spec = importlib.util.spec_from_file_location("code_in_checkout", checkout / "code.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.code_version())


def test_names_the_commit_and_changes_since(checkout: Path) -> None:
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "one")
    commit = git(checkout, "rev-parse", "--short", "HEAD")
    assert version_of(checkout) == f"{version('csmf')}+g{commit}"
    (checkout / "other.py").write_text("2\n")
    assert version_of(checkout) == f"{version('csmf')}+g{commit}.dirty"


def test_a_repository_that_does_not_track_the_code_is_not_its_version(checkout: Path) -> None:
    git(checkout, "add", "other.py")
    git(checkout, "commit", "--quiet", "-m", "somebody else's")
    assert version_of(checkout) == version("csmf")
