"""The servable as it lies on disk: fresh processes, both flavours, the signatures, the server."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from models.export import export
from models.queries import Model, Query
from models.recommender import Recommender, item_vectors
from models.settings import IndexSettings
from models.towers import RATES, STRENGTHS, UserInputs
from schemas import names
from serving.client import RecommenderClient, RecommenderError
from serving.manifest import ManifestError, verify_manifest
from serving.options import ServerOptions
from serving.servable import Servable
from serving.server import ModelServer
from serving.warmup import warm_up

pytestmark = pytest.mark.slow

TOP_K, N_ITEMS, N_USERS, HISTORY_LENGTH, K = 8, 40, 25, 6, 3
CLICK_WEIGHTS = [1.0, 0.3, 0.05]
USER_KINDS = {"age": "numeric", "gender": "categorical"}

Call = Callable[..., dict[str, np.ndarray]]


def _rows(rows: list[list[Any]], dtype: tf.DType) -> tf.Tensor:
    width = max(map(len, rows))
    empty = {tf.string: "", tf.float32: float("nan"), tf.int64: 0}[dtype]
    padded = [row + [empty] * (width - len(row)) for row in rows]
    return tf.reshape(tf.constant(padded, dtype), [len(rows), width])


def _request(
    users: list[bytes],
    histories: list[list[tuple[bytes, int]]] | None = None,
    exclude: list[list[bytes]] | None = None,
    weights: list[list[float]] | None = None,
    age: list[list[float]] | None = None,
    gender: list[list[bytes]] | None = None,
) -> dict[str, tf.Tensor]:
    """All inputs of serving_default, left out ones at their defaults."""
    histories = histories or [[]]
    return {
        names.USER_ID: tf.constant(users),
        names.HISTORY_ITEM_IDS: _rows([[i for i, _ in row] for row in histories], tf.string),
        names.HISTORY_LEVELS: _rows([[at for _, at in row] for row in histories], tf.int64),
        names.EXCLUDE_ITEM_IDS: _rows(exclude or [[]], tf.string),
        names.OBJECTIVE_WEIGHTS: tf.constant(weights or [[1.0] * K]),
        "user_age": _rows(age or [[]], tf.float32),
        "user_gender": _rows(gender or [[]], tf.string),
    }


def _without(request: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in request.items() if key not in keys}


USER_INPUTS = (names.EXCLUDE_ITEM_IDS, names.OBJECTIVE_WEIGHTS)


@pytest.fixture(scope="module", params=names.FLAVOURS)
def call(request: pytest.FixtureRequest, exported: Any) -> Call:
    """call(signature, **inputs) on each flavour, loaded from disk."""
    loaded = tf.saved_model.load(str(exported.directory / request.param))

    def run(signature: str, **inputs: Any) -> dict[str, np.ndarray]:
        answer = loaded.signatures[signature](**inputs)
        return {key: value.numpy() for key, value in answer.items()}

    return run


def _list(answer: dict[str, np.ndarray], row: int = 0) -> list[bytes]:
    return answer[names.ITEM_IDS][row].tolist()


def _same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(value, two[key], rtol=1e-4, atol=1e-5)
        else:
            assert value.tolist() == two[key].tolist(), key


SOME_HISTORY = [(b"i3", 2), (b"i7", 0), (b"never heard of", 1), (b"i11", 1)]
MANY = {
    "known user": _request([b"u1"]),
    "unknown user": _request([b"stranger"]),
    "history": _request([b"stranger"], [SOME_HISTORY]),
    "known user with history": _request([b"u2"], [SOME_HISTORY]),
    "features": _request([b"stranger"], age=[[33.0]], gender=[[b"F"]]),
    "unknown category": _request([b"stranger"], gender=[[b"neither"]]),
    "weights": _request([b"u3"], weights=[[0.0, 0.2, 3.0]]),
    "exclusions": _request([b"u3"], exclude=[[b"i1", b"i1", b"", b"what", b"i2"]]),
    "nearly everything excluded": _request([b"s"], exclude=[[b"i%d" % i for i in range(37)]]),
    "everything excluded": _request([b"s"], exclude=[[b"i%d" % i for i in range(40)]]),
    "empty user id": _request([b""]),
    "batch": _request(
        [b"u1", b"stranger", b"u24"],
        [[], SOME_HISTORY, [(b"i5", 2)]],
        [[b"i0"], [], [b"i1", b"i2"]],
        [[1, 0, 0], [0, 1, 0], [0.1, 0.2, 0.7]],
    ),
}


# --- fresh processes ------------------------------------------------------------------------

_ANSWER = """
import pickle, sys
import tensorflow as tf
directory, flavour, requests, answers = sys.argv[1:]
if flavour == "scann":
    import scann
model = tf.saved_model.load(directory)
result = {}
for name, (signature, inputs) in pickle.load(open(requests, "rb")).items():
    answer = model.signatures[signature](**{k: tf.constant(v) for k, v in inputs.items()})
    result[name] = {key: value.numpy() for key, value in answer.items()}
pickle.dump(result, open(answers, "wb"))
print(any(name.split(".")[0] == "scann" for name in sys.modules))
"""


def _all_requests() -> dict[str, tuple[str, dict[str, np.ndarray]]]:
    requests = {
        name: (names.SIGNATURE_RECOMMEND, {key: value.numpy() for key, value in inputs.items()})
        for name, inputs in MANY.items()
    }
    for name, (_, inputs) in list(requests.items()):
        user = _without(inputs, *USER_INPUTS)
        requests[f"embed {name}"] = (names.SIGNATURE_EMBED_USER, user)
        requests[f"score {name}"] = (
            names.SIGNATURE_SCORE_ITEMS,
            _without(inputs, names.EXCLUDE_ITEM_IDS)
            | {names.ITEM_IDS: np.array([[b"i3", b"nothing", b"i39"]], object)},
        )
    titles = {names.ITEM_IDS: np.array([[b"i4", b"nothing", b""]], object)}
    requests["titles"] = (names.SIGNATURE_ITEM_TITLES, titles)
    users = {names.USER_ID: np.array([b"u1", b"stranger", b"u24"], object)}
    requests["stored histories"] = (names.SIGNATURE_USER_HISTORY, users)
    return requests


@pytest.fixture(scope="module")
def answers(
    exported: Any, run_python: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Flavour -> (what a fresh process answered, whether it imported scann)."""
    directory = tmp_path_factory.mktemp("answers")
    (directory / "requests").write_bytes(pickle.dumps(_all_requests()))
    result = {}
    for flavour in names.FLAVOURS:
        printed = run_python(
            _ANSWER,
            str(exported.directory / flavour),
            flavour,
            str(directory / "requests"),
            str(directory / flavour),
        )
        result[flavour] = (pickle.loads((directory / flavour).read_bytes()), printed.strip())
    return result


def test_stock_answers_where_scann_was_never_imported(answers: dict[str, Any]) -> None:
    assert answers["stock"][1] == "False"
    assert answers["scann"][1] == "True", "the check itself can tell"


def test_only_the_scann_flavour_holds_its_ops(exported: Any) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    found = {}
    for flavour in names.FLAVOURS:
        path = exported.directory / flavour / "saved_model.pb"
        graph = saved_model_pb2.SavedModel.FromString(path.read_bytes()).meta_graphs[0].graph_def
        ops = {node.op for node in graph.node}
        ops |= {node.op for function in graph.library.function for node in function.node_def}
        found[flavour] = {op for op in ops if op.startswith("Scann>")}
    assert found["stock"] == set()
    assert found["scann"]
    assert b"Scann>" not in (exported.directory / "stock" / "saved_model.pb").read_bytes()


def test_fresh_processes_answer_as_before_saving_and_across_flavours(
    shop: Any, answers: dict[str, Any]
) -> None:
    recommender = Recommender(
        shop.towers,
        shop.transform,
        USER_KINDS,
        shop.catalogue,
        shop.profiles,
        None,
        TOP_K,
        ["exposure", "click", "conversion"],
    )
    methods = {
        names.SIGNATURE_RECOMMEND: recommender.recommend,
        names.SIGNATURE_EMBED_USER: recommender.embed_user,
        names.SIGNATURE_SCORE_ITEMS: recommender.score_items,
        names.SIGNATURE_ITEM_TITLES: recommender.item_titles,
        names.SIGNATURE_USER_HISTORY: recommender.user_history,
    }
    for name, (signature, inputs) in _all_requests().items():
        before = methods[signature]({key: tf.constant(v) for key, v in inputs.items()})
        before = {key: value.numpy() for key, value in before.items()}
        for flavour in names.FLAVOURS:
            _same(before, answers[flavour][0][name])


# --- what is recommended --------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MANY))
def test_answers_equal_brute_force_over_the_exported_vectors(
    exported: Any, shop: Any, call: Call, name: str
) -> None:
    """One inner product of the weighted user blocks with vectors.npz, minus seen and excluded."""
    request = MANY[name]
    embedded = call(names.SIGNATURE_EMBED_USER, **_without(request, *USER_INPUTS))
    assert embedded[names.BLOCK_SIZES].tolist() == shop.towers.block_sizes()
    answer = call(names.SIGNATURE_RECOMMEND, **request)
    with np.load(exported.directory / "vectors.npz") as file:
        item_ids, vectors = file["item_ids"], file["item_vectors"]
    users = request[names.USER_ID].numpy()
    weights = np.broadcast_to(request[names.OBJECTIVE_WEIGHTS].numpy(), (len(users), K))
    for row, user in enumerate(users):
        query = embedded[names.BLOCKS][row] * np.repeat(weights[row], shop.towers.block_sizes())
        scores = dict(zip(item_ids.tolist(), (vectors @ query).tolist(), strict=True))

        def sent(key: str, row: int = row) -> list[bytes]:
            matrix = request[key].numpy()
            return [i for i in matrix[min(row, len(matrix) - 1)].tolist() if i]

        history = sent(names.HISTORY_ITEM_IDS) or [i for i, _ in shop.timelines.get(user, [])]
        for item in {*history, *sent(names.EXCLUDE_ITEM_IDS)} & set(scores):
            del scores[item]
        expected = sorted(scores, key=lambda item: -scores[item])[:TOP_K]
        n = len(expected)
        assert _list(answer, row) == expected + [b""] * (TOP_K - n)
        np.testing.assert_allclose(
            answer[names.SCORES][row],
            [scores[i] for i in expected] + [0.0] * (TOP_K - n),
            atol=1e-5,
        )
        assert np.all(np.isfinite(answer[names.SCORES]))


def test_lists_are_short_only_when_items_run_out(call: Call) -> None:
    answer = call(names.SIGNATURE_RECOMMEND, **MANY["nearly everything excluded"])
    assert set(_list(answer)[:3]) == {b"i37", b"i38", b"i39"}
    assert _list(answer)[3:] == [b""] * 5
    assert answer[names.SCORES][0, 3:].tolist() == [0.0] * 5
    answer = call(names.SIGNATURE_RECOMMEND, **MANY["everything excluded"])
    assert _list(answer) == [b""] * TOP_K
    assert answer[names.SCORES].tolist() == [[0.0] * TOP_K]


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.3, -0.2, 2.0]])
def test_the_fused_score_is_the_weighted_sum_of_the_blocks(
    shop: Any, call: Call, weights: list[float]
) -> None:
    request = _request([b"u1", b"stranger"], [SOME_HISTORY], weights=[weights])
    answer = call(names.SIGNATURE_RECOMMEND, **request)
    scored = call(
        names.SIGNATURE_SCORE_ITEMS,
        **_without(request, names.EXCLUDE_ITEM_IDS),
        item_ids=tf.constant(answer[names.ITEM_IDS]),
    )
    blocks = scored[names.OBJECTIVE_SCORES]
    assert blocks.shape == (2, TOP_K, K)
    # Beside the rate of the item, the first block's score is a cosine times its strength.
    of_cosine, of_rates = shop.towers.weights[STRENGTHS].numpy()[0]
    rates = shop.towers.weights[RATES].numpy()[:, 0]
    of_items = [[of_rates * rates[shop.row_of(i)] for i in row] for row in answer[names.ITEM_IDS]]
    assert np.all(np.abs(blocks[..., 0] - of_items) <= of_cosine + 1e-5)
    np.testing.assert_allclose(answer[names.SCORES], blocks @ np.array(weights), atol=1e-5)
    np.testing.assert_allclose(answer[names.SCORES], scored[names.SCORES], atol=1e-5)


def test_a_weight_of_zero_switches_an_objective_off(call: Call) -> None:
    only = call(names.SIGNATURE_RECOMMEND, **_request([b"u1"], weights=[[0.0, 1.0, 0.0]]))
    scored = call(
        names.SIGNATURE_SCORE_ITEMS,
        **_without(_request([b"u1"]), names.EXCLUDE_ITEM_IDS),
        item_ids=tf.constant(only[names.ITEM_IDS]),
    )
    click = scored[names.OBJECTIVE_SCORES][0, :, 1]
    assert np.all(np.diff(click) <= 1e-6)
    np.testing.assert_allclose(only[names.SCORES][0], click, atol=1e-5)


# --- users ----------------------------------------------------------------------------------


def _embed(call: Call, request: dict[str, tf.Tensor]) -> np.ndarray:
    return call(names.SIGNATURE_EMBED_USER, **_without(request, *USER_INPUTS))[names.BLOCKS]


def _blocks(
    shop: Any, user: bytes, history: list[tuple[bytes, int]], features: dict[str, list[int]]
) -> np.ndarray:
    """The towers on ids looked up in Python."""
    items = [shop.row_of(item) for item, _ in history] or [-1]
    levels = [level for _, level in history] or [0]
    inputs = UserInputs(
        history_items=tf.constant([items]),
        history_levels=tf.constant([levels]),
        history_ranks=tf.constant([range(len(items) - 1, -1, -1)]),
        user_ids=tf.constant([shop.user_row(user)]),
        features={name: tf.constant([features.get(name, [-1])]) for name in USER_KINDS},
    )
    return shop.towers.user_blocks(inputs).numpy()


def test_strings_reach_the_towers_as_the_right_ids(shop: Any, call: Call) -> None:
    female = shop.transform.vocabulary_by_name("user_gender").index(b"F")
    found = _embed(call, _request([b"u24"], [SOME_HISTORY], gender=[[b"F"]]))
    # u24 has no stored feature.
    np.testing.assert_allclose(
        found, _blocks(shop, b"u24", SOME_HISTORY, {"gender": [female]}), rtol=1e-4, atol=1e-5
    )
    oldest = 9  # the last bucket
    found = _embed(call, _request([b"stranger"], age=[[1000.0]], gender=[[b"neither"]]))
    expected = _blocks(shop, b"stranger", [], {"age": [oldest], "gender": [2]})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_stored_profile_stands_in_only_for_what_was_not_sent(shop: Any, call: Call) -> None:
    user = next(u for u, events in shop.timelines.items() if len(events) <= HISTORY_LENGTH)
    stored = shop.timelines[user]
    implicit = _embed(call, _request([user]))
    np.testing.assert_allclose(
        implicit, _embed(call, _request([user], [stored])), rtol=1e-4, atol=1e-5
    )
    raw = shop.user_features[user]
    explicit = _request([user], [stored], age=[raw["age"]], gender=[raw["gender"]])
    np.testing.assert_allclose(implicit, _embed(call, explicit), rtol=1e-4, atol=1e-5)
    # A sent history replaces the stored one: what was stored may come back, and has no effect.
    sent = _request([user], [[(b"i0", 0), (b"i1", 1)]])
    index = shop.train.user_ids.tolist().index(shop.user_row(user))
    features = {name: shop.train.features[name][index].tolist() for name in USER_KINDS}
    expected = _blocks(shop, user, [(b"i0", 0), (b"i1", 1)], features)
    np.testing.assert_allclose(_embed(call, sent), expected, rtol=1e-4, atol=1e-5)
    # A sent feature replaces the stored one.
    other = b"M" if raw["gender"] == [b"F"] else b"F"
    assert not np.allclose(implicit, _embed(call, _request([user], gender=[[other]])))


def test_what_is_stored_is_seen(shop: Any, call: Call) -> None:
    for user in list(shop.timelines)[:6]:
        stored = {item for item, _ in shop.timelines[user]}
        exclude = [b"i%d" % i for i in range(40) if b"i%d" % i not in stored][4:]
        answer = call(names.SIGNATURE_RECOMMEND, **_request([user], exclude=[exclude]))
        found = [item for item in _list(answer) if item]
        assert len(found) == 4
        assert not set(found) & stored


def test_only_the_recent_history_is_read_but_all_of_it_is_seen(call: Call) -> None:
    long = [(b"i%d" % i, i % 3) for i in range(30)]
    recent = long[-HISTORY_LENGTH:]
    np.testing.assert_allclose(
        _embed(call, _request([b"s"], [long])),
        _embed(call, _request([b"s"], [recent])),
        rtol=1e-4,
        atol=1e-5,
    )
    answer = call(names.SIGNATURE_RECOMMEND, **_request([b"s"], [long]))
    assert not set(_list(answer)) & {item for item, _ in long}
    assert all(_list(answer))


def test_padding_of_a_history_means_nothing_wherever_it_is(call: Call) -> None:
    bare = _request([b"s"], [[(b"i1", 2), (b"i2", 0)]])
    padded = _request([b"s"], [[(b"", 2), (b"i1", 2), (b"", 1), (b"i2", 0), (b"", 0)]])
    _same(call(names.SIGNATURE_RECOMMEND, **bare), call(names.SIGNATURE_RECOMMEND, **padded))


def test_levels_may_be_left_out_or_too_many(call: Call) -> None:
    request = _request([b"s"], [[(b"i1", 0), (b"i2", 0)]])
    expected = _embed(call, request)
    for levels in ([[]], [[0]], [[0, 0, 2, 2]]):
        found = _embed(call, request | {names.HISTORY_LEVELS: _rows(levels, tf.int64)})
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    higher = _embed(call, request | {names.HISTORY_LEVELS: _rows([[2, 2]], tf.int64)})
    assert not np.allclose(higher, expected)


@pytest.mark.parametrize(
    "name", ["unknown user", "empty user id", "features", "unknown category", "history"]
)
def test_strangers_are_answered(call: Call, name: str) -> None:
    answer = call(names.SIGNATURE_RECOMMEND, **MANY[name])
    assert len(set(_list(answer))) == TOP_K
    assert b"" not in _list(answer)
    assert np.all(np.isfinite(answer[names.SCORES]))


def test_a_history_of_unknown_items_is_a_history(shop: Any, call: Call) -> None:
    request = _request([b"u1"], [[(b"what", 0), (b"who", 2)]], age=[[30.0]], gender=[[b"F"]])
    answer = call(names.SIGNATURE_RECOMMEND, **request)
    assert all(_list(answer))
    empty = _blocks(shop, b"u1", [(b"what", 0)], {"age": _age(shop, 30.0), "gender": [_f(shop)]})
    np.testing.assert_allclose(_embed(call, request), empty, rtol=1e-4, atol=1e-5)


def _f(shop: Any) -> int:
    return shop.transform.vocabulary_by_name("user_gender").index(b"F")


def _age(shop: Any, age: float) -> list[int]:
    """The bucket of an age that one of the training users has."""
    user = next(u for u, raw in shop.user_features.items() if raw["age"] == [age])
    index = shop.train.user_ids.tolist().index(shop.user_row(user))
    return shop.train.features["age"][index].tolist()


# --- batches and the other signatures -------------------------------------------------------


def _batch() -> tuple[list[dict[str, Any]], dict[str, tf.Tensor]]:
    """Single requests of different lengths, and the same as one batch."""
    users = [b"u1", b"stranger", b"u24", b"u5"]
    histories: list[list[tuple[bytes, int]]] = [
        [],
        SOME_HISTORY,
        [(b"i5", 2)],
        [(b"i%d" % i, i % 3) for i in range(20)],
    ]
    exclude = [[b"i0"], [], [b"i1", b"i2", b"i1"], [b"unknown"]]
    weights = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.5], [0.1, 0.2, 0.7], [1.0, 1.0, 1.0]]
    gender = [[b"F"], [], [b"M"], [b"neither"]]
    singles = [
        {
            "users": [users[i]],
            "histories": [histories[i]],
            "exclude": [exclude[i]],
            "weights": [weights[i]],
            "gender": [gender[i]],
        }
        for i in range(4)
    ]
    return singles, _request(users, histories, exclude, weights, gender=gender)


def test_a_row_of_a_batch_is_answered_as_alone(call: Call) -> None:
    singles, batch = _batch()
    answer = call(names.SIGNATURE_RECOMMEND, **batch)
    for row, single in enumerate(singles):
        alone = call(names.SIGNATURE_RECOMMEND, **_request(**single))
        _same({key: value[row : row + 1] for key, value in answer.items()}, alone)


def test_a_number_that_is_nan_is_unknown(call: Call) -> None:
    for user in (b"stranger", b"u1"):  # of u1 an age is stored
        left_out = _embed(call, _request([user]))
        nan = _embed(call, _request([user], age=[[float("nan")]]))
        np.testing.assert_allclose(nan, left_out, rtol=1e-5, atol=1e-6)
        assert np.all(np.isfinite(nan))
    batch = _embed(call, _request([b"stranger", b"stranger"], age=[[], [44.0]]))
    for row, ages in enumerate(([[]], [[44.0]])):
        alone = _embed(call, _request([b"stranger"], age=ages))
        np.testing.assert_allclose(batch[row], alone[0], rtol=1e-4, atol=1e-5)
    assert not np.allclose(batch[0], batch[1])


def test_one_row_of_an_input_counts_for_all_users(call: Call) -> None:
    users = [b"u1", b"stranger", b"u24"]
    one = _request(users, [SOME_HISTORY], [[b"i1"]], [[0.1, 0.2, 0.7]], [[40.0]], [[b"F"]])
    all_rows = _request(
        users,
        [SOME_HISTORY] * 3,
        [[b"i1"]] * 3,
        [[0.1, 0.2, 0.7]] * 3,
        [[40.0]] * 3,
        [[b"F"]] * 3,
    )
    _same(call(names.SIGNATURE_RECOMMEND, **one), call(names.SIGNATURE_RECOMMEND, **all_rows))


def _example(
    users: list[bytes],
    histories: list[list[tuple[bytes, int]]] = (),
    exclude: list[list[bytes]] = (),
    weights: list[list[float]] = (),
    age: list[list[float]] = (),
    gender: list[list[bytes]] = (),
) -> bytes:
    example = tf.train.Example()
    features = example.features.feature
    features[names.USER_ID].bytes_list.value.extend(users)
    for row in histories:
        features[names.HISTORY_ITEM_IDS].bytes_list.value.extend(item for item, _ in row)
        features[names.HISTORY_LEVELS].int64_list.value.extend(level for _, level in row)
    for key, rows in ((names.EXCLUDE_ITEM_IDS, exclude), ("user_gender", gender)):
        for row in rows:
            features[key].bytes_list.value.extend(row)
    for key, rows in ((names.OBJECTIVE_WEIGHTS, weights), ("user_age", age)):
        for row in rows:
            features[key].float_list.value.extend(row)
    return example.SerializeToString()


def test_examples_are_answered_like_requests(call: Call) -> None:
    singles, batch = _batch()
    serialised = tf.constant([_example(**single) for single in singles])
    _same(
        call(names.SIGNATURE_EXAMPLES, examples=serialised),
        call(names.SIGNATURE_RECOMMEND, **batch),
    )
    bare = call(names.SIGNATURE_EXAMPLES, examples=tf.constant([_example([b"u1"])]))
    _same(bare, call(names.SIGNATURE_RECOMMEND, **_request([b"u1"])))
    nobody = call(names.SIGNATURE_EXAMPLES, examples=tf.constant([b""]))
    _same(nobody, call(names.SIGNATURE_RECOMMEND, **_request([b""])))


def test_an_example_without_a_number_is_not_given_zero_by_its_neighbour(call: Call) -> None:
    lacking, having = _example([b"stranger"]), _example([b"u1"], age=[[44.0]])
    alone = call(names.SIGNATURE_EXAMPLES, examples=tf.constant([lacking]))
    together = call(names.SIGNATURE_EXAMPLES, examples=tf.constant([lacking, having]))
    _same(alone, {key: value[:1] for key, value in together.items()})


def test_titles(call: Call) -> None:
    ids = tf.constant([[b"i4", b"nothing"], [b"", b"i39"]])
    titles = call(names.SIGNATURE_ITEM_TITLES, item_ids=ids)[names.TITLES]
    assert titles.tolist() == [[b"Title of 4", b""], [b"", b"Title of 39"]]


def test_stored_histories_are_those_of_the_logs(shop: Any, call: Call) -> None:
    users = [*shop.timelines, b"stranger", b""]
    answer = call(names.SIGNATURE_USER_HISTORY, user_id=tf.constant(users))
    items, levels = answer[names.HISTORY_ITEM_IDS], answer[names.HISTORY_LEVELS]
    assert items.shape == levels.shape == (len(users), max(map(len, shop.timelines.values())))
    assert levels.dtype == np.int64
    for row, user in enumerate(users):
        stored = shop.timelines.get(user, [])
        found = list(zip(items[row].tolist(), levels[row].tolist(), strict=True))
        assert found == stored + [(b"", 0)] * (items.shape[1] - len(stored))
    nobody = call(names.SIGNATURE_USER_HISTORY, user_id=tf.constant([b"stranger"]))
    assert nobody[names.HISTORY_ITEM_IDS].shape == (1, 0)


def test_a_stored_history_sent_back_is_answered_like_the_stored_one(call: Call) -> None:
    stored = call(names.SIGNATURE_USER_HISTORY, user_id=tf.constant([b"u1"]))
    sent = _request([b"u1"]) | {key: tf.constant(value) for key, value in stored.items()}
    _same(
        call(names.SIGNATURE_RECOMMEND, **sent),
        call(names.SIGNATURE_RECOMMEND, **_request([b"u1"])),
    )


def test_an_event_with_an_item_that_is_no_candidate_is_not_told(shop: Any) -> None:
    unknown = dataclasses.replace(shop.profiles, items=np.full_like(shop.profiles.items, -1))
    recommender = Recommender(
        shop.towers,
        shop.transform,
        USER_KINDS,
        shop.catalogue,
        unknown,
        None,
        TOP_K,
        ["exposure", "click", "conversion"],
    )
    answer = recommender.user_history({names.USER_ID: tf.constant([b"u1"])})
    assert set(answer[names.HISTORY_ITEM_IDS].numpy().ravel()) == {b""}
    assert not answer[names.HISTORY_LEVELS].numpy().any()


def test_items_are_scored_one_list_for_all_or_one_each(call: Call) -> None:
    request = _without(_request([b"u1", b"stranger"]), names.EXCLUDE_ITEM_IDS)
    ids = [b"i3", b"nothing", b"", b"i39"]
    one = call(names.SIGNATURE_SCORE_ITEMS, **request, item_ids=tf.constant([ids]))
    each = call(names.SIGNATURE_SCORE_ITEMS, **request, item_ids=tf.constant([ids, ids]))
    _same(one, each)
    assert one[names.OBJECTIVE_SCORES].shape == (2, 4, K)
    assert np.all(np.isfinite(one[names.SCORES]))
    np.testing.assert_allclose(one[names.SCORES][:, 1], one[names.SCORES][:, 2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("signature", [names.SIGNATURE_RECOMMEND, names.SIGNATURE_SCORE_ITEMS])
def test_weights_that_are_no_numbers_are_refused(call: Call, signature: str, bad: float) -> None:
    request = _request([b"u1"], weights=[[1.0, bad, 0.0]])
    if signature == names.SIGNATURE_SCORE_ITEMS:
        request = _without(request, names.EXCLUDE_ITEM_IDS)
        request[names.ITEM_IDS] = tf.constant([[b"i1"]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="objective_weights must be finite"):
        call(signature, **request)


# --- the servable on disk -------------------------------------------------------------------


def test_vocabularies_lie_where_their_readers_look(exported: Any, shop: Any) -> None:
    for flavour in names.FLAVOURS:
        for file, ids in (
            (names.USERS_FILE, shop.transform.vocabulary_by_name("users")),
            (names.ITEMS_FILE, shop.catalogue.item_ids.tolist()),
        ):
            assert (exported.directory / flavour / file).read_bytes().splitlines() == ids


def test_vectors_belong_to_the_ids_beside_them(exported: Any, shop: Any) -> None:
    with np.load(exported.directory / "vectors.npz") as file:
        item_ids, vectors = file["item_ids"], file["item_vectors"]
    assert item_ids.dtype.kind == "S"
    assert vectors.dtype == np.float32
    assert vectors.tobytes() == item_vectors(shop.towers, shop.catalogue).tobytes()
    features = {name: tf.constant(ids) for name, ids in shop.catalogue.features.items()}
    blocks = shop.towers.item_blocks(tf.range(N_ITEMS), features).numpy()
    for row in (0, 17, 39):
        assert item_ids[row] == shop.catalogue.item_ids[row]
        np.testing.assert_allclose(vectors[row], blocks[row], rtol=1e-5)


def test_manifests_bind_the_files_together(exported: Any) -> None:
    common = json.loads((exported.directory / "manifest.json").read_text())
    assert common == exported.manifest
    assert common["objectives"] == ["exposure", "click", "conversion"]
    assert sum(common["block_sizes"]) == 18
    assert (common["top_k"], common["n_items"], common["n_users"]) == (TOP_K, N_ITEMS, N_USERS)
    for flavour in names.FLAVOURS:
        directory = exported.directory / flavour
        manifest = verify_manifest(str(directory))
        assert manifest is not None
        files = manifest.pop("files")
        assert manifest == common | {"flavour": flavour}
        on_disk = {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}
        assert set(files) == on_disk - {names.MANIFEST_FILE}
        for path, digest in files.items():
            assert hashlib.sha256((directory / path).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("victim", ["saved_model.pb", "variables/variables.data-00000-of-00001"])
def test_a_changed_file_is_noticed(exported: Any, tmp_path: Path, victim: str) -> None:
    copy = tmp_path / "stock"
    shutil.copytree(exported.directory / "stock", copy)
    content = bytearray((copy / victim).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / victim).write_bytes(content)
    with pytest.raises(ManifestError, match=victim):
        verify_manifest(str(copy))


def test_the_model_id_tells_models_apart(exported: Any, shop: Any, tmp_path: Path) -> None:
    def manifest_of(towers: Any, **weights: list[float]) -> dict[str, Any]:
        directory = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        return export(
            directory,
            towers,
            shop.transform,
            USER_KINDS,
            shop.catalogue,
            shop.profiles,
            IndexSettings(top_k=TOP_K),
            ["exposure", "click", "conversion"],
            {"click": CLICK_WEIGHTS} | weights,
        )

    assert manifest_of(shop.towers) == exported.manifest
    reweighted = manifest_of(shop.towers, exposure=[1.0, 0.0, 0.2])
    assert reweighted["model_id"] != exported.manifest["model_id"]
    assert reweighted["tower_sha256"] == exported.manifest["tower_sha256"]
    weight = shop.towers.weights["history"]
    value = weight.numpy()
    try:
        weight.assign(value * 1.01)
        other = manifest_of(shop.towers)
    finally:
        weight.assign(value)
    assert other["model_id"] != exported.manifest["model_id"]
    assert other["tower_sha256"] != exported.manifest["tower_sha256"]
    assert other["vocabulary_sha256"] == exported.manifest["vocabulary_sha256"]


def test_vectors_that_are_not_finite_are_refused(shop: Any, tmp_path: Path) -> None:
    weight = shop.towers.weights["item_id"]
    value = weight.numpy()
    broken = value.copy()
    broken[7] = np.nan
    weight.assign(broken)
    try:
        with pytest.raises(ValueError, match="1 item vectors are not finite") as error:
            _export_again(shop, tmp_path)
    finally:
        weight.assign(value)
    assert repr(shop.catalogue.item_ids[7]) in str(error.value)


def test_an_id_that_occurs_twice_is_refused(shop: Any, tmp_path: Path) -> None:
    ids = shop.catalogue.item_ids.copy()
    ids[3] = ids[4]
    twice = dataclasses.replace(shop, catalogue=dataclasses.replace(shop.catalogue, item_ids=ids))
    with pytest.raises(ValueError, match="holds an id twice"):
        _export_again(twice, tmp_path)


def _export_again(shop: Any, directory: Path) -> None:
    export(
        directory,
        shop.towers,
        shop.transform,
        USER_KINDS,
        shop.catalogue,
        shop.profiles,
        IndexSettings(top_k=TOP_K),
        ["exposure", "click", "conversion"],
        {},
    )


def test_objectives_without_chosen_weights_sum_the_blocks_up_to_their_own(exported: Any) -> None:
    weights = exported.manifest["weights"]
    assert weights == {
        "exposure": [1.0, 0.0, 0.0],
        "click": CLICK_WEIGHTS,
        "conversion": [1.0, 1.0, 1.0],
    }
    for flavour in names.FLAVOURS:
        assert Model(str(exported.directory / flavour), USER_KINDS).weights == weights


def test_weights_of_a_model_that_was_pushed_before_they_were_chosen(
    exported: Any, tmp_path: Path
) -> None:
    copy = tmp_path / "stock"
    shutil.copytree(exported.directory / "stock", copy)
    manifest = json.loads((copy / names.MANIFEST_FILE).read_text())
    del manifest["weights"]
    (copy / names.MANIFEST_FILE).write_text(json.dumps(manifest))
    assert Model(str(copy), USER_KINDS).weights == {
        "exposure": [1.0, 0.0, 0.0],
        "click": [1.0, 1.0, 0.0],
        "conversion": [1.0, 1.0, 1.0],
    }


def test_evaluation_asks_the_model_in_batches(exported: Any, call: Call) -> None:
    """`queries.Model`, whatever the order and the batch size."""
    queries = [
        Query(user, tuple(i for i, _ in history), tuple(at for _, at in history), (), (), features)
        for user, history, features in (
            (b"u1", SOME_HISTORY * 3, {"age": (30.0,), "gender": (b"F",)}),
            (b"s", [], {"age": (50.0,), "gender": ()}),
            (b"s", [(b"i5", 2)], {"age": (22.0,), "gender": (b"M",)}),
        )
    ]
    weights = [0.5, 0.1, 2.0]
    for batch_size in (1, 2, 256):
        model = Model(str(exported.directory / "stock"), USER_KINDS, batch_size)
        lists = model.recommend(queries, weights)
        assert lists.shape == (3, TOP_K)
        for query, found in zip(queries, lists, strict=True):
            history = list(zip(query.history, query.history_levels, strict=True))
            request = _request(
                [query.user_id],
                [history],
                weights=[weights],
                age=[list(query.features["age"])],
                gender=[list(query.features["gender"])],
            )
            assert found.tolist() == _list(call(names.SIGNATURE_RECOMMEND, **request))


def test_evaluation_does_not_depend_on_who_shares_a_batch(exported: Any) -> None:
    old = Query(b"stranger", (), (), (), (), {"age": (44.0,), "gender": ()})
    ageless = dataclasses.replace(old, features={"age": (), "gender": ()})
    path = str(exported.directory / "stock")
    alone, together = (
        Model(path, USER_KINDS, batch_size).recommend([old, ageless], [1.0, 1.0, 1.0])[0]
        for batch_size in (1, 2)
    )
    assert alone.tolist() == together.tolist()


def _warm_up_requests(directory: Path) -> list[Any]:
    dataset = tf.data.TFRecordDataset(str(directory / names.WARMUP_FILE))
    logs = [PredictionLog.FromString(record) for record in dataset.as_numpy_iterator()]
    return [log.predict_log.request for log in logs]


def _inputs(request: Any) -> dict[str, np.ndarray]:
    return {key: tf.make_ndarray(value) for key, value in request.inputs.items()}


def test_each_flavour_carries_warm_up_requests_for_each_signature(exported: Any, shop: Any) -> None:
    for flavour in names.FLAVOURS:
        servable = Servable("recommender", 1, str(exported.directory / flavour))
        requests = _warm_up_requests(exported.directory / flavour)
        assert {r.model_spec.signature_name for r in requests} == set(servable.signatures)
        for request in requests:
            # Servers before 2.14 fill in no defaults.
            inputs = servable.signatures[request.model_spec.signature_name].inputs
            assert set(request.inputs) == set(inputs)
        assert warm_up(servable) == len(requests)
        servable.close()


def test_warm_up_requests_are_like_real_ones(exported: Any, shop: Any) -> None:
    requests = [
        _inputs(request)
        for request in _warm_up_requests(exported.directory / "stock")
        if request.model_spec.signature_name == names.SIGNATURE_RECOMMEND
    ]
    users = {user for request in requests for user in request[names.USER_ID]}
    assert len(users & set(shop.timelines)) == 3
    assert b"" in users, "an unknown user"
    assert {len(request[names.USER_ID]) for request in requests} == {1, 4}
    sent_weights = [tuple(request[names.OBJECTIVE_WEIGHTS][0].tolist()) for request in requests]
    for weights in exported.manifest["weights"].values():
        assert tuple(np.float32(weights).tolist()) in sent_weights
    (full,) = (request for request in requests if request[names.HISTORY_ITEM_IDS].size)
    known = set(shop.catalogue.item_ids)
    for key in (names.HISTORY_ITEM_IDS, names.EXCLUDE_ITEM_IDS):
        assert full[key].size
        assert set(full[key].ravel()) <= known
    assert full[names.HISTORY_LEVELS].shape == full[names.HISTORY_ITEM_IDS].shape


_FIRST_CALL = """
import sys, time
import numpy as np
from serving.servable import Servable
from serving.warmup import load_warm
path, warm, *outputs = sys.argv[1:]
servable = load_warm("m", 1, path) if warm == "warm" else Servable("m", 1, path)
signature = servable.signatures["serving_default"]
feeds = dict(signature.defaults) | {"user_id": np.array([b"u1"], object)}
started = time.monotonic()
item_ids = servable.run(signature, feeds, outputs)[0]
print(time.monotonic() - started, *(item.decode() for item in item_ids[0]))
"""


@pytest.mark.parametrize(
    ("flavour", "outputs"),
    [("scann", ["item_ids", "scores"]), ("stock", ["item_ids"])],
)
def test_the_first_call_of_a_warmed_process_is_fast(
    exported: Any, run_python: Callable[..., str], flavour: str, outputs: list[str]
) -> None:
    path = str(exported.directory / flavour)
    warm, cold = (
        run_python(_FIRST_CALL, path, kind, *outputs).split() for kind in ("warm", "cold")
    )
    assert warm[1:] == cold[1:]
    assert len(warm[1:]) == TOP_K
    assert float(warm[0]) < float(cold[0]) / 3


# --- served ---------------------------------------------------------------------------------


def test_signatures_carry_defaults_for_all_but_the_user(exported: Any) -> None:
    for flavour in names.FLAVOURS:
        servable = Servable("recommender", 1, str(exported.directory / flavour))
        try:
            assert set(servable.signatures) == {
                names.SIGNATURE_RECOMMEND,
                names.SIGNATURE_EMBED_USER,
                names.SIGNATURE_SCORE_ITEMS,
                names.SIGNATURE_EXAMPLES,
                names.SIGNATURE_ITEM_TITLES,
                names.SIGNATURE_USER_HISTORY,
            }
            recommend = servable.signatures[names.SIGNATURE_RECOMMEND]
            assert set(recommend.inputs) - set(recommend.defaults) == {names.USER_ID}
            assert recommend.defaults[names.OBJECTIVE_WEIGHTS].tolist() == [[1.0] * K]
            for key in set(recommend.defaults) - {names.OBJECTIVE_WEIGHTS}:
                assert recommend.defaults[key].shape == (1, 0), key
            embed = servable.signatures[names.SIGNATURE_EMBED_USER]
            assert set(embed.inputs) - set(embed.defaults) == {names.USER_ID}
            score = servable.signatures[names.SIGNATURE_SCORE_ITEMS]
            required = set(score.inputs) - set(score.defaults)
            assert required == {names.USER_ID, names.ITEM_IDS}
        finally:
            servable.close()


@pytest.fixture(scope="module")
def server(exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """The real server with both flavours, from directories as the pusher leaves them."""
    base = tmp_path_factory.mktemp("serving")
    paths = {}
    for name, flavour in (("recommender", "scann"), ("recommender_stock", "stock")):
        shutil.copytree(exported.directory / flavour, base / name / "1")
        paths[name] = str(base / name)
    server = ModelServer(ServerOptions(models=paths, host="127.0.0.1", port=0))
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("model", ["recommender", "recommender_stock"])
def test_the_client_gets_the_same_answers_from_the_server(
    server: ModelServer, shop: Any, call: Call, model: str
) -> None:
    with RecommenderClient(f"127.0.0.1:{server.port}", model, 30.0) as client:

        def same(answer: Any, request: dict[str, tf.Tensor]) -> None:
            expected = call(names.SIGNATURE_RECOMMEND, **request)
            wanted = [item.decode() for item in _list(expected) if item]
            assert [item for item, _ in answer.items] == wanted
            np.testing.assert_allclose(
                [score for _, score in answer.items],
                expected[names.SCORES][0][: len(wanted)],
                rtol=1e-4,
                atol=1e-5,
            )

        same(client.recommend("u1"), MANY["known user"])  # all but the user left to defaults
        same(client.recommend("stranger", history=[("i3", 2)]), _request([b"s"], [[(b"i3", 2)]]))
        same(
            client.recommend(
                "u3",
                weights=[0.0, 0.2, 3.0],
                exclude=["i1", "i2"],
                features={"age": 30.0, "gender": "F"},
            ),
            _request(
                [b"u3"], None, [[b"i1", b"i2"]], [[0.0, 0.2, 3.0]], age=[[30.0]], gender=[[b"F"]]
            ),
        )
        nearly = [f"i{i}" for i in range(37)]
        assert len(client.recommend("stranger", exclude=nearly).items) == 3
        assert client.titles(["i4", "nothing"]) == ["Title of 4", ""]
        embedded = client.embed_user("u1")
        expected = call(names.SIGNATURE_EMBED_USER, **_without(MANY["known user"], *USER_INPUTS))
        np.testing.assert_allclose(embedded.blocks, expected[names.BLOCKS][0], rtol=1e-4, atol=1e-5)
        assert list(embedded.block_sizes) == expected[names.BLOCK_SIZES].tolist()
        request = _without(MANY["weights"], names.EXCLUDE_ITEM_IDS)
        scored = client.score_items("u3", ["i3", "nothing"], weights=[0.0, 0.2, 3.0])
        expected = call(
            names.SIGNATURE_SCORE_ITEMS, **request, item_ids=tf.constant([[b"i3", b"nothing"]])
        )
        for key, found in (
            (names.OBJECTIVE_SCORES, scored.objective_scores),
            (names.SCORES, scored.scores),
        ):
            np.testing.assert_allclose(found, expected[key][0], rtol=1e-4, atol=1e-5)
        stored = [(item.decode(), level) for item, level in shop.timelines[b"u1"]]
        assert client.user_history("u1") == stored
        assert client.user_history("stranger") == []


@pytest.mark.parametrize("model", ["recommender", "recommender_stock"])
@pytest.mark.parametrize(
    "weights",
    [[float("nan"), 1.0, 1.0], [1.0], [1.0, 1.0], [1.0, 1.0, 1.0, 1.0], []],
    ids=["nan", "1", "2", "4", "0"],
)
def test_bad_weights_are_an_invalid_argument_of_the_server(
    server: ModelServer, model: str, weights: list[float]
) -> None:
    with (
        RecommenderClient(f"127.0.0.1:{server.port}", model, 30.0) as client,
        pytest.raises(RecommenderError) as error,
    ):
        client.recommend("u1", weights=weights)
    assert error.value.status == "INVALID_ARGUMENT"
    assert "objective_weights" in error.value.details
