"""Why a record cannot be used."""

from __future__ import annotations

from typing import NamedTuple

RAW_CHARACTERS = 200  # of a refused record that are kept for the reader


class Fault(NamedTuple):
    """Why a record is refused."""

    kind: str  # one word, counted in the summary
    reason: str  # a sentence for the person who has to repair the log


class UnusableError(ValueError):
    """A value that makes its record unusable."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.fault = Fault(kind, reason)


class DeadLetter(NamedTuple):
    """A refused record and where it stands."""

    table: str
    file: str
    line: int  # first line of the record, from 1; in Parquet the row, from 1
    kind: str
    reason: str
    raw: str


# A compressed file that ends early: the rows behind the break are unknown, so no share of dead
# letters makes this acceptable.
BROKEN_FILE = "broken_file"


def shown(raw: object) -> str:
    """Returns the start of a record as printable text of one line."""
    if isinstance(raw, bytes):
        text = raw[: 4 * RAW_CHARACTERS].decode("utf-8", errors="backslashreplace")
    else:
        text = str(raw)
    text = text[:RAW_CHARACTERS]
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )[:RAW_CHARACTERS]
