"""Flink and Beam's job server for it: found on this machine, or fetched with Maven."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import apache_beam
from apache_beam.options.pipeline_options import FlinkRunnerOptions

JAR_VARIABLE = "CSMF_FLINK_JOB_SERVER_JAR"  # a jar that is there already
POM = Path(__file__).parent / "flink" / "pom.xml"
DOWNLOAD_SECONDS = 300.0

_JAR = (
    f"beam-runners-flink-{FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS[-1]}-job-server-"
    f"{apache_beam.__version__}.jar"
)
_BEAM_VERSION = ("org/apache/beam/sdk/sdk.properties", "version")
_FLINK_VERSION = (".flink-runtime.version.properties", "project.version")


class NoJobServerError(Exception):
    """Says why there is no job server, and what to do."""


class _NoAnswerError(NoJobServerError):
    """Maven was still at it when its time was over."""


@dataclass(frozen=True)
class JobServer:
    """Jars with Flink and Beam's job server.

    Attributes:
      classpath: for `java -cp`.
      beam: version of the job server; that of the Python SDK, unless the jar was named.
      flink: version.
    """

    classpath: str
    beam: str
    flink: str

    @classmethod
    def of(cls, path: Path) -> JobServer:
        """Takes a jar, or a directory of jars.

        Raises:
          NoJobServerError: it holds no Beam, or no Flink.
        """
        jars = sorted(path.glob("*.jar")) if path.is_dir() else [path]
        classpath = str(path / "*") if path.is_dir() else str(path)
        return cls(classpath, _version(jars, *_BEAM_VERSION), _version(jars, *_FLINK_VERSION))

    def __str__(self) -> str:
        return (
            f"job server of Beam {self.beam} with Flink {self.flink} under the Python SDK "
            f"{apache_beam.__version__}"
        )


def find_job_server(cache: Path, maven: str | None = None) -> JobServer:
    """Returns the job server of the pinned Beam: its jar, or else its libraries.

    What was fetched once is taken from then on.

    Args:
      cache: directory to keep it in.
      maven: the command; None = `mvn` on the PATH.

    Raises:
      NoJobServerError: there is none, and why.
    """
    if given := os.environ.get(JAR_VARIABLE):
        return JobServer.of(Path(given))
    pinned = cache / _JAR
    # Another pom.xml is another directory.
    pom = hashlib.sha256(POM.read_bytes()).hexdigest()[:12]
    library = cache / f"flink-job-server-{apache_beam.__version__}-{pom}"
    for path in (pinned, library):
        if path.exists():
            return JobServer.of(path)
    maven = maven or shutil.which("mvn")
    if maven is None:
        raise NoJobServerError(
            f"there is no `mvn` to fetch {_JAR} with, and {JAR_VARIABLE} names no jar"
        )
    attempts: tuple[Callable[[], Path], ...] = (
        lambda: _fetch(maven, _single_jar, pinned, _JAR),
        lambda: _fetch(maven, _all_jars, library, "the jars of tests/distributed/flink/pom.xml"),
    )
    reasons = []
    for attempt in attempts:
        try:
            return JobServer.of(attempt())
        except _NoAnswerError:
            raise  # another attempt would only double the wait
        except NoJobServerError as error:
            reasons.append(str(error))
    raise NoJobServerError(f"{JAR_VARIABLE} names no jar; " + "; ".join(reasons))


def _single_jar(scratch: Path) -> tuple[list[str], Path]:
    artifact = f"org.apache.beam:{_JAR.removesuffix('.jar').rpartition('-')[0]}"
    return [
        "dependency:copy",
        f"-Dartifact={artifact}:{apache_beam.__version__}",
        f"-DoutputDirectory={scratch}",
    ], scratch / _JAR


def _all_jars(scratch: Path) -> tuple[list[str], Path]:
    return [
        f"--file={POM}",
        f"-Dbeam.version={apache_beam.__version__}",
        "dependency:copy-dependencies",
        "-DincludeScope=runtime",
        f"-DoutputDirectory={scratch}",
    ], scratch


def _fetch(
    maven: str, what: Callable[[Path], tuple[list[str], Path]], target: Path, name: str
) -> Path:
    """Runs Maven; another session sees all of the target or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f"{target.name}.{os.getpid()}")
    goal, fetched = what(scratch)
    command = [maven, "-q", "-B", "-Dstyle.color=never", *goal]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
        if done.returncode != 0 or not fetched.exists():
            errors = (done.stdout + done.stderr).strip().split("\n")
            raise NoJobServerError(f"Maven does not give {name}: {errors[0][:300]}")
        if not target.exists():
            os.replace(fetched, target)
    except subprocess.TimeoutExpired:
        raise _NoAnswerError(
            f"Maven did not give {name} within {DOWNLOAD_SECONDS:g} s, and {JAR_VARIABLE} names no "
            "jar"
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _version(jars: Sequence[Path], entry: str, key: str) -> str:
    for jar in jars:
        try:
            with zipfile.ZipFile(jar) as archive:
                text = archive.read(entry).decode()
        except KeyError:
            continue
        except (OSError, zipfile.BadZipFile) as error:
            raise NoJobServerError(f"{jar} is no jar: {error}") from None
        for line in text.splitlines():
            name, _, value = line.partition("=")
            if name == key:
                return value.strip()
    raise NoJobServerError(f"{', '.join(map(str, jars)) or 'no jar'}: {entry} is missing")
