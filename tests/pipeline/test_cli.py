from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline.recommend import parse_weights
from schemas.settings import ConfigError

SCRIPT = Path(sys.executable).with_name("csmf")
OBJECTIVES = ["exposure", "click", "conversion"]


def csmf(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "200"}
    for name in ("TF_USE_LEGACY_KERAS", "TF_CPP_MIN_LOG_LEVEL"):
        environment.pop(name, None)  # set by tests/conftest.py; users have no such thing
    return subprocess.run(
        [str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def refused(*arguments: str | Path) -> str:
    """Runs a command that must end with one message; returns the message."""
    done = csmf(*arguments)
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    return done.stderr


# --- start --------------------------------------------------------------------------------------


def test_help_is_there_in_half_a_second() -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = csmf("--help")
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0
    for command in ("run", "serve", "recommend", "lineage", "datasets"):
        assert f"\n  {command} " in done.stdout
    assert min(seconds) < 0.5, seconds


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from pipeline.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print(sorted({'tensorflow', 'tfx', 'pydantic', 'numpy', 'grpc', 'rich', 'yaml',"
        " 'apache_beam', 'ml_metadata'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "command",
    [["run"], ["serve"], ["recommend"], ["lineage"], ["datasets"], ["datasets", "fetch"]],
    ids=" ".join,
)
def test_help_of_every_command(command: list[str]) -> None:
    for flag in ("--help", "-h"):
        done = csmf(*command, flag)
        assert done.returncode == 0, done
        assert done.stdout.startswith(f"Usage: csmf {' '.join(command)}")
        assert done.stderr == ""


def test_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    done = csmf("--version")
    assert done.returncode == 0
    assert version("csmf") in done.stdout


def test_wrong_usage_says_what_is_missing() -> None:
    for arguments, told in (
        (["run"], "--config"),
        (["run", "--config", "c.yaml"], "--workdir"),
        (["lineage", "--workdir", "w", "--version", "one"], "one"),
        (["rnu"], "rnu"),
    ):
        done = csmf(*arguments)
        assert done.returncode == 2
        assert told in done.stderr
        assert "Traceback" not in done.stderr


# --- errors -------------------------------------------------------------------------------------


def test_bad_configuration_is_one_clear_message(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"name": "x", "objectives": [{"name": "a", "round": 1}]}))
    started = time.perf_counter()
    message = refused("run", "--config", config, "--workdir", tmp_path / "w")
    assert time.perf_counter() - started < 10, "TFX was imported for nothing"
    assert str(config) in message
    assert "objectives.0.round: unknown key. Did you mean 'rounds'?" in message
    assert "data: this key is required" in message
    assert not (tmp_path / "w").exists()


def test_missing_configuration(tmp_path: Path) -> None:
    message = refused("run", "--config", tmp_path / "no.yaml", "--workdir", tmp_path / "w")
    assert "no configuration at" in message
    assert "movielens-100k" in message
    assert not (tmp_path / "w").exists()


def test_verbose_shows_where_it_happened(tmp_path: Path) -> None:
    done = csmf("-v", "run", "--config", tmp_path / "no.yaml", "--workdir", tmp_path / "w")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "load_config" in done.stderr


@pytest.mark.parametrize(
    ("command", "made"),
    [
        (["recommend", "--user", "196"], None),
        (["recommend", "--user", "196"], "serving/recommender/.tmp-1"),
        (["serve"], "serving/recommender"),
    ],
    ids=["recommend", "recommend-interrupted", "serve"],
)
def test_nothing_pushed_yet_says_what_to_run(
    tmp_path: Path, command: list[str], made: str | None
) -> None:
    workdir = tmp_path / "work"
    if made is not None:
        (workdir / made).mkdir(parents=True)
    message = refused(*command, "--workdir", workdir)
    assert "no pushed model" in message
    assert str(workdir) in message
    assert "csmf run" in message


def test_lineage_of_an_empty_workdir_says_what_to_run(tmp_path: Path) -> None:
    message = refused("lineage", "--workdir", tmp_path, "--version", "1")
    assert "no metadata database" in message
    assert "csmf run" in message


def test_unknown_data_set_names_the_nearest(tmp_path: Path) -> None:
    message = refused("datasets", "fetch", "movielens", "--data-dir", tmp_path / "data")
    assert "no data set 'movielens'. Did you mean 'movielens-100k'?" in message
    assert "retailrocket" in message
    assert not (tmp_path / "data").exists()


def test_data_set_behind_a_login_says_where_it_is(tmp_path: Path) -> None:
    message = refused("datasets", "fetch", "aliccp", "--data-dir", tmp_path / "data")
    assert "https://tianchi.aliyun.com" in message
    assert "configs/aliccp.yaml" in message


def test_data_sets_are_listed() -> None:
    done = csmf("datasets", "list")
    assert done.returncode == 0
    assert "movielens-100k" in done.stdout.split()


# --- --weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("click=1,conversion=2", [0.0, 1.0, 2.0]),
        ("exposure=1", [1.0, 0.0, 0.0]),
        (" conversion = 0.5 , exposure = -1e-3 ", [-0.001, 0.0, 0.5]),
        ("click=1,click=3", [0.0, 3.0, 0.0]),
    ],
)
def test_weights_follow_the_order_of_the_model(text: str, weights: list[float]) -> None:
    assert parse_weights(text, OBJECTIVES) == weights


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("clik=1", "no objective 'clik'. Did you mean 'click'? Objectives: exposure, click"),
        ("", "no objective ''"),
        ("click=1,", "no objective ''"),
        ("click", "'click' needs a number, as in click=1"),
        ("click=", "'click' needs a number"),
        ("click=much", "got 'much'"),
        ("click=1=2", "got '1=2'"),
    ],
)
def test_weights_that_are_not_understood(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_weights(text, OBJECTIVES)
    assert told in str(error.value)
