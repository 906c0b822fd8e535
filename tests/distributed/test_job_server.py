"""Where the job server comes from, and what is said where it cannot be had."""

from __future__ import annotations

import zipfile
from pathlib import Path

import apache_beam
import pytest

from tests.distributed import job_server
from tests.distributed.job_server import JAR_VARIABLE, NoJobServerError, find_job_server

VERSIONS = {
    "org/apache/beam/sdk/sdk.properties": "# Beam's\nversion=2.1.0\nsdk_version=9\n",
    ".flink-runtime.version.properties": "project.version=1.2.3\n",
}


def write_jar(path: Path, entries: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in entries.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def maven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command in Maven's place, which has only some of what is asked for."""
    monkeypatch.delenv(JAR_VARIABLE, raising=False)
    for number, entry in enumerate(VERSIONS):
        write_jar(tmp_path / "remote" / f"{number}.jar", {entry: VERSIONS[entry]})
    write_jar(tmp_path / "remote-jar" / job_server._JAR, VERSIONS)
    script = tmp_path / "mvn"
    script.write_text(
        f"""#!/bin/sh
cd {tmp_path}
for argument; do
  case $argument in
    dependency:*) from=${{argument#dependency:}} ;;
    -DoutputDirectory=*) to=${{argument#*=}} ;;
  esac
done
echo $from >> calls
test -e "has-$from" || {{ echo "[ERROR] no $from"; echo "[ERROR] more"; exit 1; }}
mkdir $to
cp remote$(test $from = copy && echo -jar)/* $to
"""
    )
    script.chmod(0o755)
    return script


def calls(maven: Path) -> list[str]:
    return (maven.parent / "calls").read_text().split()


def test_the_jar_of_the_pinned_beam_comes_first_and_is_kept(maven: Path, tmp_path: Path) -> None:
    for has in ("has-copy", "has-copy-dependencies"):
        (tmp_path / has).touch()
    first, second = (find_job_server(tmp_path / "cache", str(maven)) for _ in range(2))
    assert first == second
    assert first.classpath == str(tmp_path / "cache" / job_server._JAR)
    assert apache_beam.__version__ in first.classpath
    assert calls(maven) == ["copy"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [job_server._JAR]


def test_the_library_stands_in_for_it(maven: Path, tmp_path: Path) -> None:
    (tmp_path / "has-copy-dependencies").touch()
    first, second = (find_job_server(tmp_path / "cache", str(maven)) for _ in range(2))
    assert first == second
    assert calls(maven) == ["copy", "copy-dependencies"]
    (kept,) = (tmp_path / "cache").iterdir()
    assert first.classpath == f"{kept}/*"
    assert str(first) == (
        f"job server of Beam 2.1.0 with Flink 1.2.3 under the Python SDK {apache_beam.__version__}"
    )


def test_the_reasons_of_both_are_told(maven: Path, tmp_path: Path) -> None:
    with pytest.raises(NoJobServerError) as caught:
        find_job_server(tmp_path / "cache", str(maven))
    assert str(caught.value) == (
        f"{JAR_VARIABLE} names no jar; Maven does not give {job_server._JAR}: [ERROR] no copy; "
        "Maven does not give the jars of tests/distributed/flink/pom.xml: "
        "[ERROR] no copy-dependencies"
    )
    assert not list((tmp_path / "cache").iterdir())


def test_maven_that_does_not_answer_is_not_asked_again(
    maven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maven.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/calls\nexec sleep 60\n")
    monkeypatch.setattr(job_server, "DOWNLOAD_SECONDS", 0.5)
    with pytest.raises(NoJobServerError, match=r"did not give .* within 0\.5 s"):
        find_job_server(tmp_path / "cache", str(maven))
    assert calls(maven) == ["asked"]


def test_no_maven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JAR_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoJobServerError, match=f"no `mvn` .* and {JAR_VARIABLE} names no jar"):
        find_job_server(tmp_path / "cache")


def test_a_jar_that_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jar = write_jar(tmp_path / "given.jar", VERSIONS)
    monkeypatch.setenv(JAR_VARIABLE, str(jar))
    found = find_job_server(tmp_path / "cache")
    assert (found.classpath, found.beam, found.flink) == (str(jar), "2.1.0", "1.2.3")

    monkeypatch.setenv(JAR_VARIABLE, str(tmp_path / "absent.jar"))
    with pytest.raises(NoJobServerError, match=r"absent\.jar is no jar"):
        find_job_server(tmp_path / "cache")

    write_jar(jar, dict([*VERSIONS.items()][:1]))
    monkeypatch.setenv(JAR_VARIABLE, str(jar))
    with pytest.raises(NoJobServerError, match=r"flink-runtime.*missing"):
        find_job_server(tmp_path / "cache")
