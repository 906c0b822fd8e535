"""The few protocol messages a client needs, built without TensorFlow.

The message modules of tensorflow-serving-api import TensorFlow, which costs a client seconds and
gigabytes. These classes have the same public names and field numbers, so they are the same bytes
on the wire; they live in a descriptor pool of their own and cannot collide with the originals.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
_SERVING = "tensorflow.serving"

# dtype numbers of tensorflow.DataType
DT_FLOAT = 1
DT_STRING = 7
DT_INT64 = 9

_SCALARS = {
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "bool": _Field.TYPE_BOOL,
    "float": _Field.TYPE_FLOAT,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
}


def _add_fields(
    message: descriptor_pb2.DescriptorProto, fields: dict[str, tuple[int, str]]
) -> None:
    """Adds fields given as name -> (number, type); a type ending in [] is repeated."""
    for name, (number, kind) in fields.items():
        label = _Field.LABEL_REPEATED if kind.endswith("[]") else _Field.LABEL_OPTIONAL
        kind = kind.removesuffix("[]")
        if kind in _SCALARS:
            message.field.add(name=name, number=number, label=label, type=_SCALARS[kind])
        else:
            message.field.add(
                name=name,
                number=number,
                label=label,
                type=_Field.TYPE_MESSAGE,
                type_name=f".{kind}",
            )


def _add_tensor_map(
    message: descriptor_pb2.DescriptorProto, name: str, number: int, scope: str
) -> None:
    entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
    entry.options.map_entry = True
    _add_fields(entry, {"key": (1, "string"), "value": (2, "tensorflow.TensorProto")})
    _add_fields(message, {name: (number, f"{scope}.{entry.name}[]")})


def _tensor_file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="tensor.proto", package="tensorflow", syntax="proto3"
    )
    shape = file.message_type.add(name="TensorShapeProto")
    _add_fields(shape.nested_type.add(name="Dim"), {"size": (1, "int64")})
    _add_fields(shape, {"dim": (2, "tensorflow.TensorShapeProto.Dim[]")})
    # Enums travel as int32; the client only compares numbers.
    _add_fields(
        file.message_type.add(name="TensorProto"),
        {
            "dtype": (1, "int32"),
            "tensor_shape": (2, "tensorflow.TensorShapeProto"),
            "tensor_content": (4, "bytes"),
            "float_val": (5, "float[]"),
            "string_val": (8, "bytes[]"),
            "int64_val": (10, "int64[]"),
        },
    )
    return file


def _serving_file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="serving.proto", package=_SERVING, syntax="proto3", dependency=["tensor.proto"]
    )
    # google.protobuf.Int64Value, under a name of its own
    _add_fields(file.message_type.add(name="Int64Value"), {"value": (1, "int64")})
    _add_fields(
        file.message_type.add(name="ModelSpec"),
        {
            "name": (1, "string"),
            "version": (2, f"{_SERVING}.Int64Value"),
            "signature_name": (3, "string"),
            "version_label": (4, "string"),
        },
    )
    request = file.message_type.add(name="PredictRequest")
    _add_fields(
        request, {"model_spec": (1, f"{_SERVING}.ModelSpec"), "output_filter": (3, "string[]")}
    )
    _add_tensor_map(request, "inputs", 2, f"{_SERVING}.PredictRequest")
    response = file.message_type.add(name="PredictResponse")
    _add_fields(response, {"model_spec": (2, f"{_SERVING}.ModelSpec")})
    _add_tensor_map(response, "outputs", 1, f"{_SERVING}.PredictResponse")
    _add_fields(
        file.message_type.add(name="GetModelStatusRequest"),
        {"model_spec": (1, f"{_SERVING}.ModelSpec")},
    )
    _add_fields(
        file.message_type.add(name="StatusProto"),
        {"error_code": (1, "int32"), "error_message": (2, "string")},
    )
    _add_fields(
        file.message_type.add(name="ModelVersionStatus"),
        {
            "version": (1, "int64"),
            "state": (2, "int32"),
            "status": (3, f"{_SERVING}.StatusProto"),
        },
    )
    _add_fields(
        file.message_type.add(name="GetModelStatusResponse"),
        {"model_version_status": (1, f"{_SERVING}.ModelVersionStatus[]")},
    )
    return file


def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in (_tensor_file(), _serving_file()):
        pool.Add(file)
    return pool


_POOL = _pool()


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


TensorProto = _message("tensorflow.TensorProto")
PredictRequest = _message(f"{_SERVING}.PredictRequest")
PredictResponse = _message(f"{_SERVING}.PredictResponse")
GetModelStatusRequest = _message(f"{_SERVING}.GetModelStatusRequest")
GetModelStatusResponse = _message(f"{_SERVING}.GetModelStatusResponse")
