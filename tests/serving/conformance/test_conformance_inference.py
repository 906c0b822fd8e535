"""Classify, Regress and MultiInference, and Predict on their signatures: checks 23 and 79 of the
conformance list, on gRPC."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    predict_pb2,
    regression_pb2,
)

from serving.inference import CLASSIFY_METHOD, REGRESS_METHOD, serialised_examples
from serving.options import ServerOptions
from serving.server import ModelServer

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PREDICT_METHOD = "tensorflow/serving/predict"


def _save_classifiers(path: Path) -> Path:
    """One TensorFlow 1 graph, as these calls are used to: y = x / 2 + 2, in many signatures.

    `runs` counts the runs of the graph, whichever signature they came from.
    """
    v1 = tf.compat.v1
    graph = tf.Graph()
    with graph.as_default(), v1.Session(graph=graph) as session:
        serialised = v1.placeholder(tf.string, [None], "serialised")
        other = v1.placeholder(tf.string, [None], "other")
        features = {"x": tf.io.FixedLenFeature([], tf.float32, 0.0)}
        x = tf.io.parse_example(serialised, features)["x"]
        y = (x / 2.0 + 2.0)[:, None]
        also = tf.io.parse_example(other, features)["x"][:, None] * 3.0
        names = tf.strings.as_string(tf.cast(x, tf.int32))[:, None]
        counter = v1.get_variable("counter", initializer=0.0, use_resource=True, dtype=tf.float32)
        runs = tf.tile([[counter.assign_add(1.0)]], [tf.shape(x)[0], 1])
        signatures: dict[str, Any] = {}

        def add(key: str, method: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
            signatures[key] = v1.saved_model.signature_def_utils.build_signature_def(
                {alias: v1.saved_model.utils.build_tensor_info(t) for alias, t in inputs.items()},
                {alias: v1.saved_model.utils.build_tensor_info(t) for alias, t in outputs.items()},
                method,
            )

        examples = {"inputs": serialised}
        add("serving_default", REGRESS_METHOD, examples, {"outputs": y})
        add("vector", REGRESS_METHOD, examples, {"outputs": y[:, 0]})
        add("tripled", REGRESS_METHOD, {"inputs": other}, {"outputs": also})
        add("runs", REGRESS_METHOD, examples, {"outputs": runs})
        add("runs_classes", CLASSIFY_METHOD, examples, {"scores": runs})
        both = {
            "classes": tf.concat([names, names + "!"], 1),
            "scores": tf.concat([y, -y], 1),
        }
        add("both", CLASSIFY_METHOD, examples, both)
        add("scores", CLASSIFY_METHOD, examples, {"scores": y})
        add("classes", CLASSIFY_METHOD, examples, {"classes": names})
        add("scores_and_more", CLASSIFY_METHOD, examples, {"scores": y, "more": names})
        # what no call can answer with
        add("two_inputs", CLASSIFY_METHOD, {"inputs": serialised, "o": other}, {"scores": y})
        add("three", CLASSIFY_METHOD, examples, {**both, "more": y})
        add("misnamed", CLASSIFY_METHOD, {"x": serialised}, {"scores": y})
        add("no_class", CLASSIFY_METHOD, examples, {"y": y})
        add("flat", CLASSIFY_METHOD, examples, {"scores": y[:, 0]})
        add("int_scores", CLASSIFY_METHOD, examples, {"scores": tf.cast(y, tf.int64)})
        add("float_classes", CLASSIFY_METHOD, examples, {"classes": y})
        add("first_only", CLASSIFY_METHOD, examples, {"scores": y[:1]})
        uneven = {"classes": names, "scores": both["scores"]}
        add("uneven", CLASSIFY_METHOD, examples, uneven)
        add("misnamed_regression", REGRESS_METHOD, {"x": serialised}, {"outputs": y})
        add("no_output", REGRESS_METHOD, examples, {"y": y})
        add("wide", REGRESS_METHOD, examples, {"outputs": both["scores"]})
        add("one_for_all", REGRESS_METHOD, examples, {"outputs": y[:1]})
        add("int_outputs", REGRESS_METHOD, examples, {"outputs": tf.cast(y, tf.int32)})
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.builder.SavedModelBuilder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
    return path


@pytest.fixture(scope="module")
def base(publish: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("classifiers")
    publish(_save_classifiers(directory / "model"), directory / "base", 7)
    return directory / "base"


@pytest.fixture(scope="module")
def stub(base: Path, connect: Any) -> Iterator[Any]:
    options = ServerOptions(models={"m": base}, host="127.0.0.1", port=0)
    with ModelServer(options) as running:
        yield connect(running.port).prediction


def example(**features: float) -> tf.train.Example:
    proto = tf.train.Example()
    for key, value in features.items():
        proto.features.feature[key].float_list.value.append(value)
    return proto


def examples(*values: float) -> input_pb2.Input:
    proto = input_pb2.Input()
    proto.example_list.examples.extend([example(x=value) for value in values])
    return proto


def classification(
    signature: str, inputs: input_pb2.Input, model: str = "m"
) -> classification_pb2.ClassificationRequest:
    request = classification_pb2.ClassificationRequest(input=inputs)
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    return request


def regression(
    signature: str, inputs: input_pb2.Input, model: str = "m"
) -> regression_pb2.RegressionRequest:
    request = regression_pb2.RegressionRequest(input=inputs)
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    return request


def multi(
    *tasks: tuple[str, str], inputs: input_pb2.Input, models: tuple[str, ...] = ()
) -> inference_pb2.MultiInferenceRequest:
    request = inference_pb2.MultiInferenceRequest(input=inputs)
    for number, (signature, method) in enumerate(tasks):
        task = request.tasks.add(method_name=method)
        task.model_spec.name = models[number] if models else "m"
        task.model_spec.signature_name = signature
    return request


def classified(result: Any) -> list[list[tuple[str, float]]]:
    return [[(c.label, c.score) for c in row.classes] for row in result.classifications]


def regressed(result: Any) -> list[float]:
    return [row.value for row in result.regressions]


# --- answers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("both", [[("2", 3.0), ("2!", -3.0)], [("4", 4.0), ("4!", -4.0)]]),
        ("scores", [[("", 3.0)], [("", 4.0)]]),
        ("classes", [[("2", 0.0)], [("4", 0.0)]]),
        ("scores_and_more", [[("", 3.0)], [("", 4.0)]]),
    ],
)
def test_check_79_classify(stub: Any, signature: str, expected: Any) -> None:
    response = stub.Classify(classification(signature, examples(2.0, 4.0)), timeout=10)
    assert classified(response.result) == expected
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("m", 7, signature)


@pytest.mark.parametrize(
    ("signature", "output", "field", "values"),
    [
        ("serving_default", "outputs", "float_val", [3.0, 4.0]),  # of Regress
        ("both", "scores", "float_val", [3.0, -3.0, 4.0, -4.0]),  # of Classify
        ("both", "classes", "string_val", [b"2", b"2!", b"4", b"4!"]),
    ],
)
def test_check_23_predict_on_a_signature_of_another_method(
    stub: Any, signature: str, output: str, field: str, values: list[Any]
) -> None:
    request = predict_pb2.PredictRequest(output_filter=[output])
    request.model_spec.name = "m"
    request.model_spec.signature_name = signature
    serialised = [example(x=x).SerializeToString() for x in (2.0, 4.0)]
    request.inputs["inputs"].CopyFrom(tf.make_tensor_proto(serialised))
    response = stub.Predict(request, timeout=10)
    assert list(response.outputs) == [output]
    assert list(getattr(response.outputs[output], field)) == values
    assert response.model_spec.signature_name == signature


@pytest.mark.parametrize("signature", ["", "vector"])
def test_check_79_regress(stub: Any, signature: str) -> None:
    response = stub.Regress(regression(signature, examples(2.0, 4.0, -4.0)), timeout=10)
    assert regressed(response.result) == [3.0, 4.0, 0.0]
    spec = response.model_spec
    assert (spec.name, spec.version.value) == ("m", 7)
    assert spec.signature_name == (signature or "serving_default")


def test_check_79_a_version_can_be_named(stub: Any, error_of: Any) -> None:
    request = regression("", examples(2.0))
    request.model_spec.version.value = 7
    assert regressed(stub.Regress(request, timeout=10).result) == [3.0]
    request.model_spec.version.value = 8
    assert error_of(lambda: stub.Regress(request, timeout=10)) == (
        grpc.StatusCode.NOT_FOUND,
        "Servable not found for request: Specific(m, 8)",
    )


def test_check_79_a_common_context_is_merged_into_each_example(stub: Any) -> None:
    inputs = input_pb2.Input()
    merged = inputs.example_list_with_context
    merged.context.CopyFrom(example(x=10.0))
    merged.examples.extend([example(), example(unused=1.0), example(x=2.0)])
    # Of a feature in both, the example's own wins: it comes last.
    assert regressed(stub.Regress(regression("", inputs), timeout=10).result) == [7.0, 7.0, 3.0]


def test_check_79_examples_are_sent_as_they_came() -> None:
    serialised = serialised_examples(examples(1.0, 2.0))
    assert [tf.train.Example.FromString(one) for one in serialised] == [
        example(x=1.0),
        example(x=2.0),
    ]


def test_check_79_multi_inference(stub: Any) -> None:
    request = multi(
        ("both", CLASSIFY_METHOD),
        ("", REGRESS_METHOD),
        ("tripled", REGRESS_METHOD),
        inputs=examples(2.0, 4.0),
    )
    response = stub.MultiInference(request, timeout=10)
    classes, halves, tripled = response.results
    assert classified(classes.classification_result) == [
        [("2", 3.0), ("2!", -3.0)],
        [("4", 4.0), ("4!", -4.0)],
    ]
    assert regressed(halves.regression_result) == [3.0, 4.0]
    assert regressed(tripled.regression_result) == [6.0, 12.0]  # another input tensor
    for result, signature in zip(
        response.results, ("both", "serving_default", "tripled"), strict=True
    ):
        spec = result.model_spec
        assert (spec.name, spec.version.value, spec.signature_name) == ("m", 7, signature)


def test_check_79_multi_inference_is_one_run(stub: Any) -> None:
    def counts() -> tuple[float, float]:
        request = multi(
            ("runs", REGRESS_METHOD), ("runs_classes", CLASSIFY_METHOD), inputs=examples(1.0)
        )
        first, second = stub.MultiInference(request, timeout=10).results
        return (
            first.regression_result.regressions[0].value,
            second.classification_result.classifications[0].classes[0].score,
        )

    before, after = counts(), counts()
    assert before[0] == before[1]
    assert after == (before[0] + 1, before[1] + 1)


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signature", "text"),
    [
        ("nope", "No signature was found with the name: nope"),
        ("two_inputs", "Expected one input Tensor."),
        ("three", "Expected one or two output Tensors, found 3"),
        ("misnamed", "No classification inputs found in SignatureDef: inputs {"),
        (
            "no_class",
            'Expected classification signature outputs to contain at least one of "classes" or '
            '"scores". Signature was: inputs {',
        ),
        ("flat", "Expected Tensor shape: [batch_size num_classes] but got [2]"),
        ("int_scores", "Expected scores Tensor of DT_FLOAT. Got: DT_INT64"),
        ("float_classes", "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
        ("first_only", "Expected scores output batch size of 2. Got: 1"),
        ("uneven", "Tensors class and score should match in dim_size(1). Got 1 vs. 2"),
    ],
)
def test_check_79_classify_refuses(stub: Any, error_of: Any, signature: str, text: str) -> None:
    request = classification(signature, examples(2.0, 4.0))
    code, details = error_of(lambda: stub.Classify(request, timeout=10))
    assert code is INVALID
    assert details.startswith(text)


@pytest.mark.parametrize(
    ("signature", "text"),
    [
        ("nope", "No signature was found with the name: nope"),
        ("two_inputs", "Expected one input Tensor."),
        ("both", "Expected one output Tensor."),
        ("misnamed_regression", "No regression inputs found in SignatureDef: inputs {"),
        ("no_output", "No regression outputs found in SignatureDef: inputs {"),
        (
            "wide",
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            "[2,2]",
        ),
        ("one_for_all", "Input batch size did not match output batch size: 2 vs. 1"),
        ("int_outputs", "Expected output Tensor of DT_FLOAT.  Got: DT_INT32"),
    ],
)
def test_check_79_regress_refuses(stub: Any, error_of: Any, signature: str, text: str) -> None:
    request = regression(signature, examples(2.0, 4.0))
    code, details = error_of(lambda: stub.Regress(request, timeout=10))
    assert code is INVALID
    assert details.startswith(text)


def test_check_79_no_examples(stub: Any, error_of: Any) -> None:
    context_only = input_pb2.Input()
    context_only.example_list_with_context.context.CopyFrom(example(x=1.0))
    for inputs in (input_pb2.Input(), examples(), context_only):
        for call in (
            lambda inputs=inputs: stub.Classify(classification("both", inputs), timeout=10),
            lambda inputs=inputs: stub.Regress(regression("", inputs), timeout=10),
            lambda inputs=inputs: stub.MultiInference(
                multi(("", REGRESS_METHOD), inputs=inputs), timeout=10
            ),
        ):
            assert error_of(call) == (INVALID, "Input is empty.")


def test_check_79_which_model(stub: Any, error_of: Any) -> None:
    for call, request in (
        (stub.Classify, classification_pb2.ClassificationRequest(input=examples(1.0))),
        (stub.Regress, regression_pb2.RegressionRequest(input=examples(1.0))),
    ):
        assert error_of(lambda call=call, request=request: call(request, timeout=10)) == (
            INVALID,
            "Missing ModelSpec",
        )
    for call, request in (
        (stub.Classify, classification("", examples(1.0), model="foo")),
        (stub.Regress, regression("", examples(1.0), model="foo")),
        (
            stub.MultiInference,
            multi(("", REGRESS_METHOD), inputs=examples(1.0), models=("foo",)),
        ),
    ):
        assert error_of(lambda call=call, request=request: call(request, timeout=10)) == (
            grpc.StatusCode.NOT_FOUND,
            "Servable not found for request: Latest(foo)",
        )


@pytest.mark.parametrize(
    ("tasks", "models", "code", "text"),
    [
        ((), (), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ((("", REGRESS_METHOD),), ("",), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (
            (("", REGRESS_METHOD), ("both", CLASSIFY_METHOD)),
            ("m", ""),
            "INVALID_ARGUMENT",
            "Found ModelSpec with an empty model name.",
        ),
        (
            (("", REGRESS_METHOD), ("both", CLASSIFY_METHOD)),
            ("m", "other"),
            "INVALID_ARGUMENT",
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (
            (("", REGRESS_METHOD), ("serving_default", REGRESS_METHOD)),
            (),
            "INVALID_ARGUMENT",
            "Duplicate evaluation of signature: serving_default",
        ),
        (
            (("nope", REGRESS_METHOD),),
            (),
            "INVALID_ARGUMENT",
            "Requested signature not found in model graph: nope",
        ),
        (
            (("", PREDICT_METHOD),),
            (),
            "UNIMPLEMENTED",
            f"Unsupported signature method_name: {PREDICT_METHOD}",
        ),
        ((("", CLASSIFY_METHOD),), (), "INVALID_ARGUMENT", "Expected classification signature"),
        ((("both", REGRESS_METHOD),), (), "INVALID_ARGUMENT", "Expected one output Tensor."),
        (
            (("", REGRESS_METHOD), ("flat", CLASSIFY_METHOD)),
            (),
            "INVALID_ARGUMENT",
            "Expected Tensor shape: [batch_size num_classes] but got [1]",
        ),
    ],
)
def test_check_79_multi_inference_refuses(
    stub: Any, error_of: Any, tasks: Any, models: Any, code: str, text: str
) -> None:
    request = multi(*tasks, inputs=examples(1.0), models=models)
    found, details = error_of(lambda: stub.MultiInference(request, timeout=10))
    assert found is grpc.StatusCode[code]
    assert details.startswith(text)


def test_check_79_examples_that_cannot_be_parsed_are_the_graphs_error(
    stub: Any, error_of: Any
) -> None:
    wrong = tf.train.Example()
    wrong.features.feature["x"].int64_list.value.append(2)
    inputs = input_pb2.Input()
    inputs.example_list.examples.append(wrong)
    code, details = error_of(lambda: stub.Regress(regression("", inputs), timeout=10))
    assert code is INVALID
    assert "Data types don't match. Data type: int64 but expected type: float" in details


def test_check_80_runs_are_counted_by_the_call_they_were_for(
    base: Path, start_server: Any, connect: Any
) -> None:
    server = start_server({"m": base}, rest_port=0, metrics_path="/metrics")
    caller = connect(server.port)
    caller.predict("m", {"inputs": [example(x=2.0).SerializeToString()]})
    for _ in range(2):
        caller.prediction.Classify(classification("both", examples(2.0)), timeout=10)
    for _ in range(3):
        caller.prediction.Regress(regression("", examples(2.0)), timeout=10)
    for _ in range(4):
        tasks = (("", REGRESS_METHOD), ("scores", CLASSIFY_METHOD))
        caller.prediction.MultiInference(multi(*tasks, inputs=examples(2.0)), timeout=10)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.rest_port}/metrics") as page:
        runs = re.findall(r'runtime_latency_count\{.*API="(\w+)".*\} (\d+)', page.read().decode())
    assert dict(runs) == {"Predict": "1", "Classify": "2", "Regress": "3", "MultiInference": "4"}


def test_check_79_method_names_are_checked_only_if_asked_for(
    base: Path, stub: Any, start_server: Any, connect: Any, error_of: Any
) -> None:
    request = multi(("scores", CLASSIFY_METHOD), inputs=examples(2.0))
    strict = connect(start_server({"m": base}, check_method_names=True).port).prediction
    assert len(strict.MultiInference(request, timeout=10).results) == 1
    assert regressed(strict.Regress(regression("", examples(2.0)), timeout=10).result) == [3.0]
    for call, method, was, text in (
        (
            lambda: strict.Classify(classification("", examples(2.0)), timeout=10),
            CLASSIFY_METHOD,
            REGRESS_METHOD,
            "classification",
        ),
        (
            lambda: strict.Regress(regression("scores", examples(2.0)), timeout=10),
            REGRESS_METHOD,
            CLASSIFY_METHOD,
            "regression",
        ),
    ):
        assert error_of(call) == (
            INVALID,
            f"Expected {text} signature method_name to be {method}. Was: {was}",
        )
    code, details = error_of(lambda: stub.Classify(classification("", examples(2.0)), timeout=10))
    assert code is INVALID
    assert "method_name to be" not in details  # it fails for its outputs


def test_check_79_projects_signatures_have_the_right_refusal(
    zoo: Path, publish: Any, tmp_path: Path, start_server: Any, connect: Any, error_of: Any
) -> None:
    """Models of today have predict signatures only."""
    publish(zoo, tmp_path, 1)
    stub = connect(start_server({"m": tmp_path}).port).prediction
    for call, request in (
        (stub.Classify, classification("", examples(1.0))),
        (stub.Regress, regression("", examples(1.0))),
    ):
        code, details = error_of(lambda call=call, request=request: call(request, timeout=10))
        assert code is INVALID
        assert "inputs found in SignatureDef" in details or "outputs to contain" in details
