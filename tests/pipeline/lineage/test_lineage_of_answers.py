from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf import json_format
from tensorflow_serving.apis import predict_pb2

from pipeline.lineage.answer import Answer, parse_answer
from pipeline.lineage.query import answer_lineage
from pipeline.metadata.store import MetadataError
from tests.pipeline.lineage.conftest import History
from tests.pipeline.metadata.recorder import Recorder, Recording


def response(version: int) -> predict_pb2.PredictResponse:
    answer = predict_pb2.PredictResponse()
    answer.model_spec.name = "recommender"
    answer.model_spec.signature_name = "serving_default"
    answer.model_spec.version.value = version
    answer.outputs["scores"].float_val.append(0.5)
    return answer


@pytest.mark.parametrize("keep_names", [True, False])
def test_response_as_protobuf_writes_it(keep_names: bool) -> None:
    text = json_format.MessageToJson(response(3), preserving_proto_field_name=keep_names)
    assert parse_answer(text) == Answer("recommender", 3, None)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"model_spec": {"name": "m", "version": 3}}, Answer("m", 3, None)),
        ({"modelSpec": {"name": "m", "version": {"value": "3"}}}, Answer("m", 3, None)),
        ({"modelSpec": {"version": "3"}}, Answer(None, 3, None)),
        ({"model": "m", "version": 3}, Answer("m", 3, None)),
        ({"model": "m", "version": 3, "model_id": "aa"}, Answer("m", 3, "aa")),
        ({"model_id": "aa"}, Answer(None, None, "aa")),
        ({"model": "m", "version": 3, "model_id": "", "lists": []}, Answer("m", 3, None)),
        ({"model_spec": {"name": "m", "version": "3"}, "metadata": {}}, Answer("m", 3, None)),
    ],
)
def test_shapes_of_answers(content: dict, expected: Answer) -> None:
    assert parse_answer(json.dumps(content)) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no JSON .*recommend --json"),
        ("[1]", "no JSON object but a list"),
        ('"text"', "no JSON object but 'text'"),
        ('{"predictions": []}', "REST answer .'predictions'. carries no version.*--version N"),
        ('{"outputs": []}', "REST answer .'outputs'. carries no version"),
        ('{"error": "x", "code": 5}', "keys are error, code"),
        ("{}", "keys are none"),
        ('{"version": "new"}', "version is 'new'"),
        ('{"version": -1}', "version is -1"),
        ('{"version": 1.5}', "version is 1.5"),
        ('{"version": true}', "version is True"),
        ('{"modelSpec": {"name": "m", "versionLabel": "stable"}}', "carries no version"),
    ],
)
def test_answers_that_do_not_tell(text: str, said: str) -> None:
    with pytest.raises(MetadataError, match=said):
        parse_answer(text)


def test_model_id_decides_between_two_pushes_of_a_number(history: History) -> None:
    for model_id, run in (("aa04", "run-4"), ("aa05", "run-5")):
        facts = answer_lineage(history.path, Answer("recommender", 3, model_id)).facts
        assert (facts.run, facts.version, facts.notes) == (run, 3, ())
    newest = answer_lineage(history.path, Answer("recommender", 3, None)).facts
    assert newest.run == "run-5"
    assert "pushed 2 times" in newest.notes[0]


def test_answers_of_the_stock_flavour(history: History) -> None:
    assert answer_lineage(history.path, Answer("recommender_stock", 2, None)).facts.run == "run-3"
    with pytest.raises(MetadataError, match="model 'other_stock'"):
        answer_lineage(history.path, Answer("other_stock", 2, None))


def test_version_and_model_id_that_contradict_each_other(history: History) -> None:
    facts = answer_lineage(history.path, Answer("recommender", 7, "aa03")).facts
    assert (facts.version, facts.run) == (2, "run-3")
    assert "says version 7" in facts.notes[0]
    assert "pushed as version 2" in facts.notes[0]


def test_model_id_of_elsewhere(history: History) -> None:
    with pytest.raises(MetadataError, match=r"id ffff is recorded.*made elsewhere.*1, 2, 3\."):
        answer_lineage(history.path, Answer("recommender", 1, "ffff"))


def test_model_whose_push_was_not_recorded(tmp_path: Path) -> None:
    """Published, then killed before ML Metadata was told."""
    recorder = Recorder(tmp_path)
    recorder.record(Recording(last="Pusher", last_state="RUNNING"))
    facts = answer_lineage(recorder.path, Answer("recommender", 1, "aa01")).facts
    assert (facts.version, facts.model_id, facts.run) == (None, "aa01", "run-1")
    assert [stage.objective for stage in facts.stages] == ["exposure", "click", "conversion"]
    assert "no push of it is recorded" in facts.notes[0]
    assert "metrics" in facts.missing  # the gates read the model, they are not above it
    with pytest.raises(MetadataError, match=r"no version is pushed yet.*run-1 is RUNNING"):
        answer_lineage(recorder.path, Answer("recommender", 1, None))


def test_one_model_pushed_as_two_versions(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.record(Recording("run-1", version=1))
    recorder.record(Recording("run-2", version=2))
    for version, run in ((1, "run-1"), (2, "run-2")):
        facts = answer_lineage(recorder.path, Answer("recommender", version, "aa01")).facts
        assert (facts.run, facts.notes) == (run, ())
    facts = answer_lineage(recorder.path, Answer(None, None, "aa01")).facts
    assert facts.run == "run-2"
    assert "as version 1, 2; this is the last one" in facts.notes[0]
