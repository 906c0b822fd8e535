"""`csmf bench ablation`: CSMF with one thing changed at a time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from benchmarks.methods import csmf, weight_level
from benchmarks.outcome import Outcome
from benchmarks.runner import Trial
from benchmarks.split import Split
from models.settings import ModelSettings, StageSettings

Changes = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """What differs from the configuration."""

    first: Changes = field(default_factory=dict)  # settings of the first objective
    later: Changes = field(default_factory=dict)  # of the others
    towers: Changes = field(default_factory=dict)
    negatives: Changes = field(default_factory=dict)

    def applied(self, split: Split) -> Split:
        """The split with a changed configuration."""
        config = split.config
        stages = tuple(
            StageSettings.parse(stage.model_dump() | (self.later if place else self.first))
            for place, stage in enumerate(config.objectives)
        )
        model = config.model.model_dump()
        model["towers"] = split.spec.towers.model_dump() | self.towers
        model["negatives"] |= self.negatives
        parsed = ModelSettings.parse(model)
        return dataclasses.replace(
            split,
            config=config.model_copy(update={"objectives": stages, "model": parsed}),
            spec=dataclasses.replace(split.spec, towers=parsed.towers),
        )


def _everywhere(**changes: object) -> Variant:
    return Variant(first=changes, later=changes)


VARIANTS: dict[str, Variant] = {
    "as shipped": Variant(),
    # CPP: how much each boundary frees, by which rule, judged by what
    "tau of the first objective .1": Variant(first={"tau": 0.1}),
    "tau of the first objective .2": Variant(first={"tau": 0.2}),
    "tau of the first objective .4": Variant(first={"tau": 0.4}),
    "tau of the first objective .5": Variant(first={"tau": 0.5}),
    "tau of the second objective .2": Variant(later={"tau": 0.2}),
    "tau of the second objective .5": Variant(later={"tau": 0.5}),
    "a fixed share per layer": _everywhere(prune="fixed"),
    "one threshold for all layers": _everywhere(prune="global"),
    "importance by activation": _everywhere(importance="activation"),
    "importance by gradient x weight": _everywhere(importance="gradient"),
    # AML
    "no margin": Variant(later={"gamma": 0.0}),
    "gamma .3": Variant(later={"gamma": 0.3}),
    "margin negated": Variant(later={"margin": "negated"}),
    "margin by probabilities": Variant(later={"margin": "probability"}),
    "margin by funnel depth": Variant(later={"margin": "depth"}),
    "constant margin": Variant(later={"margin": "constant"}),
    "no hard negatives": Variant(later={"hard_negative_weight": 1.0}),
    "hard negatives weigh 20": Variant(later={"hard_negative_weight": 20.0}),
    # AR
    "no recovery": _everywhere(recovery_share=0.0),
    "recovery on 10 % of the data": _everywhere(recovery_share=0.1),
    "recovery on 30 % of the data": _everywhere(recovery_share=0.3),
    # heads and towers
    "increment heads": Variant(later={"head": "increment"}),
    "increment heads, scale .3": Variant(later={"head": "increment", "scale": 0.3}),
    "temperature .1": _everywhere(temperature=0.1),
    "temperature .25": _everywhere(temperature=0.25),
    "history dropout .3": _everywhere(history_dropout=0.3),
    "history dropout .7": _everywhere(history_dropout=0.7),
    "no recency": Variant(towers={"recency": ()}),
    "a hidden layer of 64": Variant(towers={"hidden": (64,)}),
    "sampled softmax": Variant(negatives={"kind": "sampled"}),
}
WEIGHT_LEVEL = "CPP at weight level"


def run_variant(name: str, split: Split, seed: int) -> list[Outcome]:
    """Trains and measures one variant."""
    if name == WEIGHT_LEVEL:
        return weight_level(split, seed, "cumulative", split.config.objectives[0].tau)
    return csmf(VARIANTS[name].applied(split), seed)


def ablation_trials(dimension: int, seeds: int) -> list[Trial]:
    """All trainings of the table."""
    return [
        Trial(name, dimension, seed)
        for seed in range(1, seeds + 1)
        for name in (*VARIANTS, WEIGHT_LEVEL)
    ]
