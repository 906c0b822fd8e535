from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.logs import DataError, DataSettings, check_objectives
from schemas.settings import ConfigError

OBJECTIVES = ["exposure", "click", "conversion"]
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def data(**change: Any) -> dict[str, Any]:
    source = {
        "path": "log.csv",
        "columns": {"user_id": "user", "item_id": "item", "timestamp": "time"},
        "levels": {"click": {"column": "rating", "at_least": 4}, "conversion": {"column": "buy"}},
    }
    return {"interactions": [source | change.pop("source", {})], **change}


def refused(*parts: str, **change: Any) -> None:
    with pytest.raises(ConfigError) as error:
        DataSettings.parse(data(**change))
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_shipped_configurations_are_valid(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    parsed = DataSettings.parse(config["data"])
    check_objectives(parsed, [objective["name"] for objective in config["objectives"]])
    # Executors get the settings as JSON.
    assert DataSettings.model_validate_json(parsed.model_dump_json()) == parsed


def test_defaults() -> None:
    parsed = DataSettings.parse(data())
    assert parsed.split.share == 0.2
    assert parsed.interactions[0].delimiter == ","
    assert parsed.max_line_bytes == 1_048_576


def test_an_unknown_key_names_the_nearest() -> None:
    refused("timestamp_unit", source={"timestamp_unt": "ms"})
    refused("Did you mean 'eval_share'?", split={"kind": "time", "evalshare": 0.1})
    refused("Did you mean 'at_least'?", source={"levels": {"click": {"column": "a", "atleast": 1}}})


def test_exactly_one_of_levels_event_and_level() -> None:
    refused("exactly one of", "given: none of them", source={"levels": None})
    refused("given: levels, level", source={"level": "click"})


def test_csv_keys() -> None:
    refused("needs the names of its columns", source={"header": False})
    refused("set `header: false`", source={"fields": ["user"]})
    refused("single character", source={"delimiter": "||"})
    refused("delimiter only applies to format: csv", source={"format": "jsonl", "delimiter": ";"})
    refused("iconv", source={"encoding": "utf-16"})
    refused("not an encoding", source={"encoding": "utf-9"})
    refused(
        "names the column 'rating'",
        "Did you mean 'ratings'?",
        source={"header": False, "fields": ["user", "item", "time", "ratings", "buy"]},
    )
    refused(
        "buy more than once",
        source={"header": False, "fields": ["user", "item", "time", "rating", "buy", "buy"]},
    )


def test_no_quoting_survives_the_way_to_an_executor() -> None:
    parsed = DataSettings.parse(data(source={"quote": None}))
    assert parsed.interactions[0].quote is None
    assert DataSettings.parse(json.loads(parsed.model_dump_json())) == parsed


def test_a_time_split_needs_times() -> None:
    untimed = {"columns": {"user_id": "user", "item_id": "item"}}
    refused("log.csv", "`split: {kind: leave_out}`", source=untimed)
    DataSettings.parse(data(source=untimed, split={"kind": "leave_out"}))
    DataSettings.parse(data(split={"kind": "leave_out"}))  # allowed, though the log has times


def test_splits() -> None:
    refused("not both", split={"eval_share": 0.2, "eval_from": "1998-03-01"})
    refused("only applies to kind: time", split={"kind": "leave_out", "eval_from": "1998-03-01"})
    refused("ISO 8601", split={"eval_from": "March"})
    refused("split.eval_share", split={"eval_share": 1.0})
    for text in ("1998-03-01", "1998-03-01T00:00:00Z", "1998-03-01T01:00:00+01:00"):
        as_yaml = yaml.safe_load(f"eval_from: {text}")
        for raw in (as_yaml, {"eval_from": text}):
            split = DataSettings.parse(data(split=raw)).split
            assert split.eval_from_ms == 888_710_400_000


def test_features() -> None:
    def catalogue(**feature: Any) -> dict[str, Any]:
        given = {"name": "genre", "column": "g", "kind": "categorical"} | feature
        return {"catalogue": {"path": "items.csv", "features": [given]}}

    for name in ("id", "ids", "title", "a-b", "1st", ""):
        refused("cannot be the name of a feature", **catalogue(name=name))
    refused("separator does not apply", **catalogue(kind="numeric", separator="|"))
    refused("min does not apply", **catalogue(min=1))
    refused("larger than max", **catalogue(kind="numeric", min=2, max=1))
    twice = catalogue()
    twice["catalogue"]["features"] *= 2
    refused("genre is used more than once", **twice)


def test_events() -> None:
    event = {"column": "e", "values": {1: "click"}, "ignore": [2]}
    parsed = DataSettings.parse(data(source={"levels": None, "event": event}))
    assert parsed.interactions[0].event is not None
    assert parsed.interactions[0].event.values == {"1": "click"}
    refused(
        "both in values: and in ignore:", source={"levels": None, "event": event | {"ignore": [1]}}
    )


def test_timeline_bounds() -> None:
    refused("must be smaller than max_events", timeline={"max_events": 500})


def test_objectives() -> None:
    parsed = DataSettings.parse(data())
    check_objectives(parsed, OBJECTIVES)
    with pytest.raises(ConfigError, match="Did you mean 'convert'"):
        check_objectives(parsed, ["exposure", "click", "convert"])
    with pytest.raises(ConfigError, match=r"'cart' has no rule\. Only the first one"):
        check_objectives(parsed, ["exposure", "click", "cart", "conversion"])
    views = DataSettings.parse(data(source={"levels": None, "level": "exposure"}))
    check_objectives(views, ["exposure"])
    with pytest.raises(ConfigError, match="no source can reach the objective 'click'"):
        check_objectives(views, ["exposure", "click"])


def test_a_data_error_is_a_configuration_error() -> None:
    # The command line shows both the same way.
    assert issubclass(DataError, ConfigError)
