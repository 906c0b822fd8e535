"""Settings of the model and of its stages (METHOD: CSMF, arXiv 2504.12920)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.settings import Settings

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(gt=0)]


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

    history_length: Positive = 50
    """Most recent events of a user that the user tower reads."""

    minimum_block: Positive = 4
    """A stage that would own fewer output dimensions than this is refused."""


class NegativeSettings(Settings):
    """Which items a positive competes with."""

    kind: Literal["auto", "exact", "sampled"] = "auto"
    """exact = softmax over the catalogue; auto = exact up to `exact_limit` items."""

    exact_limit: Positive = 20_000
    random: Positive = 1024
    """Uniform catalogue negatives per batch, beside the in-batch ones, when sampled."""


class StageSettings(Settings):
    """How one objective of the cascade is trained; the order of the list is the funnel."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    epochs: Positive = 6
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    batch_size: Positive = 1024
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """T_k of the block's softmax."""

    history_dropout: Share = 0.5
    """Share of history events hidden from the user tower during training."""

    user_id_dropout: Share = 0.5
    """Share of user ids replaced by the unknown user during training."""

    tau: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """CPP: share of each layer's L1 mass freed for the next objective. Unused by the last."""

    recovery_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.3
    """|D'| / |D|: share of the stage's positives that accuracy recovery trains on."""

    recovery_epochs: Positive = 2
    gamma: Annotated[float, Field(ge=0.0)] = 0.1
    """AML: largest margin, on the scale of cosine scores; 0 = plain softmax. The first has none."""

    head: Literal["standalone", "increment"] = "standalone"
    """increment = logits add the frozen upstream scores (METHOD 1.4)."""


class ModelSettings(Settings):
    """What all stages share."""

    towers: TowerSettings = TowerSettings()
    negatives: NegativeSettings = NegativeSettings()


class IndexSettings(Settings):
    """The ScaNN index and the answer it gives."""

    top_k: Positive = 100
    """N, items per answer; fixed in the graph."""

    kind: Literal["auto", "brute_force", "hashed", "tree"] = "auto"
    """auto = brute force below 20,000 items, hashed below 100,000, a tree from there on."""

    leaves_to_search_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the tree's sqrt(n) leaves that a query looks into."""

    reorder: Positive = 400
    """Candidates whose scores are recomputed exactly, at least."""
