"""The Transform graph as Beam builds it, and the readers of what it writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.catalogue import read_catalogue
from models.features import FeatureKinds
from models.preprocessing import ITEM_VOCABULARY, USER_VOCABULARY, feature_size
from schemas.logs import DataSettings

pytestmark = pytest.mark.slow


def test_timelines_and_catalogue_share_one_vocabulary(shop: Any) -> None:
    ids = shop.transform.vocabulary_by_name(ITEM_VOCABULARY)
    assert sorted(ids) == sorted(b"i%d" % item for item in range(40))
    for row, user in enumerate(shop.train.user_ids):
        name = shop.transform.vocabulary_by_name(USER_VOCABULARY)[user]
        begin, end = shop.train.offsets[row : row + 2]
        decoded = [ids[item] for item in shop.train.items[begin:end]]
        assert decoded == [item for item, _ in shop.timelines[name]]
        assert shop.train.levels[begin:end].tolist() == [at for _, at in shop.timelines[name]]
    assert len(shop.train) == 25


def test_the_most_frequent_item_comes_first(shop: Any) -> None:
    counts = {item: 1 for item in shop.catalogue.item_ids.tolist()}  # once in the catalogue
    for events in shop.timelines.values():
        for item, _ in events:
            counts[item] += 1
    frequencies = [counts[item] for item in shop.catalogue.item_ids.tolist()]
    assert frequencies == sorted(frequencies, reverse=True)


def test_features_become_indices_within_their_size(shop: Any) -> None:
    gender = shop.transform.vocabulary_by_name("user_gender")
    assert feature_size(shop.transform, "user_gender", "categorical") == 3  # two and the unknown
    assert feature_size(shop.transform, "user_age", "numeric") == 10
    users = shop.transform.vocabulary_by_name(USER_VOCABULARY)
    ages = {}
    for row, user in enumerate(shop.train.user_ids):
        raw = shop.user_features[users[user]]
        index = shop.train.features["gender"][row]
        assert index.tolist() == [gender.index(value) for value in raw["gender"]] or (
            not raw["gender"] and index.tolist() == [-1]
        )
        ages[raw["age"][0] if raw["age"] else None] = int(shop.train.features["age"][row][0])
    assert ages.pop(None) == -1
    buckets = [ages[age] for age in sorted(ages)]
    assert buckets == sorted(buckets), "older users are never in a lower bucket"
    assert (min(buckets), max(buckets)) == (0, 9)


def test_the_catalogue_is_read_by_row(shop: Any) -> None:
    catalogue = shop.catalogue
    assert len(catalogue) == 40
    genres = shop.transform.vocabulary_by_name("item_genres")
    for row, item in enumerate(catalogue.item_ids):
        number = int(item[1:])
        assert catalogue.titles[row] == b"Title of %d" % number
        expected = [b"g%d" % (number % 5), b"g%d" % (number % 3)][: number % 3]
        found = [genres[i] for i in catalogue.features["genres"][row] if i >= 0]
        assert found == expected


def test_an_item_without_a_catalogue_row_keeps_its_id_as_title(shop: Any) -> None:
    catalogue = read_catalogue(shop.transformed_catalogue[:3], shop.transform, ["genres"])
    assert len(catalogue) == 40
    titled = [t for t, i in zip(catalogue.titles, catalogue.item_ids, strict=True) if t != i]
    assert len(titled) == 3
    assert np.sum(catalogue.features["genres"] >= 0) <= 6


def test_feature_kinds_come_from_the_configuration() -> None:
    data = DataSettings.model_construct(users=None, catalogue=None)
    assert FeatureKinds.of(data) == FeatureKinds()
    kinds = FeatureKinds(user={"age": "numeric"}, item={"genres": "categorical"})
    assert kinds.by_key() == {"user_age": "numeric", "item_genres": "categorical"}
