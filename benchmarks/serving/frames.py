"""Files of many byte strings, each after its length."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_LENGTH_BYTES = 4


def write_frames(path: Path, frames: Iterable[bytes]) -> None:
    """Writes `frames`."""
    with path.open("wb") as file:
        for frame in frames:
            file.write(len(frame).to_bytes(_LENGTH_BYTES, "little") + frame)


def read_frames(path: Path) -> list[bytes]:
    """What `write_frames` wrote."""
    data = path.read_bytes()
    frames, start = [], 0
    while start < len(data):
        begin = start + _LENGTH_BYTES
        start = begin + int.from_bytes(data[start:begin], "little")
        frames.append(data[begin:start])
    return frames
