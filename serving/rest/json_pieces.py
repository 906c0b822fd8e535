"""Parses large JSON in pieces.

Python's parser is one call in C, and until that returns no other thread runs, the event loop's
included: tens of milliseconds for every megabyte.
"""

from __future__ import annotations

import json
import re
from typing import Any

_DECODER = json.JSONDecoder()
_BLANKS = re.compile(r"[ \t\r\n]*")
_PIECE = 2**15  # characters, under a millisecond


def decode(text: str, position: int) -> tuple[Any, int]:
    """Parses the value that begins at `position`.

    Returns:
      the value and the position behind it, as of `json.JSONDecoder.raw_decode`.

    Raises:
      json.JSONDecodeError: that is no JSON; the error says no more.
    """
    opening = text[position : position + 1]
    if opening == "[":
        return _decode_list(text, skip_blanks(text, position + 1))
    if opening == "{":
        return _decode_object(text, skip_blanks(text, position + 1))
    return _DECODER.raw_decode(text, position)


def skip_blanks(text: str, position: int) -> int:
    """The position of the next character that is not blank."""
    match = _BLANKS.match(text, position)
    return match.end() if match else position


def _decode_list(text: str, position: int) -> tuple[list[Any], int]:
    elements: list[Any] = []
    try_from = position
    while True:
        if position >= try_from:
            cut = _find_cut(text, position)
            piece, end = _decode_elements(text, position, cut)
            if end is not None and (piece or not elements):
                return elements + piece, end
            if piece and end is None:
                elements += piece
                position = try_from = skip_blanks(text, cut + 1)
                continue
            # The cut is within an element: go on by single ones until behind it.
            try_from = cut + 1
        element, position = decode(text, position)
        elements.append(element)
        position = skip_blanks(text, position)
        if text.startswith("]", position):
            return elements, position + 1
        position = _expect(text, position, ",")


def _find_cut(text: str, position: int) -> int:
    """A comma that may be one between the elements of the list at `position`."""
    closing = {"[": "],", "{": "},", '"': '",'}.get(text[position : position + 1], ",")
    found = text.rfind(closing, position, position + _PIECE)
    return found + len(closing) - 1 if found >= 0 else min(position + _PIECE, len(text))


def _decode_elements(text: str, position: int, cut: int) -> tuple[list[Any], int | None]:
    """Parses the elements of a list up to a cut.

    Returns:
      the elements, none if the cut is not between two of them; and the position behind the list
      if it ends before the cut, or None.
    """
    try:
        elements, end = _DECODER.raw_decode(f"[{text[position:cut]}]")
    except json.JSONDecodeError:
        return [], None
    if end < cut - position + 2:
        return elements, position + end - 1
    return (elements, None) if text.startswith(",", cut) else ([], None)


def _decode_object(text: str, position: int) -> tuple[dict[str, Any], int]:
    members: dict[str, Any] = {}
    if text.startswith("}", position):
        return members, position + 1
    while True:
        if not text.startswith('"', position):
            raise json.JSONDecodeError("Expecting a name", text, position)
        name, position = _DECODER.raw_decode(text, position)
        position = _expect(text, skip_blanks(text, position), ":")
        members[name], position = decode(text, position)
        position = skip_blanks(text, position)
        if text.startswith("}", position):
            return members, position + 1
        position = _expect(text, position, ",")


def _expect(text: str, position: int, delimiter: str) -> int:
    if not text.startswith(delimiter, position):
        raise json.JSONDecodeError(f"Expecting {delimiter}", text, position)
    return skip_blanks(text, position + 1)
