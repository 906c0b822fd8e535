"""Configurations of pipelines for Kubeflow."""

from __future__ import annotations

import copy
from typing import Any

import pytest

IMAGE = "registry.example/csmf:0.1.0"
ROOT = "gs://shop-pipelines/root"

_CONFIG: dict[str, Any] = {
    "name": "shop",
    "seed": 3,
    "objectives": [{"name": "view"}, {"name": "add_cart"}],
    "data": {
        "interactions": [
            {
                "path": "gs://shop-logs/events-*.csv",
                "columns": {"user_id": "user", "item_id": "item", "timestamp": "time"},
                "event": {"column": "event", "values": {"view": "view", "cart": "add_cart"}},
            }
        ],
        "catalogue": {
            "path": "/shop/items.csv",
            "columns": {"item_id": "item"},
            "features": [{"name": "price", "column": "price", "kind": "numeric", "min": 0}],
        },
    },
    "serving": {"directory": "/models/shop", "model_name": "shop"},
    "beam": {"options": ["--direct_num_workers=2"]},
    "kubeflow": {
        "default": {"cpu": 1, "memory": "4Gi"},
        "nodes": {
            "Transform": {"cpu": 2.5},
            "CascadedTrainer": {"memory": "16G", "accelerator": {"type": "nvidia.com/gpu"}},
            "CascadedTrainer.view": {"cpu": 8},
        },
        "volumes": [
            {"claim": "shop-tables", "path": "/shop"},
            {"claim": "shop-models", "path": "/models"},
        ],
    },
}


@pytest.fixture
def raw() -> dict[str, Any]:
    """A configuration whose data lie where this machine cannot see them."""
    return copy.deepcopy(_CONFIG)
