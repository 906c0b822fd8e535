"""Predict's JSON to arrays and back, as of TensorFlow Serving 2.16 (util/json_tensor.cc).

Requests come by row, `{"instances": [..]}`, one element for each row of the batch, or by column,
`{"inputs": ..}`, one tensor for each input; answers have the form of their request. Well-formed
values are converted by whole lists at once. Only if that fails are they walked one by one, in
TensorFlow Serving's order, to find the error it would report.
"""

from __future__ import annotations

import base64
import enum
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2

from serving.errors import ServingError, invalid_argument
from serving.rest.json_text import dump, quote, to_bytes, to_text, type_name
from serving.tensors import Array

# Outputs of this name are sent as {"b64": ..}, other strings as they are.
_BYTES_SUFFIX = "_bytes"
_B64 = "b64"

_FLOATS = {types_pb2.DT_FLOAT: np.float32, types_pb2.DT_DOUBLE: np.float64}
_INT32 = range(-(2**31), 2**31)
# What a number may be to be taken. The narrow types take any int32 and keep its low bits.
_INTEGERS: dict[int, tuple[Any, range]] = {
    types_pb2.DT_INT8: (np.int8, _INT32),
    types_pb2.DT_UINT8: (np.uint8, _INT32),
    types_pb2.DT_INT16: (np.int16, _INT32),
    types_pb2.DT_INT32: (np.int32, _INT32),
    types_pb2.DT_INT64: (np.int64, range(-(2**63), 2**63)),
    types_pb2.DT_UINT32: (np.uint32, range(2**32)),
    types_pb2.DT_UINT64: (np.uint64, range(2**64)),
}
_WRITABLE = {np.dtype(np.bool_), *(np.dtype(dtype) for dtype, _ in _INTEGERS.values())}

# numpy has no arrays of higher rank.
_MAX_RANK = 32
# Elements that are searched for errors together.
_PIECE = 1024
# Elements that are written together.
_BLOCK = 8192
# float32 needs at most nine digits, and no number of six changes in it.
_DIGITS = np.array([9, 8, 7, 6])
_POWERS = 10.0 ** np.arange(23)  # exact in float64
# Between these, nine digits are up to 22 places from the decimal point.
_SMALL, _LARGE = 1e-14, 1e28


class Form(enum.Enum):
    """Form of a request, and of its answer."""

    ROWS = "instances"
    COLUMNS = "inputs"


# --- requests -------------------------------------------------------------------------------


def decode(document: Mapping[str, Any], infos: Mapping[str, Any]) -> tuple[dict[str, Array], Form]:
    """Decodes the tensors of a Predict request.

    Args:
      document: the parsed body.
      infos: input alias -> TensorInfo, of the signature that is called.

    Returns:
      input alias -> value, and the form to answer in.

    Raises:
      ServingError: INVALID_ARGUMENT, the values do not fit the signature; UNIMPLEMENTED, JSON has
        no values of an input's type.
    """
    if "instances" in document:
        if "inputs" in document:
            raise invalid_argument(
                f"JSON Value: {quote(document)} Not formatted correctly expecting only one of "
                "'inputs' or 'instances' keys to exist "
            )
        return _decode_rows(document, infos), Form.ROWS
    if "inputs" in document:
        return _decode_columns(document["inputs"], infos), Form.COLUMNS
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def _decode_rows(document: Mapping[str, Any], infos: Mapping[str, Any]) -> dict[str, Array]:
    rows = document["instances"]
    if not isinstance(rows, list):
        raise invalid_argument(
            f"JSON Value: {quote(document)} Expecting 'instances' to be an list/array"
        )
    if not rows:
        raise invalid_argument(f"JSON Value: {quote(document)} No values in 'instances' array")
    if not isinstance(rows[0], dict) and len(infos) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    feeds = _convert_rows(rows, infos)
    if feeds is None:
        raise _error_of_rows(rows, infos)
    return feeds


def _convert_rows(rows: list[Any], infos: Mapping[str, Any]) -> dict[str, Array] | None:
    """The batch of some rows; None if there is something wrong with one."""
    if not _is_object(rows[0]):
        if any(map(_is_object, rows)):
            return None
        columns = {next(iter(infos)): rows}
    elif all(isinstance(row, dict) and row.keys() == infos.keys() for row in rows):
        columns = {alias: [row[alias] for row in rows] for alias in infos}
    else:
        return None
    feeds = {}
    for alias, column in columns.items():
        array = _convert(column, infos[alias].dtype)
        if array is None:
            return None
        feeds[alias] = array
    return feeds


def _decode_columns(value: Any, infos: Mapping[str, Any]) -> dict[str, Array]:
    if _is_object(value):
        columns = value
        aliases = list(infos)
    else:
        if len(infos) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        aliases = list(infos)
        columns = {aliases[0]: value}
    feeds = {}
    for alias in aliases:
        if alias not in columns:
            raise invalid_argument(f"Missing named input: {alias} in 'inputs' object.")
        dtype = infos[alias].dtype
        array = _convert(columns[alias], dtype)
        if array is None:
            raise _error_of(_walk, columns[alias], dtype)
        feeds[alias] = array
    return feeds


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: Mapping[str, Any]) -> bool:
    return len(value) == 1 and isinstance(value.get(_B64), str)


def as_base64(value: Any) -> bytes | None:
    """The bytes of {"b64": ..}; None for any other value.

    Raises:
      ServingError: INVALID_ARGUMENT, the text is not base64.
    """
    if not isinstance(value, dict) or not _is_base64(value):
        return None
    # Padding and blanks are optional.
    compact = "".join(value[_B64].split()).rstrip("=")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except ValueError:
        raise invalid_argument("Unable to base64 decode") from None


def _convert(value: Any, dtype: int) -> Array | None:
    """The array that a JSON value stands for; None if there is something wrong with it."""
    shape = _shape(value)
    flat = [value]
    for size in shape:
        if set(map(type, flat)) != {list} or set(map(len, flat)) != {size}:
            return None
        flat = list(itertools.chain.from_iterable(flat))
        if not flat:
            return np.empty(shape, tf.as_dtype(dtype).as_numpy_dtype)
    array = _convert_leaves(flat, dtype)
    return None if array is None else array.reshape(shape)


def _shape(value: Any) -> list[int]:
    """Shape of the first elements; the others have to agree."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    if len(shape) > _MAX_RANK:
        raise invalid_argument(f"tensor parsing error: rank {len(shape)} is more than {_MAX_RANK}")
    return shape


def _convert_leaves(flat: list[Any], dtype: int) -> Array | None:
    types = set(map(type, flat))
    if dtype == types_pb2.DT_STRING:
        return _strings(flat, types)
    if dtype in _FLOATS:
        return _numbers(flat, _FLOATS[dtype]) if types <= {float, int} else None
    if dtype == types_pb2.DT_BOOL:
        return np.array(flat, np.bool_) if types == {bool} else None
    if dtype in _INTEGERS and types == {int}:
        narrow, allowed = _INTEGERS[dtype]
        if min(flat) in allowed and max(flat) in allowed:
            wide = np.uint64 if dtype == types_pb2.DT_UINT64 else np.int64
            return np.array(flat, wide).astype(narrow)
    return None


def _strings(flat: list[Any], types: set[type]) -> Array | None:
    array = np.empty(len(flat), object)
    if types == {str}:
        array[:] = [to_bytes(text) for text in flat]
        return array
    if not types <= {str, dict}:
        return None
    try:
        data = [to_bytes(v) if isinstance(v, str) else as_base64(v) for v in flat]
    except ServingError:
        return None
    if None in data:
        return None
    array[:] = data
    return array


def _numbers(flat: list[Any], dtype: Any) -> Array:
    try:
        wide = np.array(flat, np.float64)
    except OverflowError:
        raise invalid_argument("JSON Parse error: Number too big to be stored in double.") from None
    with np.errstate(over="ignore"):  # infinite, as in C++
        return wide.astype(dtype)


# --- errors of requests ---------------------------------------------------------------------


def _error_of(check: Callable[..., Any], *values: Any) -> ServingError:
    """The error that `check(*values)` raises."""
    try:
        check(*values)
    except ServingError as error:
        return error
    raise AssertionError("the values cannot be converted, but nothing is wrong with them")


def _error_of_rows(rows: list[Any], infos: Mapping[str, Any]) -> ServingError:
    for start in range(0, len(rows), _PIECE):
        piece = rows[start : start + _PIECE]
        if _convert_rows([rows[0], *piece], infos) is None:
            return _error_of(_walk_rows, rows[0], start, piece, infos)
    raise AssertionError("the rows cannot be converted together, but one by one they can")


def _walk_rows(first: Any, start: int, rows: Sequence[Any], infos: Mapping[str, Any]) -> None:
    """Checks the rows from number `start` on against the first one of the request."""
    by_name = _is_object(first)
    seen: dict[str, tuple[int, list[int]]] = {}
    for position, row in enumerate([first, *rows], start - 1):
        failed = f"Failed to process element: {max(position, 0)}"
        if _is_object(row) != by_name:
            if by_name:
                raise invalid_argument(
                    f"Expecting object but got list at item {position} of input list"
                )
            raise invalid_argument(
                f"Expecting value/list but got object at item {position} of input list"
            )
        if not by_name:
            alias = next(iter(infos))
            _walk_item(row, alias, infos, seen, f"{failed} of 'instances' list. Error: ")
            continue
        for key, value in row.items():
            _walk_item(value, key, infos, seen, f"{failed} key: {key} of 'instances' list. Error: ")
        if row.keys() != infos.keys():
            raise invalid_argument(
                f"{failed} of 'instances' list. JSON object: {quote(row)} keys must be equal to: "
                f"{','.join(sorted(infos))}"
            )


def _walk_item(
    value: Any,
    alias: str,
    infos: Mapping[str, Any],
    seen: dict[str, tuple[int, list[int]]],
    prefix: str,
) -> None:
    """Checks a value of one row; `seen` has the size and shape of each input in the first row."""
    try:
        if alias not in infos:
            raise invalid_argument(f"JSON object: does not have named input: {alias}")
        size, shape = _walk(value, infos[alias].dtype), _shape(value)
        first_size, first_shape = seen.setdefault(alias, (size, shape))
        if size != first_size:
            raise invalid_argument(f"Expecting tensor size: {first_size} but got: {size}")
        if shape != first_shape:
            raise invalid_argument(
                f"Expecting shape {_print(first_shape)} but got: {_print(shape)}"
            )
    except ServingError as error:
        raise invalid_argument(f"{prefix}{error.code.name}: {error.message}") from None


def _print(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _walk(value: Any, dtype: int) -> int:
    """Checks a value element by element and returns how many there are."""
    shape = _shape(value)

    def walk(value: Any, level: int) -> int:
        if not isinstance(value, list):
            if level != len(shape):
                raise invalid_argument(
                    f"JSON Value: {quote(value)} found at incorrect level: {level + 1} "
                    f"in the JSON DOM. Expected at level: {len(shape)}"
                )
            _check_leaf(value, dtype)
            return 1
        if level >= len(shape):
            raise invalid_argument(
                f"Encountered list at unexpected level: {level} expected < {len(shape)}"
            )
        if len(value) != shape[level]:
            raise invalid_argument(
                f"Encountered list at unexpected size: {len(value)} at level: {level} "
                f"expected size: {shape[level]}"
            )
        count = 0
        for start in range(0, len(value), _PIECE):
            piece = value[start : start + _PIECE]
            if level == len(shape) - 1 and _convert_leaves(piece, dtype) is not None:
                count += len(piece)
            else:
                count += sum(walk(element, level + 1) for element in piece)
        return count

    return walk(value, 0)


def _check_leaf(value: Any, dtype: int) -> None:
    name = _dtype_name(dtype)
    if isinstance(value, dict) and dtype == types_pb2.DT_STRING:
        if as_base64(value) is None:
            raise invalid_argument(
                f"JSON Value: {quote(value)} not formatted correctly for base64 data"
            )
    elif isinstance(value, dict) or (
        _convert_leaves([value], dtype) is None and _is_readable(dtype)
    ):
        raise invalid_argument(
            f"JSON Value: {quote(value)} Type: {type_name(value)} is not of expected type: {name}"
        )
    elif not _is_readable(dtype):
        raise ServingError(
            grpc.StatusCode.UNIMPLEMENTED,
            f"Conversion of JSON Value: {quote(value)} to type: {name}",
        )


def _is_readable(dtype: int) -> bool:
    return dtype in {*_FLOATS, *_INTEGERS, types_pb2.DT_BOOL, types_pb2.DT_STRING}


def _dtype_name(dtype: int) -> str:
    return types_pb2.DataType.Name(dtype).removeprefix("DT_").lower()


# --- answers --------------------------------------------------------------------------------


def encode(outputs: Mapping[str, Array], form: Form) -> bytes:
    """Encodes the answer of a Predict request.

    Args:
      outputs: output alias -> value; strings are object arrays of bytes.
      form: of the request.

    Raises:
      ServingError: INVALID_ARGUMENT, the outputs have no common batch size, or JSON has no values
        of their type.
    """
    if not outputs:
        raise invalid_argument("Cannot convert empty tensor map to JSON")
    if form is Form.ROWS:
        _check_batch(outputs)
        rows = b",".join(_dump_rows(outputs))
        return b'{"predictions":[' + rows + b"]}"
    columns = {alias: _dump_column(alias, array) for alias, array in outputs.items()}
    if len(columns) == 1:
        (answer,) = columns.values()
    else:
        answer = b"{" + b",".join(dump(alias) + b":" + c for alias, c in columns.items()) + b"}"
    return b'{"outputs":' + answer + b"}"


def _dump_rows(outputs: Mapping[str, Array]) -> Iterator[bytes]:
    for block in _blocks(*outputs.values()):
        columns = {alias: _to_lists(alias, array[block]) for alias, array in outputs.items()}
        if len(columns) == 1:
            (rows,) = columns.values()
        else:
            rows = [
                dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
            ]
        yield dump(rows)[1:-1]


def _dump_column(alias: str, array: Array) -> bytes:
    if not array.ndim:
        return dump(_to_lists(alias, array))
    blocks = (dump(_to_lists(alias, array[block]))[1:-1] for block in _blocks(array))
    return b"[" + b",".join(blocks) + b"]"


def _blocks(*arrays: Array) -> Iterator[slice]:
    """Slices of the rows that the arrays have in common, of a convenient size.

    Between two of them other threads can run, which they cannot while Python writes JSON.
    """
    rows = len(arrays[0])
    size = sum(array.size for array in arrays)
    step = max(_BLOCK * rows // max(size, 1), 1)
    for start in range(0, rows, step):
        yield slice(start, start + step)


def _check_batch(outputs: Mapping[str, Array]) -> None:
    batch_size = None
    for alias, array in outputs.items():
        if not array.ndim:
            raise invalid_argument(f"Tensor name: {alias} has no shape information ")
        if batch_size is not None and len(array) != batch_size:
            raise invalid_argument(
                f"Tensor name: {alias} has inconsistent batch size: {len(array)} "
                f"expecting: {batch_size}"
            )
        batch_size = len(array)


def _to_lists(alias: str, array: Array) -> Any:
    if array.dtype == np.float32:
        return shortest(array).tolist()
    if array.dtype == np.float64 or array.dtype in _WRITABLE or not array.size:
        return array.tolist()
    if array.dtype != object:
        name = _dtype_name(tf.as_dtype(array.dtype).as_datatype_enum)
        raise invalid_argument(f"Failed to write JSON value for tensor type: {name}")
    texts = np.empty(array.size, object)
    if alias.endswith(_BYTES_SUFFIX):
        texts[:] = [{_B64: base64.b64encode(data).decode()} for data in array.ravel().tolist()]
    else:
        texts[:] = [to_text(data) for data in array.ravel().tolist()]
    return texts.reshape(array.shape).tolist()


def shortest(array: Array) -> Array:
    """The float64 values that print with the fewest digits and round to these float32 values.

    float32 0.2 is 0.20000000298023224 as float64, but 0.2 rounds to the same float32.
    """
    # Flat: the digits take a dimension of their own, and numpy has no more than an input may have.
    flat = array.ravel()
    exact = flat.astype(np.float64)
    size = np.abs(exact)
    regular = (size >= _SMALL) & (size < _LARGE)
    exponents = np.floor(np.log10(np.where(regular, size, 1.0))).astype(np.int64)
    # The quotient of an integer and an exact power of ten is the float64 nearest to the decimal
    # number, which is what prints with its digits.
    places = _DIGITS.reshape(-1, 1) - 1 - exponents
    up, down = _POWERS[np.maximum(places, 0)], _POWERS[np.maximum(-places, 0)]
    rounded = np.rint(exact * up / down) * down / up
    fits = rounded.astype(np.float32) == flat
    best = exact
    for candidate, fit in zip(rounded, fits, strict=True):
        best = np.where(fit, candidate, best)
    extreme = ~regular & (size > 0) & np.isfinite(size)
    if extreme.any():
        best[extreme] = [float(str(value)) for value in flat[extreme]]
    return best.reshape(array.shape)
