from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from pipeline.config import PipelineConfig, load_config
from schemas.settings import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))

# Every section, and a value other than the default wherever one is possible.
FULL: dict[str, Any] = {
    "name": "full",
    "seed": 3,
    "objectives": [
        {
            "name": name,
            "rounds": 2,
            "learning_rate": 0.01,
            "batch_size": 64,
            "targets_per_row": 3,
            "temperature": 0.2,
            "history_dropout": 0.1,
            "user_id_dropout": 0.2,
            "tau": 0.4,
            "prune": "fixed",
            "importance": "activation",
            "recovery_share": 0.2,
            "recovery_rounds": 1,
            "gamma": 0.3,
            "margin": "constant",
            "hard_negative_weight": 2.0,
            "head": "increment",
            "scale": 3.0,
        }
        for name in ("exposure", "click")
    ],
    "data": {
        "interactions": [
            {
                "path": "wide.csv",
                "format": "csv",
                "delimiter": ";",
                "quote": "'",
                "header": False,
                "fields": ["u", "i", "t", "rating"],
                "encoding": "latin-1",
                "columns": {"user_id": "u", "item_id": "i", "timestamp": "t"},
                "timestamp_unit": "ms",
                "levels": {"click": {"column": "rating", "at_least": 4.0}},
                "event": None,
                "level": None,
            },
            {
                "path": "events.jsonl",
                "format": "jsonl",
                "columns": {"user_id": "u", "item_id": "i", "timestamp": "t"},
                "event": {"column": "e", "values": {"v": "exposure"}, "ignore": ["x"]},
            },
        ],
        "catalogue": {
            "path": "items.csv",
            "columns": {"item_id": "i", "title": "name"},
            "features": [
                {
                    "name": "genres",
                    "column": "g",
                    "kind": "categorical",
                    "separator": "|",
                    "values": ["a", "b"],
                    "min": None,
                    "max": None,
                }
            ],
        },
        "users": {
            "path": "users.parquet",
            "format": "parquet",
            "columns": {"user_id": "u"},
            "features": [{"name": "age", "column": "a", "kind": "numeric", "min": 1.0, "max": 9.0}],
        },
        "split": {"kind": "time", "eval_share": None, "eval_from": "2024-03-01T00:00:00Z"},
        "max_line_bytes": 2048,
        "max_dead_letter_share": 0.5,
        "timeline": {"max_events": 20, "context_events": 5},
        "shards": 2,
        "catalogue_shards": 3,
    },
    "model": {
        "towers": {
            "dimension": 16,
            "item_embedding": 8,
            "user_embedding": 4,
            "feature_embedding": 2,
            "hidden": [32],
            "history_length": 7,
            "recency": [2.0],
            "minimum_block": 2,
        },
        "negatives": {"kind": "sampled", "exact_limit": 10, "random": 5},
        "validation": {"share": 0.2, "max_queries": 9, "round_steps": 4, "patience": 2},
    },
    "trainer": {"distribution": "mirrored"},
    "index": {"top_k": 150, "kind": "tree", "leaves_to_search_share": 0.5, "reorder": 99},
    "evaluation": {
        "weights": {"click": [0.0, 1.0]},
        "max_queries": 50,
        "floors": {"click": {"recall@50": 0.1}},
        "minimum_lift": 1.2,
        "max_drop": 0.1,
        "ann_recall": 0.9,
        "ann_queries": 12,
    },
    "serving": {
        "model_name": "shop",
        "directory": "somewhere",
        "keep_versions": 2,
        "address": "localhost:8500",
        "poll_timeout_seconds": 5.0,
        "sample_size": 3,
        "validation_timeout_seconds": 9.0,
    },
    "beam": {"options": ["--runner=DirectRunner"]},
    "kubeflow": {
        "default": {"cpu": 1.5, "memory": "3Gi", "accelerator": {"type": "tpu", "count": 3}},
        "nodes": {
            "CascadedTrainer": {
                "cpu": 8.0,
                "memory": "16Gi",
                "accelerator": {"type": "nvidia.com/gpu", "count": 2},
            }
        },
        "volumes": [{"claim": "models", "path": "/models"}],
    },
}

Place = tuple[str | int, ...]


def changed(place: Place, value: Any, base: dict[str, Any] = FULL) -> dict[str, Any]:
    """`base` with one value set."""
    raw = copy.deepcopy(base)
    target: Any = raw
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = value
    return raw


def refusal(raw: Any) -> str:
    with pytest.raises(ConfigError) as error:
        PipelineConfig.parse(raw)
    return str(error.value)


def sections(value: BaseModel, place: Place = ()) -> Iterator[tuple[Place, BaseModel]]:
    """Every section of a configuration and where it stands."""
    yield place, value
    for name in type(value).model_fields:
        yield from _sections_in(getattr(value, name), (*place, name))


def _sections_in(value: Any, place: Place) -> Iterator[tuple[Place, BaseModel]]:
    if isinstance(value, BaseModel):
        yield from sections(value, place)
    elif isinstance(value, tuple | list):
        for index, part in enumerate(value):
            yield from _sections_in(part, (*place, index))
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _sections_in(part, (*place, key))


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every plain value of nested mappings and lists."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, (*place, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from leaves(part, (*place, index))
    else:
        yield place, value


SECTIONS = list(sections(PipelineConfig.parse(FULL)))


def key_of(place: Place) -> str:
    return ".".join(map(str, place))


# --- unknown, missing, wrong --------------------------------------------------------------------


def test_the_full_configuration_has_every_section() -> None:
    # A section added to the settings must be added to FULL, or the tests below pass it by.
    def reachable(section: type[BaseModel]) -> set[type[BaseModel]]:
        found = {section}
        for field in section.model_fields.values():
            for inner in _models_in(field.annotation):
                found |= reachable(inner)
        return found

    assert {type(section) for _, section in SECTIONS} == reachable(PipelineConfig)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


@pytest.mark.parametrize(
    ("place", "key"),
    [
        pytest.param(place, key, id=key_of((*place, key)))
        for place, section in SECTIONS
        for key in type(section).model_fields
    ],
)
def test_unknown_key_names_the_nearest_valid_key(place: Place, key: str) -> None:
    misspelt = f"{key}e" if len(key) < 5 else key[:2] + key[3:]
    message = refusal(changed((*place, misspelt), 1))
    assert f"{key_of((*place, misspelt))}: unknown key. Did you mean '{key}'?" in message
    assert "Known keys: " in message


def test_key_unlike_any_other_lists_the_known_ones() -> None:
    message = refusal(changed(("model", "towers", "zzz"), 1))
    assert "model.towers.zzz: unknown key." in message
    assert "Did you mean" not in message
    assert "dimension" in message


@pytest.mark.parametrize("section", ["name", "objectives", "data"])
def test_missing_section_is_named(section: str) -> None:
    raw = copy.deepcopy(FULL)
    del raw[section]
    assert f"{section}: this key is required" in refusal(raw)


def test_every_fault_is_told_at_once() -> None:
    raw = changed(("seed",), -1)
    raw["index"]["top_q"] = 3
    del raw["name"]
    message = refusal(raw)
    assert message.count("\n") == 2
    for where in ("seed: ", "index.top_q: ", "name: "):
        assert where in message


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("seed",), "seven"),
        (("seed",), -1),
        (("name",), "two words"),
        (("objectives",), []),
        (("objectives", 0, "name"), "Click!"),
        (("objectives", 0, "tau"), 1.0),
        (("objectives", 1, "rounds"), 0),
        (("objectives", 0, "head"), "sideways"),
        (("model", "towers", "hidden"), [0]),
        (("model", "negatives", "kind"), "hard"),
        (("model", "towers", "recency"), [0.0]),
        (("model", "validation", "share"), 0.5),
        (("model", "validation", "patience"), 0),
        (("index", "leaves_to_search_share"), 0.0),
        (("evaluation", "max_drop"), 1.5),
        (("evaluation", "ann_recall"), -0.1),
        (("serving", "keep_versions"), 0),
        (("serving", "model_name"), "../up"),
        (("data", "interactions"), []),
        (("data", "max_dead_letter_share"), 2.0),
        (("model",), None),
    ],
    ids=lambda value: key_of(value) if isinstance(value, tuple) else repr(value),
)
def test_wrong_value_is_told_with_its_place(place: Place, value: Any) -> None:
    assert key_of(place) in refusal(changed(place, value))


# --- rules between sections ---------------------------------------------------------------------


def test_objectives_occur_once() -> None:
    raw = changed(("objectives", 1, "name"), "exposure")
    assert "each name may occur once" in refusal(raw)


@pytest.mark.parametrize(
    ("section", "value"), [("weights", [1.0, 1.0]), ("floors", {"recall@50": 0.1})]
)
def test_evaluation_knows_only_the_objectives(section: str, value: Any) -> None:
    message = refusal(changed(("evaluation", section), {"clicks": value}))
    assert f"evaluation.{section}: 'clicks' is no objective. Did you mean 'click'?" in message
    assert "Objectives: exposure, click." in message


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0], []])
def test_evaluation_needs_one_weight_per_objective(weights: list[float]) -> None:
    message = refusal(changed(("evaluation", "weights", "click"), weights))
    assert f"evaluation.weights.click: {len(weights)} weights given" in message
    assert "exposure, click" in message


def test_floors_know_only_the_metrics() -> None:
    message = refusal(changed(("evaluation", "floors", "click"), {"recall@51": 0.1}))
    assert "unknown metric 'recall@51'. Did you mean 'recall@50'?" in message
    assert "ndcg@50" in message


def test_lists_must_be_as_long_as_the_longest_metric() -> None:
    assert "index.top_k is 99" in refusal(changed(("index", "top_k"), 99))
    assert PipelineConfig.parse(changed(("index", "top_k"), 100)).index.top_k == 100


def test_source_names_only_the_objectives() -> None:
    message = refusal(
        changed(("data", "interactions", 1, "event", "values"), {"v": "exposur", "c": "click"})
    )
    assert "data.interactions.1.event.values.v: 'exposur' is not an objective." in message
    assert "Did you mean 'exposure'?" in message


# --- identity -----------------------------------------------------------------------------------


def test_every_field_round_trips() -> None:
    config = PipelineConfig.parse(FULL)
    again = PipelineConfig.parse(json.loads(config.model_dump_json()))
    assert again == config
    assert again.sha256() == config.sha256()
    assert PipelineConfig.parse(json.loads(config.model_dump_json(exclude_defaults=True))) == config


def test_every_field_of_the_full_configuration_arrives() -> None:
    dumped = json.loads(PipelineConfig.parse(FULL).model_dump_json())
    for place, value in leaves(FULL):
        found: Any = dumped
        for step in place:
            found = found[step]
        assert found == value, key_of(place)


def _another(place: Place, value: Any) -> Any:
    """A valid value other than the given one, or None where there is none of its own."""
    others = {
        "format": None,  # brings its own rules on which other keys may stand
        "kind": {"tree": "hashed", "sampled": "exact"}.get(value),
        "head": "standalone",
        "prune": "global",
        "importance": "l1",
        "distribution": "multi_worker",
        "margin": "negated",
        "timestamp_unit": "us",
        "encoding": "utf-8",
        "eval_from": "2024-03-02T00:00:00Z",
        "header": None,
        "delimiter": "\t",
        "quote": '"',
        "memory": "9Gi",
    }
    if place[0] == "objectives" and place[-1] == "name":
        return None
    if str(place[-1]) in others:
        return others[str(place[-1])]
    if isinstance(value, str):
        return value + "x"
    return value + 1 if isinstance(value, int) else value * 0.9 + 0.003


CHANGES = [
    (place, other)
    for place, value in leaves(FULL)
    if value is not None and (other := _another(place, value)) is not None
]


def test_hash_changes_with_every_value() -> None:
    assert len(CHANGES) > 75
    base = PipelineConfig.parse(FULL).sha256()
    hashes = {base}
    refused = []
    for place, other in CHANGES:
        try:
            hashes.add(PipelineConfig.parse(changed(place, other)).sha256())
        except ConfigError:
            refused.append(key_of(place))
    # Names that other keys refer to cannot change alone.
    assert set(refused) == {
        *(f"data.interactions.0.fields.{index}" for index in range(4)),
        *(f"data.interactions.0.columns.{key}" for key in ("user_id", "item_id", "timestamp")),
        "data.interactions.0.levels.click.column",
        "data.interactions.1.event.values.v",
    }
    assert len(hashes) == 1 + len(CHANGES) - len(refused)


def test_hash_is_that_of_the_content_not_of_the_text(tmp_path: Path) -> None:
    plain, spelt = tmp_path / "plain.yaml", tmp_path / "spelt.yaml"
    short = {key: FULL[key] for key in ("name", "objectives", "data")}
    plain.write_text(yaml.safe_dump(short))
    # Defaults spelt out, comments and other order change nothing.
    spelt.write_text("# a comment\nseed: 7\nindex: {top_k: 100}\n" + yaml.safe_dump(short))
    assert load_config(plain).sha256() == load_config(spelt).sha256()


def test_settings_cannot_be_changed() -> None:
    config = PipelineConfig.parse(FULL)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 4  # type: ignore[misc]  # the point of the test


# --- files --------------------------------------------------------------------------------------


def test_missing_file_names_the_nearest_of_the_ready_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "movielens100k.yaml")
    assert f"no configuration at {tmp_path / 'movielens100k.yaml'}" in str(error.value)
    assert "Did you mean 'movielens-100k'?" in str(error.value)
    assert "retailrocket-kaggle" in str(error.value)


def test_ready_configuration_is_found_by_name_unless_a_file_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("retailrocket")).name == "retailrocket"
    short = {key: FULL[key] for key in ("name", "objectives", "data")}
    Path("retailrocket").write_text(yaml.safe_dump(short))
    assert load_config(Path("retailrocket")).name == "full"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"name: [unclosed", "is not a YAML file"),
        (b"name: \xff\xfe", "is not a YAML file"),
        (b"", "expected a mapping of sections, got NoneType"),
        (b"- a\n- b\n", "expected a mapping of sections, got list"),
        (b"just words", "expected a mapping of sections, got str"),
        (b"name: x\nseed: 1\n", "objectives: this key is required"),
    ],
)
def test_unusable_file_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(path) in str(error.value)
    assert told in str(error.value)


def test_there_are_ready_configurations() -> None:
    assert {path.stem for path in CONFIGS} >= {
        "movielens-100k",
        "retailrocket",
        "retailrocket-kaggle",
        "kuairand-pure",
        "aliccp",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_ready_configuration_loads_without_its_data(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert config.objective_names == ["exposure", "click", "conversion"]
    assert PipelineConfig.parse(json.loads(config.model_dump_json())) == config
    comment = path.read_text(encoding="utf-8").split("name:")[0]
    assert "Get it:" in comment
    assert "Terms:" in comment


def test_a_log_without_times_needs_hidden_history() -> None:
    raw = changed(("data", "split"), {"kind": "leave_out", "eval_share": 0.2})
    raw["objectives"][1]["history_dropout"] = 0.0
    assert "objectives.click.history_dropout is 0" in refusal(raw)


def test_importance_by_gradients_is_measured_on_one_device() -> None:
    raw = copy.deepcopy(FULL)
    raw["objectives"][1]["importance"] = "gradient"
    told = refusal(raw)
    assert "objectives.click.importance is gradient" in told
    assert "trainer.distribution is mirrored: use none" in told
    raw["trainer"]["distribution"] = "none"
    PipelineConfig.parse(raw)
