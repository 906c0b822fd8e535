"""TensorProto <-> numpy, against TensorFlow's own converters."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis.extra.numpy as np_strategies
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.framework import tensor_pb2, types_pb2

from serving import tensors

DTYPES = [
    np.float32,
    np.float64,
    np.int8,
    np.int16,
    np.int32,
    np.int64,
    np.uint8,
    np.uint16,
    np.uint32,
    np.uint64,
    np.bool_,
    np.float16,
    np.complex64,
    np.complex128,
]
SHAPES = np_strategies.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
NUMBERS = st.sampled_from(DTYPES).flatmap(lambda dtype: np_strategies.arrays(dtype, SHAPES))
BRAIN = np_strategies.arrays(np.uint16, SHAPES).map(lambda bits: bits.view(ml_dtypes.bfloat16))
STRINGS = np_strategies.arrays(object, SHAPES, elements=st.binary(max_size=8), fill=st.nothing())


def encoded(array: Any) -> tensor_pb2.TensorProto:
    proto = tensor_pb2.TensorProto()
    tensors.fill_proto(array, proto)
    return proto


def assert_same(actual: Any, expected: Any) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if expected.dtype.hasobject:
        assert actual.tolist() == expected.tolist()
    else:
        # Bit by bit: NaN payloads and signed zeros must survive too.
        assert actual.tobytes() == expected.tobytes()


def proto_of(dtype: int, shape: list[int], **values: Any) -> tensor_pb2.TensorProto:
    proto = tensor_pb2.TensorProto(dtype=dtype, **values)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


@given(st.one_of(NUMBERS, BRAIN, STRINGS))
@settings(max_examples=200, deadline=None)
def test_round_trip_through_typed_fields(array: Any) -> None:
    proto = encoded(array)
    assert proto.tensor_content == b""
    assert_same(tensors.to_array(proto), array)


@given(st.one_of(NUMBERS, BRAIN))
@settings(max_examples=100, deadline=None)
def test_tensor_content_decodes_to_the_same(array: Any) -> None:
    proto = encoded(array)
    content = tensor_pb2.TensorProto(
        dtype=proto.dtype, tensor_shape=proto.tensor_shape, tensor_content=array.tobytes()
    )
    assert_same(tensors.to_array(content), array)


@given(st.one_of(NUMBERS, STRINGS))
@settings(max_examples=100, deadline=None)
def test_tensorflow_reads_what_we_write_and_we_read_what_it_writes(array: Any) -> None:
    np.testing.assert_array_equal(tf.make_ndarray(encoded(array)), array)
    dtype = tf.string if array.dtype.hasobject else array.dtype
    theirs = tensors.to_array(tf.make_tensor_proto(array, dtype=dtype, shape=array.shape))
    np.testing.assert_array_equal(theirs, array)


@given(
    values=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5),
    dtype=st.sampled_from([tf.int8, tf.int16, tf.int32, tf.uint8, tf.uint16]),
    extra=st.integers(0, 4),
)
@settings(max_examples=50, deadline=None)
def test_short_lists_and_narrow_types_as_in_cpp(
    values: list[int], dtype: tf.DType, extra: int
) -> None:
    proto = proto_of(dtype.as_datatype_enum, [len(values) + extra], int_val=values)
    expected = tf.io.parse_tensor(proto.SerializeToString(), dtype).numpy()
    assert_same(tensors.to_array(proto), expected)


@pytest.mark.parametrize(
    ("proto", "expected"),
    [
        (proto_of(types_pb2.DT_STRING, [2]), [b"", b""]),
        (proto_of(types_pb2.DT_STRING, [3], string_val=[b"a", b"b"]), [b"a", b"b", b"b"]),
        (proto_of(types_pb2.DT_BOOL, [2], bool_val=[True]), [True, True]),
        (proto_of(types_pb2.DT_HALF, [2], half_val=[0x3C00]), [1.0, 1.0]),
        (proto_of(types_pb2.DT_BFLOAT16, [1], half_val=[0x3F80]), [1.0]),
        (proto_of(types_pb2.DT_COMPLEX64, [2], scomplex_val=[1, 2]), [1 + 2j, 1 + 2j]),
        (proto_of(types_pb2.DT_FLOAT, []), 0.0),
        (proto_of(types_pb2.DT_FLOAT, [0, 3]), []),
    ],
    ids=str,
)
def test_repetition(proto: tensor_pb2.TensorProto, expected: Any) -> None:
    assert tensors.to_array(proto).tolist() == expected


@pytest.mark.parametrize(
    "proto",
    [
        proto_of(types_pb2.DT_FLOAT, [2], float_val=[1, 2, 3]),
        proto_of(types_pb2.DT_STRING, [1], string_val=[b"a", b"b"]),
        proto_of(types_pb2.DT_FLOAT, [0], float_val=[1]),
        proto_of(types_pb2.DT_FLOAT, [2], tensor_content=b"1234567"),
        proto_of(types_pb2.DT_FLOAT, [2], tensor_content=b"123456789abc"),
        proto_of(types_pb2.DT_STRING, [1], tensor_content=b"a"),
        proto_of(types_pb2.DT_COMPLEX64, [2], scomplex_val=[1, 2, 3]),
        proto_of(types_pb2.DT_INVALID, [1], float_val=[1]),
        proto_of(types_pb2.DT_RESOURCE, [1]),
        proto_of(types_pb2.DT_FLOAT, [-1], float_val=[1]),
        proto_of(types_pb2.DT_FLOAT, [2**40], float_val=[1]),
        proto_of(types_pb2.DT_FLOAT, [1] * 40, float_val=[1]),
        proto_of(99, [1]),
    ],
    ids=lambda proto: str(proto).replace("\n", " ")[:50],
)
def test_inconsistent_tensors_are_refused(proto: tensor_pb2.TensorProto) -> None:
    with pytest.raises(tensors.TensorParseError):
        tensors.to_array(proto)


def test_array_without_encoding_is_refused() -> None:
    with pytest.raises(TypeError, match="datetime64"):
        encoded(np.zeros(1, "datetime64[s]"))


def test_non_contiguous_arrays_are_encoded_in_their_order() -> None:
    array = np.arange(6, dtype=np.float16).reshape(2, 3).T
    assert_same(tensors.to_array(encoded(array)), np.ascontiguousarray(array))


def test_other_threads_run_while_a_long_field_is_read() -> None:
    sent = np.arange(4_000_000, dtype=np.float32)
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=sent.tolist())
    proto.tensor_shape.dim.add().size = len(sent)
    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(tensors.to_array, proto)
        turns = 0
        while not reading.done():
            time.sleep(0.001)
            turns += 1
    np.testing.assert_array_equal(reading.result(), sent)
    assert turns >= 5  # once per piece; without pieces there is one at the end
