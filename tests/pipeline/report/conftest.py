"""Runs in a real ML Metadata store, with the files that the nodes write."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ml_metadata import MetadataStore
from ml_metadata.proto import metadata_store_pb2 as pb
from tensorflow_metadata.proto.v0 import anomalies_pb2, statistics_pb2

PIPELINE = "shop"
OBJECTIVES = ("exposure", "click", "conversion")
LAYERS = {"history": 64, "item_id": 64, "item_genres": 8, "output": 64}
OWNED = (  # by stage
    {"history": 44, "item_id": 43, "item_genres": 6, "output": 44},
    {"history": 14, "item_id": 14, "item_genres": 2, "output": 14},
    {"history": 6, "item_id": 7, "item_genres": 0, "output": 6},
)
HOSTILE = "<script>alert('x')</script> & $x$ \u202eover"
METRICS = ("recall@10", "recall@50", "recall@100", "ndcg@50")
SLICES = (
    "user: under 10 events",
    "user: 10 to 49 events",
    "user: 50 events or more",
    "item: head: top 10 % of items",
    "item: middle: next 40 %",
    "item: tail",
)
STATISTICS_FILE = "Split-{}/FeatureStats.pb"


def ingestion() -> dict[str, Any]:
    """What InteractionGen writes: 1,000 rows read = 940 used + 20 dead letters + 40 dropped."""
    return {
        "objectives": list(OBJECTIVES),
        "split": {
            "kind": "time",
            "cut": "1998-03-07T03:00:00Z",
            "first_event": "1997-09-20T03:05:10Z",
            "last_event": "1998-04-22T23:10:38Z",
        },
        "tables": {
            "interactions": {
                "read": 1000,
                "used": 940,
                "dead_letters": 20,
                "dropped": {"repeat": 30, "bot": 10},
                "dead_letter_kinds": {
                    "bad_timestamp": {
                        "count": 15,
                        "file": "logs/u.data",
                        "line": 17,
                        "reason": "timestamp is no number: 'yesterday'",
                        "raw": f"u002,i003,{HOSTILE},yesterday",
                    },
                    "no_item_id": {
                        "count": 5,
                        "file": "logs/u.data",
                        "line": 40,
                        "reason": "item_id is empty",
                        "raw": "u001,,view,1",
                    },
                },
            },
            "catalogue": {
                "read": 50,
                "used": 50,
                "dead_letters": 0,
                "dropped": {},
                "dead_letter_kinds": {},
            },
        },
        "events": {
            "train": {"exposure": 400, "click": 250, "conversion": 100},
            "eval": {"exposure": 100, "click": 60, "conversion": 30},
        },
        "users": {"total": 100, "train": 80, "eval": 30, "without_features": 0},
        "items": {"total": 50, "without_features": 1, "after_cut": 2},
        "closed_rows": 3,
        "unusable_feature_values": {},
        "files": [
            {"path": "logs/u.data", "table": "interactions", "rows": 1000, "sha256": "ab" * 32}
        ],
    }


def stage(k: int, started: float = 1_700_000_000.0) -> dict[str, Any]:
    """What stage `k` writes; it begins 30 seconds after the one before and trains for 20."""
    phases = [_phase("train", 8, 15.0, k)]
    if k < len(OBJECTIVES) - 1:
        phases.append(_phase("recover", 3, 5.0, k))
    return {
        "stage": k,
        "objective": OBJECTIVES[k],
        "settings": {"name": OBJECTIVES[k], "tau": 0.3, "prune": "cumulative", "gamma": 0.1},
        "phases": phases,
        "owned": OWNED[k],
        "upstream_sha256": "e3" * 32,
        "weights": {},
        "started": started + 30.0 * k,
        "layers": LAYERS,
        "strengths": [1.0, -0.05] if k == 0 else [1.5, 0.25 * k],
        "pruned": {} if k == len(OBJECTIVES) - 1 else _pruned(k),
    }


def evaluation() -> dict[str, Any]:
    """What RetrievalEvaluator writes, against a blessed model."""
    candidate = {name: _metrics(0.3 + 0.05 * k) for k, name in enumerate(OBJECTIVES)}
    return {
        "blessed": True,
        "checks": [
            {"name": "data: anomalies", "passed": True, "value": 0, "threshold": 0},
            {
                "name": "click: recall@50 against 1.3 x popularity",
                "passed": True,
                "value": 0.6,
                "threshold": 0.5,
            },
            {
                "name": "index: recall@100 against brute force",
                "passed": True,
                "value": 0.99,
                "threshold": 0.95,
            },
        ],
        "queries": 4321,
        "metrics": candidate,
        "popularity": {name: _metrics(0.2) for name in OBJECTIVES},
        "baseline": {name: _metrics(0.29 + 0.05 * k) for k, name in enumerate(OBJECTIVES)},
        "baseline_version": 7,
        "slices": {name: _slices(0.3 + 0.05 * k) for k, name in enumerate(OBJECTIVES)},
        "popularity_slices": {name: _slices(0.2) for name in OBJECTIVES},
        "baseline_slices": {name: _slices(0.29 + 0.05 * k) for k, name in enumerate(OBJECTIVES)},
        "ann_recall@100": 0.99,
        "distinct_items_in_top_10": dict.fromkeys(OBJECTIVES, 321),
        "anomalies": [],
        "weights": {
            "exposure": [1.0, 0.0, 0.0],
            "click": [0.5, 1.0, 0.0],
            "conversion": [0.3, 0.3, 0.3],
        },
        "pareto": [
            {
                "weights": [1.0, float(c), float(v)],
                "recall@50": {
                    "exposure": 0.45 - 0.02 * c - 0.03 * v,
                    "click": 0.4 + 0.06 * math.sqrt(c) - 0.03 * v,
                    "conversion": 0.4 + 0.01 * c + 0.08 * math.sqrt(v),
                },
            }
            for c in (0, 1, 2, 5)
            for v in (0, 1, 2, 5)
        ],
        "pareto_queries": 2000,
        "index_curve": [
            _index("brute_force", None, None, 1.0, 0.31, False),
            _index("hashed", None, 200, 0.985, 0.22, True),
            *(_index("hashed", None, n, 1.0, 0.3 + n / 1e6, False) for n in (400, 800, 1600)),
            *(
                _index("tree", share, 200, 1 - 0.05 / (1 + 40 * share), 0.1 + share, False)
                for share in (0.02, 0.05, 0.1, 0.2)
            ),
        ],
        "examples": [
            {
                "user": f"u{n}",
                "history": [_past(f"i{n}{i}", i % 3) for i in range(10 - 10 * (n == 3))],
                "targets": [_past("i3", 2), _past("i9", 0)],
                "lists": {
                    name: [
                        {
                            "item": f"i{k + r}",
                            "title": HOSTILE if r == 0 else f"A film with a long name {k + r}",
                            "score": 0.9 - 0.05 * r,
                        }
                        for r in range(10)
                    ]
                    for k, name in enumerate(OBJECTIVES)
                },
            }
            for n in range(4)
        ],
    }


def validation() -> dict[str, Any]:
    """What ServingValidator writes."""
    return {
        "blessed": True,
        "checks": [{"name": "server", "passed": True, "detail": "it starts (checked 1 times)"}],
    }


def statistics(
    lengths: Sequence[tuple[float, float]] = ((10.0, 25.0), (20.0, 25.0), (80.0, 50.0)),
    counts: Sequence[int] = (50, 30, 10, 5, 5),
    ages: Sequence[float] = (10.0, 10.0),
    names: Sequence[str] = tuple(f"item {place} {HOSTILE}" for place in range(5)),
) -> statistics_pb2.DatasetFeatureStatisticsList:
    """What StatisticsGen writes of a split.

    Args:
      lengths: (upper bound of the bucket, users in it) of the events per user.
      counts: events of each item, descending.
      ages: users in two halves of the range of a numeric feature.
      names: of the items.
    """
    found = statistics_pb2.DatasetFeatureStatisticsList()
    dataset = found.datasets.add(num_examples=int(sum(n for _, n in lengths)))
    items = dataset.features.add(type=statistics_pb2.FeatureNameStatistics.STRING)
    items.path.step.append("item_ids")
    _common(items.string_stats.common_stats, dataset.num_examples, sum(counts))
    items.string_stats.common_stats.num_values_histogram.type = statistics_pb2.Histogram.QUANTILES
    low = 1.0
    for high, n in lengths:
        items.string_stats.common_stats.num_values_histogram.buckets.add(
            low_value=low, high_value=high, sample_count=n
        )
        low = high
    items.string_stats.unique = len(counts)
    for rank, n in enumerate(counts):
        items.string_stats.rank_histogram.buckets.add(
            low_rank=rank, high_rank=rank, label=names[rank], sample_count=n
        )
    age = dataset.features.add(type=statistics_pb2.FeatureNameStatistics.FLOAT)
    age.path.step.append("user_age")
    _common(age.num_stats.common_stats, dataset.num_examples, dataset.num_examples)
    age.num_stats.max = 80.0
    histogram = age.num_stats.histograms.add(type=statistics_pb2.Histogram.STANDARD)
    for place, n in enumerate(ages):
        histogram.buckets.add(low_value=40.0 * place, high_value=40.0 * (place + 1), sample_count=n)
    return found


@dataclass
class Node:
    """One node to record.

    Attributes:
      outputs: key -> (type of the artifact, files by name, properties).
    """

    name: str
    outputs: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = field(default_factory=dict)
    state: str = "COMPLETE"


def all_nodes() -> list[Node]:
    """A run that pushed version 8; what the report does not read is left out."""
    splits = ("train", "eval", "catalogue")
    no_anomalies = anomalies_pb2.Anomalies().SerializeToString()
    stages = [stage(k) for k in range(len(OBJECTIVES))]
    measured = evaluation()
    summary = ingestion()
    noted = ("files", "users", "items", "split", "events")
    tables = {
        name: {key: n for key, n in table.items() if key != "dead_letter_kinds"}
        for name, table in summary["tables"].items()
    }
    return [
        Node(
            "InteractionGen",
            {
                "summary": (
                    "IngestionSummary",
                    {"summary.json": summary},
                    {key: summary[key] for key in noted} | {"tables": tables},
                )
            },
        ),
        Node(
            "StatisticsGen",
            {
                "statistics": (
                    "ExampleStatistics",
                    {
                        STATISTICS_FILE.format(split): statistics().SerializeToString()
                        for split in splits
                    },
                    {},
                )
            },
        ),
        *(
            Node(
                f"ExampleValidator.{which}",
                {
                    "anomalies": (
                        "ExampleAnomalies",
                        {f"Split-{split}/SchemaDiff.pb": no_anomalies for split in judged},
                        {},
                    )
                },
            )
            for which, judged in (("timelines", splits[:2]), ("catalogue", splits[2:]))
        ),
        *(
            Node(
                f"CascadedTrainer.{made['objective']}",
                {
                    "stage": (
                        "CascadeStage",
                        {"stage.json": made},
                        {key: made[key] for key in ("stage", "objective", "owned", "settings")},
                    )
                },
            )
            for made in stages
        ),
        Node(
            "RetrievalEvaluator",
            {
                "evaluation": (
                    "ModelEvaluation",
                    {"evaluation.json": measured},
                    {
                        key: measured[key]
                        for key in (
                            "metrics",
                            "popularity",
                            "baseline",
                            "checks",
                            "baseline_version",
                            "queries",
                            "ann_recall@100",
                        )
                    },
                ),
                "blessing": ("ModelBlessing", {}, {"blessed": 1, "failed": ""}),
            },
        ),
        Node(
            "ServingValidator",
            {
                "blessing": (
                    "InfraBlessing",
                    {"report.json": validation()},
                    {"blessed": 1, "failed": "", "checks": validation()["checks"]},
                )
            },
        ),
        Node(
            "Pusher",
            {
                "pushed_model": (
                    "PushedModel",
                    {},
                    {
                        "pushed": 1,
                        "pushed_version": 8,
                        "pushed_destination": "serving/recommender/8",
                        "model_id": "974d5425e4230db0",
                    },
                )
            },
        ),
    ]


class Recorder:
    """Writes runs into ML Metadata as TFX does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "metadata.sqlite"
        config = pb.ConnectionConfig()
        config.sqlite.filename_uri = str(self.path)
        config.sqlite.connection_mode = pb.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
        self.store = MetadataStore(config)

    def run(
        self, run_id: str, nodes: Sequence[Node], notes: Mapping[str, Any] | None = None
    ) -> None:
        """Records a run. `notes` go beside those that every run has."""
        given = {
            "config": {"name": PIPELINE, "objectives": [{"name": name} for name in OBJECTIVES]},
            "config_sha256": "ab" * 32,
            "csmf_version": "0.1.0",
            "nodes": {node.name: {"peak_bytes": 3 * 2**29} for node in nodes},
        } | dict(notes or {})
        contexts = [self._context("pipeline", PIPELINE), self._context("pipeline_run", run_id)]
        _fill(contexts[1], given)
        self.store.put_contexts(contexts[1:])
        for node in nodes:
            self._node(run_id, node, contexts)

    def uri(self, run_id: str, node: str, key: str) -> Path:
        """Directory of an output."""
        return self.root / "artifacts" / node / key / run_id

    def _node(self, run_id: str, node: Node, contexts: list[pb.Context]) -> None:
        kind = node.name.split(".")[0]
        execution = pb.Execution(
            type_id=self.store.put_execution_type(pb.ExecutionType(name=kind)),
            last_known_state=pb.Execution.State.Value(node.state),
        )
        pairs = []
        for key, (type_name, files, noted) in node.outputs.items():
            uri = self.uri(run_id, node.name, key)
            artifact = pb.Artifact(
                type_id=self.store.put_artifact_type(pb.ArtifactType(name=type_name)),
                uri=str(uri),
            )
            _fill(artifact, noted)
            event = pb.Event(type=pb.Event.OUTPUT)
            event.path.steps.add().key = key
            pairs.append((artifact, event))
            for name, content in files.items():
                path = uri / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    path.write_bytes(content)
                else:
                    path.write_text(json.dumps(content), encoding="utf-8")
        own = self._context("node", f"{PIPELINE}.{node.name}")
        self.store.put_execution(execution, pairs, [*contexts, own])

    def _context(self, kind: str, name: str) -> pb.Context:
        type_id = self.store.put_context_type(pb.ContextType(name=kind))
        found = self.store.get_context_by_type_and_name(kind, name)
        if found is None:
            found = pb.Context(type_id=type_id, name=name)
            found.id = self.store.put_contexts([found])[0]
        return found


def _fill(message: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        target = message.custom_properties[key]
        if isinstance(value, int):
            target.int_value = value
        elif isinstance(value, float):
            target.double_value = value
        else:
            target.string_value = value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Kit:
    """What the tests build runs from."""

    recorder: Recorder
    objectives: tuple[str, ...] = OBJECTIVES
    hostile: str = HOSTILE
    layers: dict[str, int] = field(default_factory=lambda: dict(LAYERS))

    ingestion = staticmethod(ingestion)
    stage = staticmethod(stage)
    evaluation = staticmethod(evaluation)
    statistics = staticmethod(statistics)
    nodes = staticmethod(all_nodes)
    Node = Node


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(Recorder(tmp_path))


@pytest.fixture(scope="module")
def whole_kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """A run that lacks nothing, to be read only."""
    found = Kit(Recorder(tmp_path_factory.mktemp("whole")))
    found.recorder.run("run-1", found.nodes())
    return found


def _phase(name: str, rounds: int, seconds: float, k: int) -> dict[str, Any]:
    recalls = [0.5 + 0.03 * k + 0.02 * math.sin(r / 2) for r in range(rounds)]
    return {
        "name": name,
        "positives": 30_000,
        "fitted": {
            "losses": [6.0 - 0.4 * k + 1.5 / (r + 1) for r in range(rounds)],
            "recalls": recalls,
            "kept_round": recalls.index(max(recalls)) + 1,
            "steps": 70 * rounds,
            "seconds": seconds,
            # The first round takes twice as long: the step is traced.
            "round_seconds": [seconds * (r + 2) / (rounds + 1) for r in range(rounds)],
        },
    }


def _pruned(k: int) -> dict[str, Any]:
    result = {}
    for layer, n in LAYERS.items():
        slots = n - sum(OWNED[earlier][layer] for earlier in range(k))
        freed = slots - OWNED[k][layer]
        result[layer] = {
            "importance": [0.2 + (place / slots) ** (1 + k) for place in range(slots)],
            "freed": freed,
        }
    return result


def _metrics(level: float) -> dict[str, float]:
    values = (0.6, 1.5, 1.9, 0.7)
    return {"queries": 4000.0} | {
        name: level * value for name, value in zip(METRICS, values, strict=True)
    }


def _slices(level: float) -> dict[str, dict[str, float]]:
    return {
        name: _metrics(level * (1.2 - 0.15 * place)) | {"queries": 500.0 - 10 * place}
        for place, name in enumerate(SLICES)
    }


def _index(
    kind: str, leaves: float | None, reorder: int | None, recall: float, ms: float, shipped: bool
) -> dict[str, Any]:
    return {
        "kind": kind,
        "leaves_to_search_share": leaves,
        "reorder": reorder,
        "recall@100": recall,
        "ms_per_query": ms,
        "shipped": shipped,
    }


def _past(item: str, level: int) -> dict[str, Any]:
    return {"item": item, "title": f"Title of {item}", "level": level}


def _common(stats: statistics_pb2.CommonStatistics, users: int, values: int) -> None:
    stats.num_non_missing = users
    stats.tot_num_values = values
    stats.min_num_values = 1
