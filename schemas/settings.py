"""Base of every configuration section: typed, frozen, unknown keys refused by name."""

from __future__ import annotations

import difflib
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(ValueError):
    """The configuration, or the data it points to, cannot be used; the text says what to change."""


def nearest(word: str, choices: list[str]) -> str:
    """Returns " Did you mean 'x'?" for the choice nearest to `word`, or an empty string."""
    match = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


class Settings(BaseModel):
    """A section of the configuration. Subclasses declare typed fields; instances are immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False
    )

    @classmethod
    def parse(cls, raw: Any) -> Self:
        """Validates plain YAML or JSON data.

        Raises:
          ConfigError: one line per fault: where it is, what was given, what was expected.
        """
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise ConfigError(
                "\n".join(_explain(cls, raw, dict(fault)) for fault in error.errors())
            ) from error


def _explain(cls: type[BaseModel], raw: Any, fault: dict[str, Any]) -> str:
    location = [str(part) for part in fault["loc"]]
    where = ".".join(location) or "the configuration"
    if fault["type"] == "extra_forbidden":
        known = _known_keys(cls, list(fault["loc"][:-1]))
        hint = nearest(location[-1], known)
        return f"{where}: unknown key.{hint} Known keys: {', '.join(known)}."
    if fault["type"] == "missing":
        return f"{where}: this key is required and was not given."
    text = fault["msg"].removeprefix("Value error, ")
    given = fault.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{where}: {text}{shown}"


def _known_keys(cls: type[BaseModel], path: list[Any]) -> list[str]:
    """Field names of the section that `path` leads to, found through the annotations."""
    sections: list[type[BaseModel]] = [cls]
    for part in path:
        if isinstance(part, int):
            continue
        deeper = [
            found
            for section in sections
            if part in section.model_fields
            for found in _models_in(section.model_fields[part].annotation)
        ]
        # A union's tag is part of pydantic's location but not a field: stay where we are.
        sections = deeper or sections
    return sorted({name for section in sections for name in section.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
