"""JSON of the REST interface: texts, tensors and back, numbers, errors."""

from __future__ import annotations

import base64
import contextlib
import json
import string
from typing import Any

import hypothesis.extra.numpy as np_strategies
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tensorflow.core.protobuf import meta_graph_pb2

from serving.errors import ServingError
from serving.rest import json_pieces, json_tensor, json_text
from serving.rest.json_tensor import Form

DTYPES: dict[Any, tf.DType] = {
    np.float32: tf.float32,
    np.float64: tf.float64,
    np.int8: tf.int8,
    np.uint8: tf.uint8,
    np.int16: tf.int16,
    np.int32: tf.int32,
    np.int64: tf.int64,
    np.uint32: tf.uint32,
    np.uint64: tf.uint64,
    np.bool_: tf.bool,
}
SHAPES = np_strategies.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
NUMBERS = st.sampled_from(list(DTYPES)).flatmap(lambda dtype: np_strategies.arrays(dtype, SHAPES))
STRINGS = np_strategies.arrays(object, SHAPES, elements=st.binary(max_size=8), fill=st.nothing())
ARRAYS = NUMBERS | STRINGS
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)


def info(dtype: tf.DType) -> meta_graph_pb2.TensorInfo:
    return meta_graph_pb2.TensorInfo(name="x:0", dtype=dtype.as_datatype_enum)


def infos(**dtypes: tf.DType) -> dict[str, meta_graph_pb2.TensorInfo]:
    return {alias: info(dtype) for alias, dtype in dtypes.items()}


def dtype_of(array: Any) -> tf.DType:
    return DTYPES.get(array.dtype.type, tf.string)


def decode(body: str | bytes, **dtypes: tf.DType) -> dict[str, Any]:
    document = json_text.parse(body.encode() if isinstance(body, str) else body)
    return json_tensor.decode(document, infos(**dtypes))[0]


def error_of(body: str | bytes, **dtypes: tf.DType) -> str:
    with pytest.raises(ServingError) as caught:
        decode(body, **dtypes)
    return caught.value.message


def encoded(form: Form, **outputs: Any) -> str:
    return json_tensor.encode(outputs, form).decode()


def array(values: Any, dtype: Any) -> Any:
    return np.array(values, dtype)


def same(left: Any, right: Any) -> None:
    assert left.shape == right.shape
    assert left.dtype == right.dtype
    if left.dtype == object:
        assert left.tolist() == right.tolist()
    else:
        np.testing.assert_array_equal(left, right)


# --- round trips ----------------------------------------------------------------------------


@given(value=ARRAYS)
def test_columns_come_back_as_they_went(value: Any) -> None:
    body = json_tensor.encode({"x": value}, Form.COLUMNS)
    feeds = decode(body.replace(b"outputs", b"inputs"), x=dtype_of(value))
    if value.size:
        same(feeds["x"], value)
    else:  # what follows an empty dimension is not written
        assert feeds["x"].size == 0


@given(value=ARRAYS.filter(lambda value: value.ndim > 0 and value.size > 0))
def test_rows_come_back_as_they_went(value: Any) -> None:
    body = json_tensor.encode({"x": value}, Form.ROWS)
    same(decode(body.replace(b"predictions", b"instances"), x=dtype_of(value))["x"], value)


@given(data=st.data(), rows=st.integers(1, 4))
def test_rows_of_several_inputs_come_back_as_they_went(data: st.DataObject, rows: int) -> None:
    shapes = np_strategies.array_shapes(min_dims=0, max_dims=2, max_side=3)
    values = {}
    for alias in ("a", "b"):
        shape = (rows, *data.draw(shapes))
        dtype = data.draw(st.sampled_from(list(DTYPES)))
        values[alias] = data.draw(np_strategies.arrays(dtype, shape))
    body = json_tensor.encode(values, Form.ROWS).replace(b"predictions", b"instances")
    feeds = decode(body, **{alias: dtype_of(value) for alias, value in values.items()})
    for alias, value in values.items():
        same(feeds[alias], value)


@given(value=STRINGS)
def test_bytes_outputs_come_back_from_base64(value: Any) -> None:
    body = json_tensor.encode({"x_bytes": value}, Form.COLUMNS)
    json.loads(body)  # is JSON, whatever the bytes are
    feeds = decode(body.replace(b"outputs", b"inputs"), x_bytes=tf.string)
    if value.size:
        same(feeds["x_bytes"], value)


@given(value=JSON_VALUES, dtype=st.sampled_from([*DTYPES.values(), tf.string, tf.half]))
@settings(max_examples=300)
def test_any_value_is_converted_or_refused(value: Any, dtype: tf.DType) -> None:
    for document in (
        {"inputs": value},
        {"instances": value},
        {"instances": [value, value]},
        {"inputs": [[[[1]], [[2]]], [value, value]]},
    ):
        with contextlib.suppress(ServingError):
            feeds, _ = json_tensor.decode(document, infos(x=dtype))
            assert set(feeds) == {"x"}
            assert feeds["x"].dtype == dtype.as_numpy_dtype


@given(st.binary(max_size=40) | st.text(alphabet='{}[]",:\\ueE.-+01tfnNI ').map(str.encode))
def test_any_body_is_parsed_or_refused(body: bytes) -> None:
    with contextlib.suppress(ServingError):
        assert isinstance(json_text.parse(body), dict)


@given(value=JSON_VALUES, piece=st.integers(1, 40), indent=st.sampled_from([None, 1]))
@settings(max_examples=300)
def test_pieces_make_the_same_document(value: Any, piece: int, indent: int | None) -> None:
    text = json.dumps([value, {"k": [value, "],", value]}], indent=indent, ensure_ascii=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_pieces, "_PIECE", piece)
        document, end = json_pieces.decode(text, 0)
    assert end == len(text)
    assert repr(document) == repr(json.loads(text))


@given(
    text=st.text(alphabet='[]{}:,"1a ', max_size=12).map(lambda inner: f'[1,[{inner}],"a,b"]'),
    piece=st.integers(1, 8),
)
@settings(max_examples=300)
def test_pieces_refuse_what_the_parser_refuses(text: str, piece: int) -> None:
    def parsed(decoder: Any) -> Any:
        try:
            return decoder(text, 0)
        except json.JSONDecodeError:
            return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_pieces, "_PIECE", piece)
        assert parsed(json_pieces.decode) == parsed(json.JSONDecoder().raw_decode)


def test_large_bodies_have_the_same_errors() -> None:
    values = ",".join(["1.5"] * 100_000)
    assert decode(f'{{"inputs": [{values}]}}', x=tf.float32)["x"].shape == (100_000,)
    assert error_of(f'{{"inputs": [{values},]}}', x=tf.float32) == (
        f"JSON Parse error: Invalid value. at offset: {len(values) + 13}"
    )
    assert error_of(f'{{"instances": [{values},true]}}', x=tf.float32) == FAILED.format(
        100_000, "JSON Value: true Type: True is not of expected type: float"
    )
    assert error_of(f'{{"instances": [{values},[1]]}}', x=tf.float32) == FAILED.format(
        100_000, "Expecting shape [] but got: [1]"
    )


def test_large_answers_are_whole() -> None:
    rows = np.arange(3 * 20_000, dtype=np.float32).reshape(20_000, 3)
    texts = np.array([str(number).encode() for number in range(20_000)], object)
    answer = json.loads(encoded(Form.ROWS, x=rows, s=texts))["predictions"]
    assert answer == [
        {"x": row, "s": text.decode()} for row, text in zip(rows.tolist(), texts, strict=True)
    ]
    assert json.loads(encoded(Form.COLUMNS, x=rows))["outputs"] == rows.tolist()


# --- numbers --------------------------------------------------------------------------------


@given(np_strategies.arrays(np.float32, st.integers(0, 5)))
@example(array([0.2, 1e-45, 3.4028235e38, 1e-14, 1e28, 16777216, 0.1234567], np.float32))
def test_float32_prints_like_numpy(value: Any) -> None:
    printed = json_tensor.shortest(value)
    np.testing.assert_array_equal(printed.astype(np.float32), value)
    for ours, theirs in zip(printed.tolist(), value, strict=True):
        assert len(repr(abs(ours))) <= len(repr(float(str(abs(theirs)))))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (array(0.2, np.float32), "0.2"),
        (array(0.2, np.float64), "0.2"),
        (array(2, np.float32), "2.0"),
        (array(-0.0, np.float32), "-0.0"),
        (array(1e-7, np.float32), "1e-07"),
        (array(0.1234567, np.float32), "0.1234567"),
        (array(1 / 3, np.float64), "0.3333333333333333"),
        (array([np.nan, np.inf, -np.inf], np.float32), "[NaN,Infinity,-Infinity]"),
        (array(2**53 + 1, np.int64), "9007199254740993"),
        (array(2**64 - 1, np.uint64), "18446744073709551615"),
        (array([True, False], np.bool_), "[true,false]"),
    ],
)
def test_how_numbers_are_written(value: Any, text: str) -> None:
    assert encoded(Form.COLUMNS, y=value) == f'{{"outputs":{text}}}'


def test_numbers_of_narrow_types_keep_their_low_bits() -> None:
    assert decode('{"inputs": [300, -1]}', x=tf.uint8)["x"].tolist() == [44, 255]
    assert decode('{"inputs": [300, -129]}', x=tf.int8)["x"].tolist() == [44, 127]


def test_floats_take_integers_of_any_size() -> None:
    same(
        decode('{"inputs": [1, 1e39, -1e39]}', x=tf.float32)["x"], array([1, np.inf, -np.inf], "f")
    )
    same(decode(f'{{"inputs": {10**30}}}', x=tf.float64)["x"], array(1e30, np.float64))
    for digits in (400, 5000):
        body = f'{{"inputs": {"9" * digits}}}'
        assert "Number too big to be stored in double." in error_of(body, x=tf.float64)


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64, tf.uint32, tf.uint64, tf.int8])
def test_integers_beyond_the_type_are_refused(dtype: tf.DType) -> None:
    wide = dtype if dtype.size >= 4 else tf.int32
    for value in (wide.max, wide.min):
        assert decode(f'{{"inputs": [{value}]}}', x=dtype)["x"].shape == (1,)
    for value in (wide.max + 1, wide.min - 1, 10**30, "1.0", "true"):
        kind = {"true": "True"}.get(str(value), "Number")
        expected = f"JSON Value: {value} Type: {kind} is not of expected type: {dtype.name}"
        assert error_of(f'{{"inputs": [{value}]}}', x=dtype) == expected


# --- strings --------------------------------------------------------------------------------


def test_strings_keep_bytes_that_are_not_utf8() -> None:
    assert decode(b'{"inputs": ["\xff\xfe", "\xc3\xa9", "\\u00e9\\n\\ud83d\\ude00"]}', x=tf.string)[
        "x"
    ].tolist() == [b"\xff\xfe", b"\xc3\xa9", "é\n😀".encode()]
    assert json_tensor.encode({"y": array([b"\xff"], object)}, Form.ROWS) == (
        b'{"predictions":["\xff"]}'
    )


def test_escaped_backslashes_are_no_surrogates() -> None:
    assert decode(r'{"inputs": "\\ud800"}', x=tf.string)["x"].tolist() == rb"\ud800"


def test_base64_in_and_out() -> None:
    text = base64.b64encode(b"\x00\xff").decode()
    body = json.dumps({"instances": [{"b64": text}, "plain", {"b64": text.rstrip("=")}]})
    assert decode(body, x=tf.string)["x"].tolist() == [b"\x00\xff", b"plain", b"\x00\xff"]
    rows = json.dumps({"instances": [{"a": {"b64": text}, "n": 1}]})
    assert decode(rows, a=tf.string, n=tf.int64)["a"].tolist() == [b"\x00\xff"]
    outputs = {"image_bytes": array([b"\x00\xff"], object), "name": array([b"n"], object)}
    assert encoded(Form.ROWS, **outputs) == (
        f'{{"predictions":[{{"image_bytes":{{"b64":"{text}"}},"name":"n"}}]}}'
    )


@pytest.mark.parametrize(
    ("value", "dtype", "text"),
    [
        ({"b64": "?"}, tf.string, "Unable to base64 decode"),
        (
            {"b65": "aGk="},
            tf.string,
            'JSON Value: {\n    "b65": "aGk="\n} not formatted correctly for base64 data',
        ),
        (
            {"b64": "aGk="},
            tf.float32,
            'JSON Value: {\n    "b64": "aGk="\n} Type: Object is not of expected type: float',
        ),
    ],
)
def test_wrong_base64(value: Any, dtype: tf.DType, text: str) -> None:
    assert error_of(json.dumps({"inputs": {"x": [value]}}), x=dtype) == text
    rows = json.dumps({"instances": [{"x": value}]})
    prefix = "Failed to process element: 0 key: x of 'instances' list. Error: INVALID_ARGUMENT: "
    assert error_of(rows, x=dtype) == prefix + text


# --- what is no JSON ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("", "The document is empty"),
        (" \n", "The document is empty. at offset: 2"),
        ("]", "Invalid value. at offset: 0"),
        ("nil", "Invalid value. at offset: 1"),
        ('{"inputs": tru}', "Invalid value. at offset: 14"),
        ('{"inputs": [1,]}', "Invalid value. at offset: 14"),
        ('{"inputs": -}', "Invalid value. at offset: 12"),
        ('{"inputs": NaX}', "Invalid value. at offset: 13"),
        ('{"inputs": 1.}', "Miss fraction part in number. at offset: 13"),
        ('{"inputs": [1e+]}', "Miss exponent in number. at offset: 15"),
        ('{"inputs": [1 2]}', "Missing a comma or ']' after an array element. at offset: 14"),
        ('{"é": [1,[2', "Missing a comma or ']' after an array element. at offset: 12"),
        ('{"a":[1] "b":2}', "Missing a comma or '}' after an object member. at offset: 9"),
        ('{"a":1', "Missing a comma or '}' after an object member. at offset: 6"),
        ('{"a" 1}', "Missing a colon after a name of object member. at offset: 5"),
        ('{"a":1,}', "Missing a name for object member. at offset: 7"),
        ("{1:2}", "Missing a name for object member. at offset: 1"),
        ('{"a', "Missing a closing quotation mark in string. at offset: 3"),
        ('{"a\0', "Missing a closing quotation mark in string. at offset: 3"),
        ('{"a\\', "Invalid escape character in string. at offset: 3"),
        ('{"a\\x"}', "Invalid escape character in string. at offset: 3"),
        ('{"a\n"}', "Invalid escape character in string. at offset: 3"),
        ('{"a\\u12x4"}', "Incorrect hex digit after \\u escape in string. at offset: 3"),
        ('{"a\\ud800": 1}', "The surrogate pair in string is invalid."),
        ('{"a": "\\uDfFf"}', "The surrogate pair in string is invalid."),
        ("{} x", "The document root must not be followed by other values. at offset: 3"),
    ],
)
def test_parse_errors_are_those_of_rapidjson(body: str, text: str) -> None:
    with pytest.raises(ServingError) as caught:
        json_text.parse(body.encode())
    assert caught.value.message == f"JSON Parse error: {text}"


def test_only_objects_are_requests() -> None:
    assert error_of("[1]", x=tf.float32) == "JSON Value: [\n    1\n] Is not object"


def test_a_byte_order_mark_is_skipped() -> None:
    assert json_text.parse(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_deep_nesting_is_refused() -> None:
    assert "nested too deeply" in error_of('{"inputs":' + "[" * 100_000, x=tf.float32)
    rank_40 = f'{{"inputs":{"[" * 40}1{"]" * 40}}}'
    assert error_of(rank_40, x=tf.float32).startswith("tensor parsing error")


def test_quotes_of_long_values_are_cut() -> None:
    message = error_of(json.dumps({"inputs": [1], "instances": ["long"] * 10_000}), x=tf.float32)
    assert len(message) < 500
    assert message.endswith("'inputs' or 'instances' keys to exist ")


# --- values that do not fit the signature ---------------------------------------------------

FAILED = "Failed to process element: {} of 'instances' list. Error: INVALID_ARGUMENT: {}"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("{}", "Missing 'inputs' or 'instances' key"),
        (
            '{"instances": 1}',
            "JSON Value: {\n    \"instances\": 1\n} Expecting 'instances' to be an list/array",
        ),
        (
            '{"instances": []}',
            "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array",
        ),
        (
            '{"instances": [[1], [1, 2]]}',
            FAILED.format(1, "Expecting tensor size: 1 but got: 2"),
        ),
        (
            '{"instances": [[1, 2], [[1], [2]]]}',
            FAILED.format(1, "Expecting shape [2] but got: [2,1]"),
        ),
        (
            '{"instances": [[1, [2]]]}',
            FAILED.format(0, "Encountered list at unexpected level: 1 expected < 1"),
        ),
        (
            '{"instances": [[[1], 2]]}',
            FAILED.format(
                0,
                "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
            ),
        ),
        (
            '{"instances": [1, "a"]}',
            FAILED.format(1, 'JSON Value: "a" Type: String is not of expected type: float'),
        ),
        (
            '{"instances": [1, null]}',
            FAILED.format(1, "JSON Value: null Type: Null is not of expected type: float"),
        ),
        (
            '{"instances": [1, {"x": 2}]}',
            "Expecting value/list but got object at item 1 of input list",
        ),
        (
            '{"instances": [{"x": 2}, 1]}',
            "Expecting object but got list at item 1 of input list",
        ),
        (
            '{"inputs": [[1, 2], [3]]}',
            "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
        ),
        (
            '{"inputs": [[[1], [2]], [3, 4]]}',
            "JSON Value: 3 found at incorrect level: 3 in the JSON DOM. Expected at level: 3",
        ),
        ('{"inputs": {"y": 1}}', "Missing named input: x in 'inputs' object."),
    ],
)
def test_errors_of_one_input(body: str, text: str) -> None:
    assert error_of(body, x=tf.float32) == text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            '{"instances": [1]}',
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map",
        ),
        (
            '{"inputs": [1]}',
            "inputs is a plain value/list, but expecting an object as multiple input tensors "
            "required as per tensorinfo_map",
        ),
        (
            '{"instances": [{"a": 1, "b": 2}, {"a": 1}]}',
            "Failed to process element: 1 of 'instances' list. JSON object: {\n    \"a\": 1\n} "
            "keys must be equal to: a,b",
        ),
        (
            '{"instances": [{"a": 1, "b": 2, "c": 3}]}',
            "Failed to process element: 0 key: c of 'instances' list. Error: INVALID_ARGUMENT: "
            "JSON object: does not have named input: c",
        ),
        (
            '{"instances": [{"a": 1, "b": 2.5}]}',
            "Failed to process element: 0 key: b of 'instances' list. Error: INVALID_ARGUMENT: "
            "JSON Value: 2.5 Type: Number is not of expected type: int32",
        ),
        ('{"inputs": {"a": 1}}', "Missing named input: b in 'inputs' object."),
    ],
)
def test_errors_of_several_inputs(body: str, text: str) -> None:
    assert error_of(body, a=tf.float32, b=tf.int32) == text


def test_columns_may_have_further_names() -> None:
    feeds = decode('{"inputs": {"a": [1], "b": [[2]], "c": "?"}}', a=tf.float32, b=tf.int32)
    same(feeds["a"], array([1], np.float32))
    same(feeds["b"], array([[2]], np.int32))


@pytest.mark.parametrize(("dtype", "name"), [(tf.half, "half"), (tf.complex64, "complex64")])
def test_types_that_json_does_not_have(dtype: tf.DType, name: str) -> None:
    with pytest.raises(ServingError) as caught:
        decode('{"inputs": [1]}', x=dtype)
    assert caught.value.code.name == "UNIMPLEMENTED"
    assert caught.value.message == f"Conversion of JSON Value: 1 to type: {name}"
    with pytest.raises(ServingError) as caught:
        encoded(Form.ROWS, y=np.zeros([1], dtype.as_numpy_dtype))
    assert caught.value.code.name == "INVALID_ARGUMENT"
    assert caught.value.message == f"Failed to write JSON value for tensor type: {name}"


# --- answers --------------------------------------------------------------------------------


def test_answers_of_several_outputs() -> None:
    outputs = {
        "ids": array([[b"a", b"b"], [b"c", b""]], object),
        "scores": array([[0.5, 2], [1e-3, 0]], np.float32),
    }
    assert encoded(Form.ROWS, **outputs) == (
        '{"predictions":[{"ids":["a","b"],"scores":[0.5,2.0]},'
        '{"ids":["c",""],"scores":[0.001,0.0]}]}'
    )
    assert encoded(Form.COLUMNS, **outputs) == (
        '{"outputs":{"ids":[["a","b"],["c",""]],"scores":[[0.5,2.0],[0.001,0.0]]}}'
    )


def test_rows_need_a_common_batch_size() -> None:
    for outputs, text in [
        ({"y": array(1, "f")}, "Tensor name: y has no shape information "),
        (
            {"y": np.zeros([2]), "z": np.zeros([3])},
            "Tensor name: z has inconsistent batch size: 3 expecting: 2",
        ),
        ({}, "Cannot convert empty tensor map to JSON"),
    ]:
        with pytest.raises(ServingError) as caught:
            encoded(Form.ROWS, **outputs)
        assert caught.value.message == text


def test_strings_are_escaped() -> None:
    text = string.printable + "é\u2028\x7f"
    answer = encoded(Form.COLUMNS, y=array([text.encode()], object))
    assert json.loads(answer) == {"outputs": [text]}
    assert "é" in answer
