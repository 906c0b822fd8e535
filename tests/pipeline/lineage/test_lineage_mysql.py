"""Lineage from MySQL: a throw-away server, an owner who writes, a reader who may only SELECT."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pymysql
import pytest
from ml_metadata.proto import metadata_store_pb2 as pb

from pipeline.lineage.query import version_lineage
from pipeline.metadata.runs import list_runs
from pipeline.metadata.store import MetadataError, open_store
from tests.pipeline.metadata.recorder import Recorder, Recording

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("mariadbd") and shutil.which("mariadb-install-db")),
        reason="no mariadbd is installed: apt-get install mariadb-server",
    ),
]

STARTED_WITHIN_SECONDS = 60
PASSWORD = "p@ss:w/rd %"
QUOTED = "p%40ss%3Aw%2Frd%20%25"


@dataclass(frozen=True)
class Server:
    """A running server, and its administrator's connection."""

    port: int
    root: pymysql.Connection

    def uri(self, user: str, database: str, password: str = QUOTED) -> str:
        return f"mysql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def tables(self, database: str) -> int:
        with self.root.cursor() as cursor:
            return int(cursor.execute(f"SHOW TABLES IN {database}"))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # Not pytest's directory: the path of a socket has at most some 100 characters.
    with tempfile.TemporaryDirectory(prefix="mariadb-", ignore_cleanup_errors=True) as name:
        data, unix = Path(name) / "data", Path(name) / "socket"
        options = ["--no-defaults", f"--datadir={data}", "--user=root"]
        install = ["mariadb-install-db", *options, "--auth-root-authentication-method=normal"]
        subprocess.run([*install, "--skip-test-db"], check=True, capture_output=True, timeout=120)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        address = [f"--socket={unix}", f"--port={port}", "--bind-address=127.0.0.1"]
        with (Path(name) / "log").open("wb") as log:
            process = subprocess.Popen(["mariadbd", *options, *address], stdout=log, stderr=log)
        try:
            yield Server(port, connected(unix, process))
        finally:
            process.terminate()
            process.wait(STARTED_WITHIN_SECONDS)


def connected(unix: Path, process: subprocess.Popen[bytes]) -> pymysql.Connection:
    deadline = time.monotonic() + STARTED_WITHIN_SECONDS
    while True:
        try:
            return pymysql.connect(unix_socket=str(unix), user="root", autocommit=True)
        except pymysql.err.OperationalError:
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture(scope="module")
def store(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Database `ml` with a run; `empty` without tables, where the reader may do anything."""
    with server.root.cursor() as cursor:
        for statement in (
            "CREATE DATABASE ml",
            "CREATE DATABASE empty",
            "CREATE DATABASE foreign_tables",
            "CREATE TABLE foreign_tables.orders (id INT)",
            f"CREATE USER 'owner'@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'",
            f"CREATE USER 'reader'@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'",
            "GRANT ALL ON ml.* TO 'owner'@'127.0.0.1'",
            "GRANT SELECT ON ml.* TO 'reader'@'127.0.0.1'",
            "GRANT ALL ON empty.* TO 'reader'@'127.0.0.1'",
            "GRANT ALL ON foreign_tables.* TO 'reader'@'127.0.0.1'",
        ):
            cursor.execute(statement)
    config = pb.ConnectionConfig()
    config.mysql.host, config.mysql.port = "127.0.0.1", server.port
    config.mysql.user, config.mysql.password, config.mysql.database = "owner", PASSWORD, "ml"
    Recorder(tmp_path_factory.mktemp("mysql"), config).record(Recording())
    return server


def test_reading_needs_no_more_than_select(store: Server) -> None:
    facts = version_lineage(store.uri("reader", "ml"), 1).facts
    assert (facts.version, facts.model_id, facts.missing) == (1, "aa01", ())
    assert [run.state for run in list_runs(open_store(store.uri("reader", "ml")))] == ["COMPLETE"]


@pytest.mark.parametrize("database", ["empty", "foreign_tables"])
def test_database_without_metadata_gets_no_tables(store: Server, database: str) -> None:
    before = store.tables(database)
    with pytest.raises(MetadataError, match="a database without ML Metadata"):
        version_lineage(store.uri("reader", database), 1)
    assert store.tables(database) == before


def test_errors_name_the_cause_but_not_the_password(store: Server) -> None:
    for uri, said in (
        (store.uri("reader", "ml", "wrong-secret"), "Access denied"),
        (store.uri("nobody", "ml", "wrong-secret"), "Access denied"),
        (store.uri("reader", "none", QUOTED), "Access denied|Unknown database"),
        (f"mysql://reader:wrong-secret@127.0.0.1:{unused_port()}/ml", "Can't connect"),
    ):
        with pytest.raises(MetadataError, match=said) as caught:
            version_lineage(uri, 1)
        assert "wrong-secret" not in str(caught.value)
        assert PASSWORD not in str(caught.value)
        assert QUOTED not in str(caught.value)


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
