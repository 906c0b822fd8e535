"""What is measured of a model on the held-out moments, and the verdict."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from components.retrieval_evaluator import evaluate, gate
from components.retrieval_evaluator.settings import LONGEST_LIST, EvaluationSettings
from models.queries import Model, Query, popularity_lists

Weights = dict[str, list[float]]  # objective -> request weights it is measured at


class Evaluation:
    """The queries of one evaluation and what is measured on them."""

    def __init__(
        self,
        settings: EvaluationSettings,
        objectives: list[str],
        queries: list[Query],
        train_counts: list[Counter[bytes]],
    ):
        """`train_counts`: for each level, how many training events on an item reach it."""
        self.queries = queries
        self._settings = settings
        self._objectives = objectives
        self._counts = train_counts

    def weights(self, own: dict[str, list[float]]) -> Weights:
        """Request weights at which a model is measured: the configured ones, else its own.

        Args:
          own: the weights of the model's manifest. Those of objectives that are not measured are
            left out, and a model of other objectives keeps its own: configured ones do not fit.
        """
        measured = {name: own[name] for name in self._objectives if name in own}
        if list(own) == self._objectives:
            measured |= {name: list(given) for name, given in self._settings.weights.items()}
        return measured

    def lists(self, model: Model, weights: Weights) -> dict[str, Any]:
        """Objective -> the model's lists under that objective's weights."""
        return {name: model.recommend(self.queries, given) for name, given in weights.items()}

    def ann_recall(
        self, served: dict[str, Any], exact: Model, weights: Weights
    ) -> dict[str, float]:
        """Objective -> share of the exact top 100 that the index found."""
        chosen = range(min(len(self.queries), self._settings.ann_queries))
        queries = [self.queries[i] for i in chosen]
        return {
            name: evaluate.mean_overlap(
                [served[name][i] for i in chosen],
                list(exact.recommend(queries, given)),
                LONGEST_LIST,
            )
            for name, given in weights.items()
        }

    def report(
        self,
        served: dict[str, Any],
        ann_recall: dict[str, float],
        baseline: dict[str, Any] | None,
        anomalies: list[str],
    ) -> dict[str, Any]:
        """Everything measured, and the gate's verdict."""
        popular = {
            name: list(popularity_lists(self._counts[level], self.queries, LONGEST_LIST))
            for level, name in enumerate(self._objectives)
        }
        metrics, popularity = self._metrics(served), self._metrics(popular)
        against = None if baseline is None else self._metrics(baseline)
        lowest = min(ann_recall.values())
        checks = gate.checks(self._settings, metrics, popularity, against, lowest, len(anomalies))
        return {
            "blessed": all(check.passed for check in checks),
            "checks": [dataclasses.asdict(check) for check in checks],
            "queries": len(self.queries),
            "metrics": metrics,
            "popularity": popularity,
            "baseline": against,
            "slices": self._slices(served),
            "popularity_slices": self._slices(popular),
            "baseline_slices": None if baseline is None else self._slices(baseline),
            "ann_recall@100": lowest,
            "distinct_items_in_top_10": {
                name: len({item for row in lists for item in row[:10] if item})
                for name, lists in served.items()
            },
            "anomalies": anomalies,
        }

    def _metrics(self, lists: dict[str, Any]) -> gate.Metrics:
        return {
            name: evaluate.mean_metrics(
                list(lists[name]), [query.targets_at(level) for query in self.queries]
            )
            for level, name in enumerate(self._objectives)
            if name in lists
        }

    def _slices(self, lists: dict[str, Any]) -> dict[str, gate.Metrics]:
        ranks = self._popularity_rank()
        return {
            name: evaluate.slice_metrics(self.queries, list(lists[name]), level, ranks)
            for level, name in enumerate(self._objectives)
            if name in lists
        }

    def _popularity_rank(self) -> dict[bytes, float]:
        ranking = sorted(self._counts[0], key=lambda item: (-self._counts[0][item], item))
        return {item: place / len(ranking) for place, item in enumerate(ranking)}
