"""Opens ML Metadata for reading, in SQLite or MySQL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from ml_metadata import MetadataStore

_SQLITE = "sqlite:///"
_MYSQL = "mysql"
_MYSQL_PORT = 3306
_CONNECT_TIMEOUT_SECONDS = 10

Value = str | int | float


class MetadataError(RuntimeError):
    """The store cannot tell what was asked; the text says what there is instead."""


def open_store(where: str | Path) -> MetadataStore:
    """Opens a store that exists; never creates or upgrades one.

    Args:
      where: path of an SQLite file, `sqlite:///` and that path, or
        `mysql://user:password@host[:port]/database`.

    Raises:
      MetadataError: there is none, or it is not of this version of ML Metadata.
    """
    text = str(where)
    if text.startswith(_SQLITE):
        return _open_sqlite(Path(text.removeprefix(_SQLITE)))
    if "://" in text:
        return _open_mysql(text)
    return _open_sqlite(Path(where))


def properties(message: Any) -> dict[str, Value]:
    """Properties and custom properties of an artifact, execution or context, sorted by name."""
    values: dict[str, Value] = {}
    for source in (message.properties, message.custom_properties):
        for key, value in source.items():
            kind = value.WhichOneof("value")
            if kind in ("int_value", "double_value", "string_value"):
                values[key] = getattr(value, kind)
    return dict(sorted(values.items()))


def _open_sqlite(path: Path) -> MetadataStore:
    if not path.is_file():
        raise MetadataError(
            f"there is no metadata database at {path}. Nothing has been run there yet: start with "
            "`csmf run --config CONFIG --workdir DIR`, or name the right --workdir."
        )
    # Not at the top: half a second that `csmf --help` must not wait for.
    from ml_metadata.proto import metadata_store_pb2

    config = metadata_store_pb2.ConnectionConfig()
    config.sqlite.filename_uri = str(path)
    config.sqlite.connection_mode = metadata_store_pb2.SqliteMetadataSourceConfig.READONLY
    return _connect(config, str(path))


def _open_mysql(uri: str) -> MetadataStore:
    parts = urlsplit(uri)
    shown = f"{parts.scheme}://{parts.hostname}{parts.path}"  # without the password
    database = unquote(parts.path.strip("/"))
    if parts.scheme != _MYSQL or not parts.hostname or not database or not parts.username:
        raise MetadataError(
            f"{shown} is no store that can be opened. Give the path of an SQLite file, or "
            "mysql://USER:PASSWORD@HOST[:PORT]/DATABASE."
        )
    user, password = unquote(parts.username), unquote(parts.password or "")
    port = parts.port or _MYSQL_PORT
    _check_mysql(parts.hostname, port, user, password, database, shown)
    from ml_metadata.proto import metadata_store_pb2

    config = metadata_store_pb2.ConnectionConfig()
    # ML Metadata takes the name for a Unix socket, as MySQL's own clients do.
    config.mysql.host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    config.mysql.port = port
    config.mysql.user = user
    config.mysql.password = password
    config.mysql.database = database
    config.mysql.skip_db_creation = True
    return _connect(config, shown)


def _check_mysql(host: str, port: int, user: str, password: str, database: str, shown: str) -> None:
    """Makes sure that the tables exist: ML Metadata would create them in a database without."""
    import pymysql

    try:
        connection = pymysql.connect(
            host=host,
            port=port,
            user=user,
            password=password,
            database=database,
            connect_timeout=_CONNECT_TIMEOUT_SECONDS,
        )
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT schema_version FROM MLMDEnv")
    except pymysql.err.ProgrammingError as error:
        raise MetadataError(
            f"{shown} is a database without ML Metadata ({error.args[-1]}). Name the one that the "
            "pipeline's runner writes."
        ) from error
    except pymysql.err.MySQLError as error:
        raise MetadataError(f"{shown} cannot be opened: {error.args[-1]}") from error


def _connect(config: Any, shown: str) -> MetadataStore:
    from ml_metadata import MetadataStore, errors

    try:
        return MetadataStore(config)
    except (RuntimeError, errors.StatusError) as error:
        raise MetadataError(
            f"{shown} is not a metadata database of this version of ML Metadata "
            f"({str(error).splitlines()[0][:120]}). Name the one that `csmf run` wrote."
        ) from error
