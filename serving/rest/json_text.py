"""JSON of requests and answers, with the texts of RapidJSON for what cannot be parsed.

TensorFlow Serving quotes RapidJSON's errors and values in its own (util/json_tensor.cc).
"""

from __future__ import annotations

import contextlib
import json
from typing import Any, NoReturn

from serving.errors import invalid_argument
from serving.rest import json_pieces
from serving.rest.json_pieces import skip_blanks

# Strings are bytes to TensorFlow and RapidJSON does not check them: what is not UTF-8 survives.
_ESCAPE = "surrogateescape"

_DECODER = json.JSONDecoder()
_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":"))
_QUOTER = json.JSONEncoder(ensure_ascii=False, check_circular=False, indent=4)
_LARGE = 2**17  # characters
_QUOTE_LIMIT = 256  # characters; TensorFlow Serving's limit since 2.18, before it had none

_LITERALS = ("true", "false", "null", "NaN", "Infinity", "-NaN", "-Infinity")

_EMPTY = "The document is empty"
_INVALID = "Invalid value."
_BAD_ESCAPE = "Invalid escape character in string."
_NO_QUOTE = "Missing a closing quotation mark in string."
_TOO_BIG = "Number too big to be stored in double."


def parse(body: bytes) -> dict[str, Any]:
    """Parses the body of a request. Use `to_bytes` for its strings.

    Raises:
      ServingError: INVALID_ARGUMENT, it is not a JSON object.
    """
    if not body:
        raise invalid_argument(f"JSON Parse error: {_EMPTY}")
    text = body.decode("utf-8", _ESCAPE)
    start = skip_blanks(text, int(text.startswith("\ufeff")))
    try:
        value, end = _decode(text, start)
    except json.JSONDecodeError as error:
        _fail(*_explain(text, start, error))
    except RecursionError:
        raise invalid_argument("JSON Parse error: The document is nested too deeply") from None
    except ValueError:
        # Python's limit for the digits of one integer
        raise invalid_argument(f"JSON Parse error: {_TOO_BIG}") from None
    if "\\ud" in text or "\\uD" in text:
        _check_surrogates(value)
    end = skip_blanks(text, end)
    if end < len(text) and text[end] != "\0":
        _fail("The document root must not be followed by other values.", text, end)
    if not isinstance(value, dict):
        raise invalid_argument(f"JSON Value: {quote(value)} Is not object")
    return value


def dump(value: Any) -> bytes:
    """The JSON of an answer; its strings may come from `to_text`."""
    return _ENCODER.encode(value).encode("utf-8", _ESCAPE)


def to_bytes(text: str) -> bytes:
    """The bytes of a parsed string."""
    return text.encode("utf-8", _ESCAPE)


def to_text(data: bytes) -> str:
    """The string that `dump` writes as these bytes."""
    return data.decode("utf-8", _ESCAPE)


def quote(value: Any) -> str:
    """A value as error texts quote it: indented, and cut if it is long."""
    text = ""
    for piece in _QUOTER.iterencode(value):
        text += piece
        if len(text) >= _QUOTE_LIMIT:
            break
    return text[:_QUOTE_LIMIT]


def type_name(value: Any) -> str:
    """RapidJSON's name for the type of a parsed value."""
    if isinstance(value, bool):
        return str(value)
    names = {dict: "Object", list: "Array", str: "String", type(None): "Null"}
    return names.get(type(value), "Number")


def _decode(text: str, start: int) -> tuple[Any, int]:
    if len(text) > _LARGE:
        with contextlib.suppress(json.JSONDecodeError):
            return json_pieces.decode(text, start)
    return _DECODER.raw_decode(text, start)


def _check_surrogates(value: Any) -> None:
    """Half of a surrogate pair, which Python's parser accepts, has no bytes."""
    try:
        dump(value)
    except UnicodeEncodeError:
        raise invalid_argument(
            "JSON Parse error: The surrogate pair in string is invalid."
        ) from None


def _fail(problem: str, text: str, position: int) -> NoReturn:
    offset = len(text[:position].encode("utf-8", _ESCAPE))
    raise invalid_argument(f"JSON Parse error: {problem} at offset: {offset}") from None


def _explain(text: str, start: int, error: json.JSONDecodeError) -> tuple[str, str, int]:
    """What RapidJSON says where Python's parser stopped: problem, text and position."""
    position = error.pos
    match error.msg.split(" at")[0]:
        case "Expecting property name enclosed in double quotes":
            problem = "Missing a name for object member."
        case "Expecting ':' delimiter":
            problem = "Missing a colon after a name of object member."
        case "Expecting ',' delimiter":
            problem, position = _explain_missing_comma(text, start, position)
        case "Unterminated string starting":
            cut = (len(text) - len(text.rstrip("\\"))) % 2  # in the middle of an escape
            problem, position = (_BAD_ESCAPE if cut else _NO_QUOTE), len(text) - cut
        case "Invalid control character":
            problem = _NO_QUOTE if text[position] == "\0" else _BAD_ESCAPE
        case "Invalid \\escape":
            problem = _BAD_ESCAPE
        case "Invalid \\uXXXX escape":
            problem, position = "Incorrect hex digit after \\u escape in string.", position - 1
        case _:
            problem, position = _explain_missing_value(text, start, position)
    return problem, text, position


def _explain_missing_comma(text: str, start: int, position: int) -> tuple[str, int]:
    rest = text[position : position + 2]
    if rest and text[position - 1].isdigit():
        if rest[0] == ".":
            return "Miss fraction part in number.", position + 1
        if rest[0] in "eE":
            signed = rest[1:] in ("+", "-")
            return "Miss exponent in number.", position + 1 + signed
    # In a list exactly if a bracket in this place satisfies the parser.
    try:
        _DECODER.raw_decode(text[:position] + "]", start)
    except json.JSONDecodeError as error:
        if error.pos == position:
            return "Missing a comma or '}' after an object member.", position
    return "Missing a comma or ']' after an array element.", position


def _explain_missing_value(text: str, start: int, position: int) -> tuple[str, int]:
    if position == start == len(text):
        return f"{_EMPTY}.", position
    # RapidJSON stops within a literal, not before it.
    rest = text[position : position + max(map(len, _LITERALS))]
    return _INVALID, position + max(_common_prefix(rest, literal) for literal in _LITERALS)


def _common_prefix(left: str, right: str) -> int:
    matching = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        matching += 1
    return matching
