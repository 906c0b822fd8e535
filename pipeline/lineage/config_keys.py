"""A configuration as dotted keys, so that two can be compared and one be read line by line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value that is no mapping; sorted by key.

    Members of a list that all have a name are found by it: `objectives.click.tau`, with the names
    in their order under the key of the list. Others are numbered: `data.interactions[0].path`.
    """
    return dict(sorted(_pairs("", config)))


def _pairs(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, member in value.items():
            yield from _pairs(f"{key}.{name}" if key else str(name), member)
    elif isinstance(value, list) and any(isinstance(member, Mapping) for member in value):
        names = [member.get("name") for member in value if isinstance(member, Mapping)]
        if len(names) == len(value) == len(set(map(str, names))) and None not in names:
            yield key, names
            for member in value:
                rest = {name: part for name, part in member.items() if name != "name"}
                if rest:
                    yield from _pairs(f"{key}.{member['name']}", rest)
        else:
            for place, member in enumerate(value):
                yield from _pairs(f"{key}[{place}]", member)
    else:
        yield key, value
