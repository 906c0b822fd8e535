"""SavedModels and servers shared by the serving tests."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from serving.server import ModelServer, ServerOptions

POLL_SECONDS = 0.1

Publish = Callable[..., Path]
WaitFor = Callable[..., None]


def _spec(shape: Any, dtype: tf.DType, name: str) -> tf.TensorSpec:
    return tf.TensorSpec(shape, dtype, name=name)


def _signature(function: Callable[..., Any], *specs: tf.TensorSpec) -> Any:
    return tf.function(function, input_signature=list(specs))


def _set_default(path: Path, signature: str, alias: str, value: tf.TensorProto) -> None:
    """Writes a SignatureDef default, as exporters since TensorFlow 2.14 do."""
    from tensorflow.core.protobuf import saved_model_pb2

    graph = path / "saved_model.pb"
    saved_model = saved_model_pb2.SavedModel.FromString(graph.read_bytes())
    definition = saved_model.meta_graphs[0].signature_def[signature]
    definition.defaults[alias].CopyFrom(value)
    graph.write_bytes(saved_model.SerializeToString())


def _save_half_plus(path: Path, offset: float) -> Path:
    """y = x / 2 + offset, with the offset in a variable."""
    module = tf.Module()
    module.offset = tf.Variable(offset)
    half_plus = _signature(lambda x: {"y": x / 2.0 + module.offset}, _spec([None], tf.float32, "x"))
    tf.saved_model.save(module, str(path), signatures={"serving_default": half_plus})
    return path


def _save_zoo(path: Path) -> Path:
    """One signature per behaviour under test."""
    module = tf.Module()
    module.counter = tf.Variable(0, dtype=tf.int64)
    vector = _spec([None], tf.float32, "x")
    text = _spec([None], tf.string, "s")
    weights = tf.constant([[1.0], [2.0]])

    def loop(n: tf.Tensor) -> Any:
        start = tf.constant(0, tf.int64)
        return {"n": tf.while_loop(lambda i: i < n, lambda i: [i + 1], [start])[0]}

    signatures = {
        "serving_default": _signature(lambda x: {"y": x / 2.0 + 2.0}, vector),
        "triple": _signature(lambda x: {"y": 3.0 * x}, vector),
        "two_outputs": _signature(lambda x: {"y": x + 1.0, "z": x + 2.0}, vector),
        "matmul": _signature(
            lambda x: {"y": tf.matmul(x, weights)}, _spec([None, 2], tf.float32, "x")
        ),
        "text": _signature(lambda s: {"s": tf.identity(s)}, text),
        "to_number": _signature(lambda s: {"y": tf.strings.to_number(s)}, text),
        "half": _signature(lambda x: {"y": x * 2}, _spec([None], tf.float16, "x")),
        "brain": _signature(lambda x: {"y": x * 2}, _spec([None], tf.bfloat16, "x")),
        "scaled": _signature(
            lambda x, scale: {"y": x * scale}, vector, _spec([None], tf.float32, "scale")
        ),
        "scalar": _signature(lambda x: {"y": x + 1.0}, _spec([], tf.float32, "x")),
        "loop": _signature(loop, _spec([], tf.int64, "n")),
        "count": _signature(
            lambda by: {"n": module.counter.assign_add(by)}, _spec([], tf.int64, "by")
        ),
    }
    tf.saved_model.save(module, str(path), signatures=signatures)
    _set_default(path, "scaled", "scale", tf.make_tensor_proto([10.0]))
    return path


def _save_recommender(path: Path) -> Path:
    """The project's signatures with answers that show what was received."""
    module = tf.Module()

    def recommend(
        user_id: tf.Tensor,
        history_item_ids: tf.Tensor,
        history_levels: tf.Tensor,
        exclude_item_ids: tf.Tensor,
        objective_weights: tf.Tensor,
    ) -> Any:
        # Ids: the user, the first of the history, the first excluded item, then padding.
        item_ids = tf.concat(
            [user_id[:, None], history_item_ids[:, :1], exclude_item_ids[:, :1], [[""]]], axis=1
        )
        weight = tf.reduce_sum(objective_weights, axis=1, keepdims=True)
        levels = tf.cast(tf.reduce_sum(history_levels, axis=1, keepdims=True), tf.float32)
        scores = tf.concat([weight, levels, [[0.5]], [[0.0]]], axis=1)
        return {"item_ids": item_ids, "scores": scores}

    def embed_user(
        user_id: tf.Tensor,
        history_item_ids: tf.Tensor,
        history_levels: tf.Tensor,
        user_city: tf.Tensor,
        user_age: tf.Tensor,
    ) -> Any:
        length = tf.cast(
            tf.strings.length(user_id)[:, None] + tf.strings.length(user_city), tf.float32
        )
        events = tf.cast(tf.reduce_sum(history_levels, axis=1, keepdims=True), tf.float32)
        blocks = tf.concat([length, events, events + user_age], axis=1)
        return {"blocks": blocks, "block_sizes": tf.constant([1, 2], tf.int64)}

    def score_items(
        user_id: tf.Tensor,
        history_item_ids: tf.Tensor,
        history_levels: tf.Tensor,
        objective_weights: tf.Tensor,
        item_ids: tf.Tensor,
    ) -> Any:
        events = tf.reduce_sum(history_levels, axis=1, keepdims=True)
        user = tf.cast(tf.strings.length(user_id)[:, None], tf.int64) + events
        items = tf.cast(tf.strings.length(item_ids), tf.float32)
        scores = tf.stack([tf.cast(user, tf.float32) + 0.0 * items, items], axis=-1)
        fused = tf.reduce_sum(scores * objective_weights[:, None, :], axis=-1)
        return {"objective_scores": scores, "scores": fused}

    def user_history(user_id: tf.Tensor) -> Any:
        column = user_id[:, None]
        items = tf.concat([column, tf.fill(tf.shape(column), ""), column, [[""]]], axis=1)
        return {
            "history_item_ids": items,
            "history_levels": tf.constant([[2, 0, 1, 0]], tf.int64),
        }

    def titles(item_ids: tf.Tensor) -> Any:
        return {"titles": tf.strings.join(["Title of ", item_ids])}

    user = [
        _spec([None], tf.string, "user_id"),
        _spec([None, None], tf.string, "history_item_ids"),
        _spec([None, None], tf.int64, "history_levels"),
    ]
    features = [
        _spec([None, None], tf.string, "user_city"),
        _spec([None, None], tf.float32, "user_age"),
    ]
    query = [
        _spec([None, None], tf.string, "exclude_item_ids"),
        _spec([None, None], tf.float32, "objective_weights"),
    ]
    items = _spec([None, None], tf.string, "item_ids")
    signatures = {
        "serving_default": _signature(recommend, *user, *query),
        "embed_user": _signature(embed_user, *user, *features),
        "score_items": _signature(score_items, *user, query[1], items),
        "user_history": _signature(user_history, user[0]),
        "item_titles": _signature(titles, items),
    }
    tf.saved_model.save(module, str(path), signatures=signatures)
    defaults = {
        "history_item_ids": tf.make_tensor_proto([["no history"]]),
        "history_levels": tf.make_tensor_proto([[0]], dtype=tf.int64),
    }
    for alias, value in defaults.items():
        for signature in ("serving_default", "embed_user", "score_items"):
            _set_default(path, signature, alias, value)
    _set_default(path, "embed_user", "user_city", tf.make_tensor_proto([[""]]))
    _set_default(path, "embed_user", "user_age", tf.make_tensor_proto([[1.0]]))
    _set_default(path, "serving_default", "exclude_item_ids", tf.make_tensor_proto([["none"]]))
    for signature in ("serving_default", "score_items"):
        _set_default(path, signature, "objective_weights", tf.make_tensor_proto([[0.25, 0.5]]))
    return path


@pytest.fixture(scope="session")
def half_plus_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_half_plus(tmp_path_factory.mktemp("models") / "half_plus_two", 2.0)


@pytest.fixture(scope="session")
def half_plus_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_half_plus(tmp_path_factory.mktemp("models") / "half_plus_three", 3.0)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_zoo(tmp_path_factory.mktemp("models") / "zoo")


@pytest.fixture(scope="session")
def recommender(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_recommender(tmp_path_factory.mktemp("models") / "recommender")


@pytest.fixture(scope="session")
def publish() -> Publish:
    """publish(model, base, version): copies a SavedModel and renames it into place."""

    def copy(model: Path, base: Path, version: int | str) -> Path:
        base.mkdir(parents=True, exist_ok=True)
        temporary = base / f".tmp-{version}"
        shutil.copytree(model, temporary)
        return temporary.rename(base / str(version))

    return copy


@pytest.fixture(scope="session")
def wait_for() -> WaitFor:
    """wait_for(condition, what): polls until the condition holds."""

    def wait(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
            time.sleep(0.01)

    return wait


@pytest.fixture
def start_server() -> Iterator[Callable[..., ModelServer]]:
    """start_server(models, **options): a server on a free port, stopped after the test."""
    servers: list[ModelServer] = []

    def start(models: Any, **options: Any) -> ModelServer:
        defaults: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": 0,
            "poll_seconds": POLL_SECONDS,
            "max_load_retries": 0,
        }
        server = ModelServer(ServerOptions(models=models, **{**defaults, **options}))
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()
