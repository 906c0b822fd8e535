"""Classify, Regress and MultiInference: calls that send tf.Examples instead of tensors.

Checks and texts are those of TensorFlow Serving 2.16 (servables/tensorflow/classifier.cc,
regressor.cc, multi_inference.cc).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    model_pb2,
    regression_pb2,
)

from serving.engine import Engine
from serving.errors import ServingError, invalid_argument
from serving.model_spec import answer_spec, model_key
from serving.predict import DEFAULT_SIGNATURE, check_method
from serving.servable import Servable, Signature
from serving.tensors import Array

CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"

_INPUTS = "inputs"
_CLASSES = "classes"
_SCORES = "scores"
_OUTPUTS = "outputs"


@dataclass(frozen=True)
class Plan:
    """What to run for a request, and how to answer it.

    Attributes:
      signature: what is run.
      feeds: input alias -> value, for every input.
      outputs: output aliases.
      respond: turns the values of `outputs` into the response; raises ServingError
        (INVALID_ARGUMENT) if their shapes or types are not what the call promises.
    """

    signature: Signature
    feeds: dict[str, Array]
    outputs: Sequence[str]
    respond: Callable[[Sequence[Array]], Any]


# --- the calls ------------------------------------------------------------------------------


async def classify(
    engine: Engine, request: classification_pb2.ClassificationRequest, deadline: float | None
) -> classification_pb2.ClassificationResponse:
    """Labels and scores of every class for each example.

    Args:
      engine: runs the model.
      request: a model and its examples.
      deadline: `time.monotonic()` after which nobody waits for the answer.

    Raises:
      ServingError: status and text of TensorFlow Serving 2.16.
    """
    return await _run(engine, "Classify", model_key(request), plan_classify, request, deadline)


async def regress(
    engine: Engine, request: regression_pb2.RegressionRequest, deadline: float | None
) -> regression_pb2.RegressionResponse:
    """One number for each example. Arguments and errors as of `classify`."""
    return await _run(engine, "Regress", model_key(request), plan_regress, request, deadline)


async def multi_inference(
    engine: Engine, request: inference_pb2.MultiInferenceRequest, deadline: float | None
) -> inference_pb2.MultiInferenceResponse:
    """Several classifications and regressions of the same examples in one run of the graph.

    Arguments and errors as of `classify`; the first task says which model and version is meant.
    """
    target = inference_pb2.InferenceTask(model_spec=model_pb2.ModelSpec())
    if request.tasks:
        target.model_spec.CopyFrom(request.tasks[0].model_spec)
    return await _run(
        engine, "MultiInference", model_key(target), plan_multi_inference, request, deadline
    )


async def _run(
    engine: Engine,
    api: str,
    target: tuple[str, int | None, str | None],
    plan_request: Callable[[Servable, Any, bool], Plan],
    request: Any,
    deadline: float | None,
) -> Any:
    with engine.versions.lease(*target) as servable:
        plan = plan_request(servable, request, engine.options.check_method_names)
        results = await engine.run(
            servable, plan.signature, plan.feeds, plan.outputs, deadline, api
        )
        engine.metrics.examples(servable.name, len(next(iter(plan.feeds.values()))))
        return plan.respond(results)


# --- what to run ----------------------------------------------------------------------------


def plan_classify(
    servable: Servable,
    request: classification_pb2.ClassificationRequest,
    check_method_names: bool = False,
) -> Plan:
    """Plans a Classify call on a loaded version.

    Args:
      servable: what answers.
      request: its `model_spec` only names the signature.
      check_method_names: refuse signatures that were not exported for this call.

    Raises:
      ServingError: INVALID_ARGUMENT, the signature is unknown or unfit, or there are no examples.
    """
    signature = _find(servable, request.model_spec.signature_name)
    outputs = _check_classification(servable, signature, check_method_names)
    spec = answer_spec(servable.name, servable.version, signature.name)
    examples = serialised_examples(request.input)

    def respond(results: Sequence[Array]) -> classification_pb2.ClassificationResponse:
        response = classification_pb2.ClassificationResponse()
        response.model_spec.ParseFromString(spec)
        values = dict(zip(outputs, results, strict=True))
        _fill_classifications(response.result, values, len(examples))
        return response

    return Plan(signature, {_INPUTS: examples}, outputs, respond)


def plan_regress(
    servable: Servable,
    request: regression_pb2.RegressionRequest,
    check_method_names: bool = False,
) -> Plan:
    """Plans a Regress call; arguments and errors as of `plan_classify`."""
    signature = _find(servable, request.model_spec.signature_name)
    outputs = _check_regression(servable, signature, check_method_names)
    spec = answer_spec(servable.name, servable.version, signature.name)
    examples = serialised_examples(request.input)

    def respond(results: Sequence[Array]) -> regression_pb2.RegressionResponse:
        response = regression_pb2.RegressionResponse()
        response.model_spec.ParseFromString(spec)
        _fill_regressions(response.result, results[0], len(examples))
        return response

    return Plan(signature, {_INPUTS: examples}, outputs, respond)


def plan_multi_inference(
    servable: Servable,
    request: inference_pb2.MultiInferenceRequest,
    check_method_names: bool = False,
) -> Plan:
    """Plans a MultiInference call: one run for all tasks.

    Args: as of `plan_classify`.

    Raises:
      ServingError: as of `plan_classify`; UNIMPLEMENTED for a task that is neither.
    """
    tasks = _check_tasks(servable, request, check_method_names)
    examples = serialised_examples(request.input)
    joint = meta_graph_pb2.SignatureDef()  # aliases are the names of the tensors
    for signature, outputs in tasks:
        inputs = signature.inputs[_INPUTS]
        joint.inputs[inputs.name].CopyFrom(inputs)
        for alias in outputs:
            joint.outputs[signature.outputs[alias].name].CopyFrom(signature.outputs[alias])
    fetched = sorted(joint.outputs)
    name = ",".join(signature.name for signature, _ in tasks)

    def respond(results: Sequence[Array]) -> inference_pb2.MultiInferenceResponse:
        by_tensor = dict(zip(fetched, results, strict=True))
        response = inference_pb2.MultiInferenceResponse()
        for task, (signature, outputs) in zip(request.tasks, tasks, strict=True):
            result = response.results.add()
            spec = answer_spec(servable.name, servable.version, signature.name)
            result.model_spec.ParseFromString(spec)
            values = {alias: by_tensor[signature.outputs[alias].name] for alias in outputs}
            if task.method_name == CLASSIFY_METHOD:
                _fill_classifications(result.classification_result, values, len(examples))
            else:
                _fill_regressions(result.regression_result, values[_OUTPUTS], len(examples))
        return response

    return Plan(
        servable.joint_signature(name, joint),
        dict.fromkeys(joint.inputs, examples),
        fetched,
        respond,
    )


def serialised_examples(inputs: input_pb2.Input) -> Array:
    """The examples of a request, string [n]; a common context is merged into each of them.

    Raises:
      ServingError: INVALID_ARGUMENT, there are none.
    """
    kind = inputs.WhichOneof("kind")
    examples = getattr(inputs, kind).examples if kind else ()
    if not examples:
        raise invalid_argument("Input is empty.")
    # Serialised messages merge when they are joined.
    context = (
        inputs.example_list_with_context.context.SerializeToString()
        if kind == "example_list_with_context"
        else b""
    )
    serialised = np.empty(len(examples), dtype=object)
    serialised[:] = [context + example.SerializeToString() for example in examples]
    return serialised


# --- checks of requests and signatures ------------------------------------------------------


def _find(servable: Servable, key: str) -> Signature:
    signature = servable.signatures.get(key or DEFAULT_SIGNATURE)
    if signature is None:
        raise invalid_argument(f"No signature was found with the name: {key or DEFAULT_SIGNATURE}")
    return signature


def _check_classification(
    servable: Servable, signature: Signature, check_method_name: bool
) -> list[str]:
    """The outputs to fetch."""
    if check_method_name:
        check_method(signature, "classification", CLASSIFY_METHOD)
    definition = _check_tensors(
        servable,
        signature,
        "classification",
        (1, 2),
        f"Expected one or two output Tensors, found {len(signature.outputs)}",
    )
    outputs = [alias for alias in (_CLASSES, _SCORES) if alias in signature.outputs]
    if not outputs:
        raise invalid_argument(
            "Expected classification signature outputs to contain at least one of "
            f'"{_CLASSES}" or "{_SCORES}". Signature was: {definition}'
        )
    return outputs


def _check_regression(
    servable: Servable, signature: Signature, check_method_name: bool
) -> list[str]:
    """The outputs to fetch."""
    if check_method_name:
        check_method(signature, "regression", REGRESS_METHOD)
    definition = _check_tensors(
        servable, signature, "regression", (1,), "Expected one output Tensor."
    )
    if _OUTPUTS not in signature.outputs:
        raise invalid_argument(f"No regression outputs found in SignatureDef: {definition}")
    return [_OUTPUTS]


def _check_tensors(
    servable: Servable,
    signature: Signature,
    call: str,
    output_counts: tuple[int, ...],
    wrong_count: str,
) -> Any:
    """Checks that there is one input, of the right name, and as many outputs as may be.

    Args:
      servable, signature: what is checked.
      call: "classification" or "regression".
      output_counts: numbers of outputs that are fine.
      wrong_count: text of the error for other numbers.

    Returns:
      the SignatureDef, for the texts of further errors.
    """
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(signature.outputs) not in output_counts:
        raise invalid_argument(wrong_count)
    definition = servable.signature_defs[signature.name]
    if _INPUTS not in signature.inputs:
        raise invalid_argument(f"No {call} inputs found in SignatureDef: {definition}")
    return definition


def _check_tasks(
    servable: Servable, request: inference_pb2.MultiInferenceRequest, check_method_names: bool
) -> list[tuple[Signature, list[str]]]:
    """The signature of each task and the outputs to fetch from it."""
    tasks: dict[str, tuple[Signature, list[str]]] = {}
    for task in request.tasks:
        spec = task.model_spec
        if not spec.name:
            raise invalid_argument("Found ModelSpec with an empty model name.")
        if spec.name != request.tasks[0].model_spec.name:
            raise invalid_argument(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        key = spec.signature_name or DEFAULT_SIGNATURE
        if key in tasks:
            raise invalid_argument(f"Duplicate evaluation of signature: {key}")
        signature = servable.signatures.get(key)
        if signature is None:
            raise invalid_argument(f"Requested signature not found in model graph: {key}")
        if task.method_name == CLASSIFY_METHOD:
            outputs = _check_classification(servable, signature, check_method_names)
        elif task.method_name == REGRESS_METHOD:
            outputs = _check_regression(servable, signature, check_method_names)
        else:
            raise ServingError(
                grpc.StatusCode.UNIMPLEMENTED,
                f"Unsupported signature method_name: {task.method_name}",
            )
        tasks[key] = signature, outputs
    return list(tasks.values())


# --- answers --------------------------------------------------------------------------------


def _fill_classifications(
    result: classification_pb2.ClassificationResult, values: Mapping[str, Array], n_examples: int
) -> None:
    for alias, dtype in ((_CLASSES, types_pb2.DT_STRING), (_SCORES, types_pb2.DT_FLOAT)):
        if alias in values:
            _check_scored(alias, values[alias], dtype, n_examples)
    classes, scores = values.get(_CLASSES), values.get(_SCORES)
    if classes is not None and scores is not None and classes.shape != scores.shape:
        raise invalid_argument(
            "Tensors class and score should match in dim_size(1). "
            f"Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    for row in range(n_examples):
        classification = result.classifications.add()
        labels = classes[row] if classes is not None else [b""] * len(values[_SCORES][row])
        numbers = scores[row] if scores is not None else [0.0] * len(labels)
        for label, score in zip(labels, numbers, strict=True):
            classification.classes.add(label=label.decode(errors="replace"), score=score)


def _check_scored(alias: str, value: Array, dtype: int, n_examples: int) -> None:
    if value.ndim != 2:
        raise invalid_argument(
            f"Expected Tensor shape: [batch_size num_classes] but got {_shape(value)}"
        )
    if _dtype(value) != dtype:
        raise invalid_argument(
            f"Expected {alias} Tensor of {types_pb2.DataType.Name(dtype)}. "
            f"Got: {types_pb2.DataType.Name(_dtype(value))}"
        )
    if len(value) != n_examples:
        raise invalid_argument(
            f"Expected {alias} output batch size of {n_examples}. Got: {len(value)}"
        )


def _fill_regressions(
    result: regression_pb2.RegressionResult, value: Array, n_examples: int
) -> None:
    if not (value.ndim == 1 or (value.ndim == 2 and value.shape[1] == 1)):
        raise invalid_argument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{_shape(value)}"
        )
    if len(value) != n_examples:
        raise invalid_argument(
            f"Input batch size did not match output batch size: {n_examples} vs. {len(value)}"
        )
    if _dtype(value) != types_pb2.DT_FLOAT:
        raise invalid_argument(
            f"Expected output Tensor of DT_FLOAT.  Got: {types_pb2.DataType.Name(_dtype(value))}"
        )
    for number in value.ravel():
        result.regressions.add(value=number)


def _dtype(value: Array) -> int:
    return tf.as_dtype(value.dtype).as_datatype_enum


def _shape(value: Array) -> str:
    return f"[{','.join(map(str, value.shape))}]"
