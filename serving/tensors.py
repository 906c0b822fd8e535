"""TensorProto to numpy and back, in the encodings of TensorFlow Serving.

Requests may carry either the typed `*_val` field or `tensor_content`; answers always carry the
typed field, because that is what clients of TensorFlow Serving read (`float_val`, `string_val`..).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
from tensorflow.core.framework import tensor_pb2, types_pb2

Array = npt.NDArray[Any]

# No gRPC message is larger than this, so no honest tensor is either.
_MAX_TENSOR_BYTES = 2**31 - 1
# Without this limit a request of a few bytes (one value, a huge shape) could claim all memory.
_MAX_REPEATED_BYTES = 2**26
_PIECE = 2**18  # values, read in some 10 ms


class TensorParseError(ValueError):
    """A TensorProto is inconsistent: its shape, type and values do not fit together."""


class _Encoding(NamedTuple):
    """How one dtype travels: the field, the field's own type and the type in memory."""

    code: int
    field: str
    wire: np.dtype[Any]
    dtype: np.dtype[Any]
    bits: bool  # the field holds bit patterns or pairs: reinterpret, do not convert
    is_plain: bool  # the field holds the values themselves


def _encoding(code: int, field: str, wire: Any, dtype: Any, bits: bool = False) -> _Encoding:
    is_plain = np.dtype(wire) == np.dtype(dtype)
    return _Encoding(code, field, np.dtype(wire), np.dtype(dtype), bits, is_plain)


_ENCODINGS = (
    _encoding(types_pb2.DT_FLOAT, "float_val", np.float32, np.float32),
    _encoding(types_pb2.DT_DOUBLE, "double_val", np.float64, np.float64),
    _encoding(types_pb2.DT_INT32, "int_val", np.int32, np.int32),
    _encoding(types_pb2.DT_INT16, "int_val", np.int32, np.int16),
    _encoding(types_pb2.DT_INT8, "int_val", np.int32, np.int8),
    _encoding(types_pb2.DT_UINT16, "int_val", np.int32, np.uint16),
    _encoding(types_pb2.DT_UINT8, "int_val", np.int32, np.uint8),
    _encoding(types_pb2.DT_INT64, "int64_val", np.int64, np.int64),
    _encoding(types_pb2.DT_UINT32, "uint32_val", np.uint32, np.uint32),
    _encoding(types_pb2.DT_UINT64, "uint64_val", np.uint64, np.uint64),
    _encoding(types_pb2.DT_BOOL, "bool_val", np.bool_, np.bool_),
    _encoding(types_pb2.DT_STRING, "string_val", object, object),
    _encoding(types_pb2.DT_HALF, "half_val", np.uint16, np.float16, bits=True),
    _encoding(types_pb2.DT_BFLOAT16, "half_val", np.uint16, ml_dtypes.bfloat16, bits=True),
    _encoding(types_pb2.DT_COMPLEX64, "scomplex_val", np.float32, np.complex64, bits=True),
    _encoding(types_pb2.DT_COMPLEX128, "dcomplex_val", np.float64, np.complex128, bits=True),
)
_BY_CODE = {encoding.code: encoding for encoding in _ENCODINGS}
_BY_DTYPE = {encoding.dtype: encoding for encoding in _ENCODINGS}


def to_array(proto: tensor_pb2.TensorProto) -> Array:
    """Decodes a tensor of a request.

    If fewer typed values than elements were sent, the last one is repeated (none: zeros). The
    result may share memory with `tensor_content` and is then read-only.

    Raises:
      TensorParseError: unknown type or shape, more values than elements, `tensor_content` of the
        wrong length.
    """
    encoding = _BY_CODE.get(proto.dtype)
    if encoding is None:
        raise TensorParseError(f"dtype {proto.dtype} cannot be decoded")
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if shape and min(shape) < 0:
        raise TensorParseError(f"shape {shape} has a negative dimension")
    count = math.prod(shape)
    content = proto.tensor_content
    values = getattr(proto, encoding.field)
    if not content and encoding.is_plain and len(values) == count <= _PIECE:
        # As nearly all tensors are sent; the other branches find the same, in twice the time.
        flat: Array = np.fromiter(values, encoding.dtype, count)
    elif count * encoding.dtype.itemsize > _MAX_TENSOR_BYTES:
        raise TensorParseError(f"shape {shape} is larger than any message can be")
    elif content:
        flat = _from_content(content, encoding, count)
    else:
        flat = _from_values(values, encoding, count)
    try:
        return flat.reshape(shape)
    except ValueError as error:
        # numpy's limit on the number of dimensions
        raise TensorParseError(str(error)) from error


def _from_content(content: bytes, encoding: _Encoding, count: int) -> Array:
    if encoding.dtype.hasobject:
        raise TensorParseError("strings are sent in string_val, not in tensor_content")
    expected = count * encoding.dtype.itemsize
    if len(content) != expected:
        raise TensorParseError(f"tensor_content has {len(content)} bytes, expected {expected}")
    return np.frombuffer(content, dtype=encoding.dtype)


def _from_values(values: Any, encoding: _Encoding, count: int) -> Array:
    # half_val and int_val are int32 on the wire; narrower types keep the low bits, as in C++.
    if encoding.field == "half_val":
        flat: Array = _read(values, np.dtype(np.int32)).astype(np.uint16)
    else:
        flat = _read(values, encoding.wire)
    if encoding.bits:
        if flat.nbytes % encoding.dtype.itemsize:
            raise TensorParseError("complex values are pairs, an odd number was sent")
        flat = flat.view(encoding.dtype)
    elif encoding.wire != encoding.dtype:
        flat = flat.astype(encoding.dtype)
    missing = count - len(flat)
    if missing == 0:
        return flat
    if missing < 0:
        raise TensorParseError(f"{len(flat)} values were sent for {count} elements")
    text = len(flat[-1]) if encoding.dtype.hasobject and len(flat) else 0
    if missing * (encoding.dtype.itemsize + text) > _MAX_REPEATED_BYTES:
        raise TensorParseError(f"{len(flat)} values cannot be repeated to {count} elements")
    full = np.empty(count, dtype=encoding.dtype)
    full[: len(flat)] = flat
    if len(flat):
        full[len(flat) :] = flat[-1]
    else:
        full[:] = b"" if encoding.dtype.hasobject else 0
    return full


def _read(values: Any, dtype: np.dtype[Any]) -> Array:
    """The values of a repeated field. Other threads get their turn at the interpreter between
    pieces, as numpy holds its lock while it reads one."""
    sent = len(values)
    if sent <= _PIECE:
        return np.fromiter(values, dtype, sent)
    flat: Array = np.empty(sent, dtype)
    for start in range(0, sent, _PIECE):
        flat[start : start + _PIECE] = np.fromiter(values[start : start + _PIECE], dtype)
    return flat


def fill_proto(array: Array, proto: tensor_pb2.TensorProto) -> None:
    """Encodes `array` into an empty TensorProto, in the typed `*_val` field.

    Strings are object arrays of bytes.

    Raises:
      TypeError: there is no encoding for the array's dtype.
    """
    encoding = _BY_DTYPE.get(array.dtype)
    if encoding is None:
        raise TypeError(f"tensors of type {array.dtype} cannot be sent")
    proto.dtype = encoding.code
    shape = proto.tensor_shape
    shape.SetInParent()
    for size in array.shape:
        shape.dim.add().size = size
    flat = array.ravel()
    if encoding.bits:
        flat = flat.view(encoding.wire)
    getattr(proto, encoding.field).extend(flat.tolist())
