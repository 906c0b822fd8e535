"""The side features that the configuration declares, as the components pass them around."""

from __future__ import annotations

from collections.abc import Iterable

import tensorflow_transform as tft

from models.preprocessing import feature_size
from schemas import names
from schemas.logs import DataSettings, Feature
from schemas.settings import Settings


class FeatureKinds(Settings):
    """Feature name -> "categorical" or "numeric", for users and for items."""

    user: dict[str, str] = {}
    item: dict[str, str] = {}

    @classmethod
    def of(cls, data: DataSettings) -> FeatureKinds:
        """The features that the users table and the catalogue declare."""

        def kinds(features: Iterable[Feature]) -> dict[str, str]:
            return {feature.name: feature.kind for feature in features}

        return cls(
            user=kinds(data.users.features) if data.users else {},
            item=kinds(data.catalogue.features) if data.catalogue else {},
        )

    def by_key(self) -> dict[str, str]:
        """tf.Example key -> kind."""
        return {names.user_feature(name): kind for name, kind in self.user.items()} | {
            names.item_feature(name): kind for name, kind in self.item.items()
        }

    def user_sizes(self, transform: tft.TFTransformOutput) -> dict[str, int]:
        """User feature name -> number of indices after Transform."""
        return {
            name: feature_size(transform, names.user_feature(name), kind)
            for name, kind in self.user.items()
        }

    def item_sizes(self, transform: tft.TFTransformOutput) -> dict[str, int]:
        """Item feature name -> number of indices after Transform."""
        return {
            name: feature_size(transform, names.item_feature(name), kind)
            for name, kind in self.item.items()
        }
