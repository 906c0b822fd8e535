"""The cascade as it is trained: one network to choose by, and the one that is served.

Early stopping and the request weights need events that the network has not seen; what is served
should have learnt from all of them, the newest above all. So there are two networks with the same
owners. After every stage the served one takes over what the chosen one learnt, and trains it for a
few more rounds on all events. Each is frozen by itself: a stage moves no weight of an earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.settings import ModelSettings, StageSettings
from models.stages import (
    Progress,
    StageReport,
    StageTask,
    TrainingData,
    frozen_sha256,
    refit_stage,
    train_stage,
)
from models.towers import TowerSpec, TwoTower
from models.weighting import chosen_weights

_CHOSEN = "chosen"


@dataclass
class Cascade:
    """Both networks; one and the same where nothing is set aside or refitted."""

    chosen: TwoTower  # has not seen the validation events
    served: TwoTower

    @classmethod
    def start(cls, spec: TowerSpec, seed: int) -> Cascade:
        """Before the first stage."""
        towers = TwoTower(spec, seed)
        return cls(towers, towers)

    @classmethod
    def load(cls, directory: Path) -> Cascade:
        """Reads what `save` wrote."""
        served = TwoTower.load(directory)
        chosen = directory / _CHOSEN
        return cls(TwoTower.load(chosen) if chosen.exists() else served, served)

    def save(self, directory: Path) -> None:
        """Writes the served network as `TwoTower.save` does, the other one below it."""
        self.served.save(directory)
        if self.chosen is not self.served:
            self.chosen.save(directory / _CHOSEN)

    def train(
        self,
        data: TrainingData,
        stage: int,
        settings: StageSettings,
        model: ModelSettings,
        seed: int,
        progress: Progress,
    ) -> StageReport:
        """Trains a stage of both networks; see `train_stage`, which says what is raised, too."""
        everything = data.refit()
        if everything and self.served is self.chosen:
            self.served = TwoTower(self.chosen.spec, seed)
            self.served.adopt(self.chosen, 0)
        task = StageTask(self.chosen, data.item_features, stage, settings)
        report = train_stage(task, data, model, seed, progress)
        if everything is None:
            return report
        self.served.adopt(self.chosen, stage)
        # The step was traced over the variables of the chosen network. Tracing it again over those
        # of the served one takes as long as a round: they lend it their values instead.
        self.chosen.swap(self.served)
        try:
            report.phases.append(refit_stage(task, everything, model, seed, progress))
        finally:
            self.chosen.swap(self.served)
        report.upstream_sha256 = frozen_sha256(self.served, stage)
        return report

    def weights(self, data: TrainingData, objectives: Sequence[str]) -> dict[str, list[float]]:
        """Objective -> the request weights that serve it best, after the last stage."""
        return chosen_weights(self.chosen, data, objectives)
