"""A few held-out moments with what the model recommends, for people to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.retrieval_evaluator.sampling import sample, sample_of_each
from models.queries import Model, Query

_EXAMPLES = 4
_HISTORY = 10
_RECOMMENDED = 10


def choose(queries: list[Query], n_objectives: int, seed: int) -> list[Query]:
    """Four moments, if possible with a target of the last objective."""
    last = sample_of_each(queries, n_objectives, _EXAMPLES, seed)[-1]
    return last if len(last) == _EXAMPLES else sample(queries, _EXAMPLES, seed)


def show(
    queries: list[Query], model: Model, weights: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """Histories, targets and lists with titles, as JSON types.

    Args:
      queries: what `choose` chose.
      model: is asked.
      weights: objective -> request weights.

    Returns:
      For each query `user`, `history` (newest first, at most 10), `targets`, and by objective the
      first 10 of its list. Levels are indices of the objectives.
    """
    if not queries:
        return []
    answers = {
        name: model.recommend_scored(queries, list(given)) for name, given in weights.items()
    }
    lists = {
        name: [
            [(item, float(score)) for item, score in zip(row, scored, strict=True) if item]
            for row, scored in zip(items[:, :_RECOMMENDED], scores[:, :_RECOMMENDED], strict=True)
        ]
        for name, (items, scores) in answers.items()
    }
    named = {item for rows in lists.values() for row in rows for item, _ in row}
    for query in queries:
        named |= {*query.history, *query.targets}
    titles = model.titles(sorted(named))

    def about(item: bytes, **more: Any) -> dict[str, Any]:
        return {"item": _text(item), "title": _text(titles[item])} | more

    def events(items: Sequence[bytes], levels: Sequence[int]) -> list[dict[str, Any]]:
        return [about(item, level=int(level)) for item, level in zip(items, levels, strict=True)]

    return [
        {
            "user": _text(query.user_id),
            "history": events(query.history[::-1], query.history_levels[::-1])[:_HISTORY],
            "targets": events(query.targets, query.target_levels),
            "lists": {
                name: [about(item, score=score) for item, score in rows[place]]
                for name, rows in lists.items()
            },
        }
        for place, query in enumerate(queries)
    ]


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
