"""JSON of Classify and Regress: tf.Examples in, classes or numbers out (util/json_tensor.cc)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow_serving.apis import classification_pb2, input_pb2, regression_pb2

from serving.errors import invalid_argument
from serving.rest.json_tensor import as_base64, shortest
from serving.rest.json_text import dump, quote, to_bytes, type_name

_RESULTS = "results"
_KINDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}


def fill_input(document: Mapping[str, Any], inputs: input_pb2.Input) -> None:
    """Fills in the examples of a Classify or Regress request and their common context.

    Raises:
      ServingError: INVALID_ARGUMENT, there are no examples, or a value fits no feature.
    """
    examples: Any = inputs.example_list.examples
    if "context" in document:
        examples = inputs.example_list_with_context.examples
        _fill_example(document["context"], inputs.example_list_with_context.context)
    if "examples" not in document:
        raise invalid_argument(
            f"JSON Value: {quote(document)} When method is classify, key 'examples' is expected "
            "and was not found"
        )
    values = document["examples"]
    if not isinstance(values, list):
        raise invalid_argument(
            f"JSON Value: {quote(document)} Expecting 'examples' value to be an list/array"
        )
    if not values:
        raise invalid_argument(f"JSON Value: {quote(document)} 'examples' value is an empty array")
    for value in values:
        _fill_example(value, examples.add())


def _fill_example(value: Any, example: example_pb2.Example) -> None:
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {type_name(value)}")
    for name, content in value.items():
        feature = example.features.feature[name]
        for element in content if isinstance(content, list) else [content]:
            _add(element, name, feature)


def _add(value: Any, name: str, feature: feature_pb2.Feature) -> None:
    data = as_base64(value)
    if data is not None:
        _values(feature, "bytes_list", name).append(data)
    elif isinstance(value, str):
        _values(feature, "bytes_list", name).append(to_bytes(value))
    elif isinstance(value, float) or (isinstance(value, int) and not _is_integer(value)):
        _values(feature, "float_list", name).append(value)
    elif isinstance(value, int):
        if value >= 2**63:
            raise invalid_argument(
                f"Feature: {name} has uint64_t element. Only int64_t is supported."
            )
        _values(feature, "int64_list", name).append(value)
    else:
        raise invalid_argument(
            f"Feature: {name} has element with unexpected JSON type: {type_name(value)}"
        )


def _is_integer(value: int) -> bool:
    # RapidJSON reads longer ones as double.
    return -(2**63) <= value < 2**64


def _values(feature: feature_pb2.Feature, kind: str, name: str) -> Any:
    known = feature.WhichOneof("kind")
    if known not in (None, kind):
        raise invalid_argument(
            f"Unexpected element type in feature: {name} expecting type: {_KINDS[known]}"
        )
    return getattr(feature, kind).value


def classifications(result: classification_pb2.ClassificationResult) -> bytes:
    """The answer of Classify: for each example a list of [label, score].

    Raises:
      ServingError: INVALID_ARGUMENT, there are no results.
    """
    if not result.classifications:
        raise invalid_argument("Cannot convert empty ClassificationResults to JSON")
    return dump(
        {
            _RESULTS: [
                [
                    [label, score]
                    for label, score in zip(
                        (entry.label for entry in example.classes),
                        _floats(entry.score for entry in example.classes),
                        strict=True,
                    )
                ]
                for example in result.classifications
            ]
        }
    )


def regressions(result: regression_pb2.RegressionResult) -> bytes:
    """The answer of Regress: one number for each example.

    Raises:
      ServingError: INVALID_ARGUMENT, there are no results.
    """
    if not result.regressions:
        raise invalid_argument("Cannot convert empty RegressionResults to JSON")
    return dump({_RESULTS: _floats(entry.value for entry in result.regressions)})


def _floats(values: Iterable[float]) -> Any:
    return shortest(np.fromiter(values, np.float32)).tolist()
