"""Answers written as bytes are what protobuf would have written."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import model_pb2, predict_pb2

from serving.tensors import fill_proto
from serving.wire import predict_response, tensor_proto

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
DTYPES = [np.float32, np.float64, np.int64, np.int8, np.uint64, np.bool_, np.float16, np.complex64]
LONG = st.sampled_from([b"x" * 127, b"y" * 128, b"z" * 20_000])
VALUES = st.one_of(
    st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)),
    hnp.arrays(object, SHAPES, elements=st.one_of(st.binary(max_size=9), LONG), fill=st.nothing()),
)


@given(VALUES)
def test_tensors_are_written_as_protobuf_writes_them(value: np.ndarray[Any, Any]) -> None:
    expected = tensor_pb2.TensorProto()
    fill_proto(value, expected)
    assert tensor_proto(value) == expected.SerializeToString()


def test_arrays_that_are_views_and_types_that_numpy_does_not_have() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    for value in (values.T, values[::2, 1:]):
        proto = tensor_pb2.TensorProto.FromString(tensor_proto(value))
        assert list(proto.float_val) == value.ravel().tolist()
    brain = np.ones(2, ml_dtypes.bfloat16)
    assert tensor_pb2.TensorProto.FromString(tensor_proto(brain)).half_val == [0x3F80, 0x3F80]


@given(st.dictionaries(st.text(max_size=200), VALUES, max_size=3), st.integers(0, 2**63 - 1))
def test_responses_are_read_as_they_were_written(
    outputs: dict[str, np.ndarray[Any, Any]], version: int
) -> None:
    spec = model_pb2.ModelSpec(name="m", signature_name="s" * 200)
    spec.version.value = version
    expected = predict_pb2.PredictResponse(model_spec=spec)
    for alias, value in outputs.items():
        fill_proto(value, expected.outputs[alias])
    written = predict_response(spec.SerializeToString(), outputs.items())
    read = predict_pb2.PredictResponse.FromString(written)
    assert read.SerializeToString(deterministic=True) == expected.SerializeToString(
        deterministic=True
    )


def test_a_type_without_an_encoding_is_named() -> None:
    with pytest.raises(TypeError, match=r"output when cannot be sent: .*datetime64"):
        predict_response(b"", [("when", np.zeros(1, "M8[s]"))])
