"""Users and items of one version, for people who look for one."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from schemas.names import ITEMS_FILE, MANIFEST_FILE, USERS_FILE

# So many titles are asked for in one call.
_TITLES_PER_CALL = 5000

AskTitles = Callable[[Sequence[str]], list[str]]


class Found(NamedTuple):
    """A user or an item; users have no title."""

    id: str
    title: str


@dataclass(frozen=True)
class Matches:
    """The best matches of a search, and how many there are in all."""

    found: list[Found]
    total: int


class Vocabulary:
    """Ids in the order of the model, most frequent first, and their titles."""

    def __init__(self, ids: Sequence[str], titles: Sequence[str] = ()) -> None:
        self._entries = [
            Found(id_, title) for id_, title in zip(ids, titles or [""] * len(ids), strict=True)
        ]
        self._folded = [(id_.casefold(), title.casefold()) for id_, title in self._entries]
        self._known = frozenset(ids)

    def __contains__(self, id_: str) -> bool:
        return id_ in self._known

    def __len__(self) -> int:
        return len(self._entries)

    def search(self, text: str, limit: int) -> Matches:
        """Finds ids and titles that hold a text, whatever the case.

        First comes the id that equals the text, then those that begin with it, then titles that do,
        then the rest; each in the order of the vocabulary. An empty text finds everything.
        """
        wanted = text.strip().casefold()
        ranked: tuple[list[int], ...] = ([], [], [], [])
        for place, (id_, title) in enumerate(self._folded):
            if wanted in id_ or wanted in title:
                ranked[_rank(wanted, id_, title)].append(place)
        places = [place for places in ranked for place in places]
        return Matches([self._entries[place] for place in places[:limit]], len(places))


def _rank(wanted: str, id_: str, title: str) -> int:
    if id_ == wanted:
        return 0
    if id_.startswith(wanted):
        return 1
    return 2 if title.startswith(wanted) else 3


class Catalogue:
    """What is known of one version: from its files, where they are, and from its server.

    Safe to share between threads. What was read once stays known when the files go.

    Attributes:
      manifest: of the servable; empty if there is none.
    """

    def __init__(self, directory: Path | None) -> None:
        self.manifest: dict[str, Any] = _read_manifest(directory)
        self._directory = directory
        self._items: Vocabulary | None = None
        self._titles: dict[str, str] = {}
        self._lock = threading.Lock()

    @functools.cached_property
    def users(self) -> Vocabulary | None:
        """All users known from training, None if the vocabulary is not on disk."""
        ids = _read_lines(self._directory, USERS_FILE)
        return None if ids is None else Vocabulary(ids)

    @functools.cached_property
    def item_ids(self) -> dict[str, None] | None:
        """All items in the order of the vocabulary, None if that is not on disk."""
        ids = _read_lines(self._directory, ITEMS_FILE)
        return None if ids is None else dict.fromkeys(ids)

    def items(self, ask: AskTitles) -> Vocabulary | None:
        """All items with their titles, None if the vocabulary is not on disk.

        Args:
          ask: item ids -> titles, "" for none.
        """
        if self.item_ids is None:
            return None
        with self._lock:  # so that two searches do not ask for all titles twice
            if self._items is None:
                ids = list(self.item_ids)
                self._items = Vocabulary(ids, self.titles(ids, ask))
        return self._items

    def titles(self, ids: Sequence[str], ask: AskTitles) -> list[str]:
        """Titles of items, "" for those that have none; each is asked for once."""
        missing = [id_ for id_ in dict.fromkeys(ids) if id_ not in self._titles]
        for start in range(0, len(missing), _TITLES_PER_CALL):
            chunk = missing[start : start + _TITLES_PER_CALL]
            self._titles |= dict(zip(chunk, ask(chunk), strict=True))
        return [self._titles[id_] for id_ in ids]


def _read_manifest(directory: Path | None) -> dict[str, Any]:
    if directory is None:
        return {}
    try:
        manifest = json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _read_lines(directory: Path | None, name: str) -> list[str] | None:
    if directory is None:
        return None
    try:
        content = (directory / name).read_bytes()
    except OSError:
        return None
    return [line.decode("utf-8", errors="replace") for line in content.split(b"\n") if line]
