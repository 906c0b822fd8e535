"""Settings of the model and of its stages (METHOD: CSMF, arXiv 2504.12920)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.settings import Settings

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(gt=0)]
PruneRule = Literal["cumulative", "fixed", "global"]
Importance = Literal["l1", "activation", "gradient"]
Distribution = Literal["none", "mirrored", "multi_worker"]
Margin = Literal["adaptive", "negated", "probability", "depth", "constant"]


class TowerSettings(Settings):
    """Shape of the two towers, shared by all objectives."""

    dimension: Positive = 64
    """Length D of the index vectors; the objectives divide it among themselves."""

    item_embedding: Positive = 64
    """Columns of the history table and of the item table."""

    user_embedding: Positive = 16
    """Columns of the user-id table. Ids come second to histories."""

    feature_embedding: Positive = 8
    """Columns of the table of each user or item feature."""

    hidden: tuple[Positive, ...] = ()
    """Widths of ReLU layers before the head, in both towers. Empty = a linear head."""

    history_length: Positive = 100
    """Most recent events of a user that the user tower reads."""

    recency: tuple[Annotated[float, Field(gt=0)], ...] = (3.0, 15.0)
    """Beside the plain one, a pooled history for each of these: the r-th most recent event weighs
    exp(-r / recency). Left out where the log has no times."""

    minimum_block: Positive = 4
    """A stage that would own fewer output dimensions than this is refused."""


class NegativeSettings(Settings):
    """Which items a positive competes with."""

    kind: Literal["auto", "exact", "sampled"] = "auto"
    """exact = softmax over the catalogue; auto = exact up to `exact_limit` items."""

    exact_limit: Positive = 20_000
    random: Positive = 1024
    """Uniform catalogue negatives per batch, beside the in-batch ones, when sampled."""

    def exact(self, n_items: int) -> bool:
        """Whether the softmax runs over a catalogue of this size."""
        return self.kind == "exact" or (self.kind == "auto" and n_items <= self.exact_limit)


class StageSettings(Settings):
    """How one objective of the cascade is trained; the order of the list is the funnel."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    rounds: Positive = 30
    """Most rounds of training; see `ValidationSettings.round_steps`. A stage after the first has no
    more than add up to one of the first: it starts from what the frozen ones know."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-3
    batch_size: Positive = 512
    """Rows of a batch: short runs of timelines, or users where the log has no times."""

    targets_per_row: Positive = 2
    """Successive events whose positives share one history. Not used where the log has no times."""

    temperature: Annotated[float, Field(gt=0)] = 0.15
    """T_k of the block's softmax."""

    history_dropout: Share = 0.5
    """Share of history events hidden from the user tower during training. Where the log has no
    times, the hidden ones are the positives."""

    user_id_dropout: Share = 0.5
    """Share of user ids replaced by the unknown user during training."""

    tau: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """CPP: share of each layer's L1 mass freed for the next objective. Unused by the last."""

    prune: PruneRule = "cumulative"
    """cumulative = CPP; fixed = the `tau` share of each layer's neurons; global = CPP's rule over
    all layers together, importances divided by their layer's mean. The last two are ablations."""

    importance: Importance = "l1"
    """Of a neuron: L1 norm of its incoming weights; or, for ablations, its mean absolute output
    (`TwoTower.activations`), or the sum of |gradient x weight| over its incoming weights."""

    recovery_share: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """|D'| / |D|: share of the stage's positives that accuracy recovery trains on."""

    recovery_rounds: Positive = 1
    """The refit goes on with what recovery began."""

    gamma: Annotated[float, Field(ge=0.0)] = 0.1
    """AML: largest margin, on the scale of cosine scores; 0 = plain softmax. The first has none."""

    margin: Margin = "adaptive"
    """adaptive = AML. The others are ablations: its negative, upstream's difference of
    probabilities, what remains of the funnel's depth, `gamma` everywhere (METHOD 1.5)."""

    hard_negative_weight: Annotated[float, Field(gt=0)] = 5.0
    """Weight of negatives that the user took to the level before, but not to this one."""

    head: Literal["standalone", "increment"] = "standalone"
    """increment = logits add the frozen upstream scores (METHOD 1.4)."""

    scale: Annotated[float, Field(gt=0)] = 1.0
    """What the block's own scores are multiplied by before an increment head adds upstream."""


class ValidationSettings(Settings):
    """The part of the training events that decides when a stage stops, and the request weights."""

    share: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.1
    """Of the targets: the last ones by time, or random ones where the log has no times."""

    max_queries: Positive = 4000
    round_steps: Positive = 64
    """Batches between two looks at it, or an epoch where that is more; an objective whose
    positives are a share of those of the first takes that share of the batches."""

    patience: Positive = 3
    """Rounds without a better Recall@50 after which a stage stops; the best one is kept."""

    refit_rounds: Annotated[int, Field(ge=0)] = 6
    """Rounds on all training events after the first stage was chosen, those held out for
    validation included; 0 = what is served never learns from them. See `models.cascade`. Stages
    after the first have one."""

    refit_rate: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Learning rate of these rounds, as a share of the stage's."""


class ModelSettings(Settings):
    """What all stages share."""

    towers: TowerSettings = TowerSettings()
    negatives: NegativeSettings = NegativeSettings()
    validation: ValidationSettings = ValidationSettings()


class TrainerSettings(Settings):
    """Where the stages are trained; see `models.replicas`."""

    distribution: Distribution = "none"
    """mirrored = all GPUs of a machine share every batch; multi_worker = the workers that
    TF_CONFIG names do, each a process of its own. The results are those of none, up to rounding."""


class IndexSettings(Settings):
    """The ScaNN index and the answer it gives."""

    top_k: Positive = 100
    """N, items per answer; fixed in the graph."""

    kind: Literal["auto", "brute_force", "hashed", "tree"] = "auto"
    """auto = brute force below 20,000 items, hashed below 100,000, a tree from there on."""

    leaves_to_search_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the tree's sqrt(n) leaves that a query looks into. The report of a run shows what
    that finds, and what more or less of it would."""

    reorder: Positive = 250
    """Candidates whose scores are recomputed exactly, at least."""
