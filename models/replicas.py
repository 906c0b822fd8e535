"""Training on several devices or machines: the same batch everywhere, its rows divided.

Every worker draws the same global batches from the same seed. A replica takes its share of the
rows and all candidates, so each positive competes with the negatives of the whole batch, and
nothing but sums has to cross the network: those of the weights of the loss, of the moments of the
margins, and of the gradients. Drawing a batch is several times as fast as a step, so it is no
loss that every worker does it, and an item tower is run by all of them.

The weights are bit for bit the same on all workers: equal seeds draw them, and all apply the same
sum of gradients. What is decided from them (when a stage stops, which neurons it frees) is the
chief's word all the same, since other processors may round otherwise.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.settings import Distribution

_OF_ROWS = ("history_items", "history_levels", "user_ids", "positives")


class DistributionError(RuntimeError):
    """Training cannot be distributed as the settings say; the text says what is missing."""


def strategy_of(distribution: Distribution) -> tf.distribute.Strategy:
    """What training runs under: `with strategy_of(..).scope(): ..`.

    Args:
      distribution: none; mirrored = all GPUs of this machine, or all logical CPUs where there is
        none; multi_worker = the cluster that TF_CONFIG describes, which TensorFlow itself reads.

    Raises:
      DistributionError: multi_worker without a cluster, or after other work of TensorFlow.
    """
    if distribution == "none":
        return tf.distribute.get_strategy()
    if distribution == "mirrored":
        if gpus := tf.config.list_logical_devices("GPU"):
            return tf.distribute.MirroredStrategy([device.name for device in gpus])
        # The collectives that are the default mix up the sums of a step on CPUs (TensorFlow 2.16).
        return tf.distribute.MirroredStrategy(
            [device.name for device in tf.config.list_logical_devices("CPU")],
            tf.distribute.ReductionToOneDevice(),
        )
    return _of_cluster()


@functools.cache
def _of_cluster() -> tf.distribute.Strategy:
    """One for a process: a second one would lose the workers that the first has found."""
    try:
        cluster = tf.distribute.cluster_resolver.TFConfigClusterResolver().cluster_spec()
    except json.JSONDecodeError as error:
        raise DistributionError(f"TF_CONFIG in the environment is no JSON: {error}") from error
    if not cluster.jobs:
        raise DistributionError(
            "trainer.distribution is multi_worker, but TF_CONFIG in the environment names no "
            'cluster. Expected on every worker: {"cluster": {"worker": ["host:port", ..]}, '
            '"task": {"type": "worker", "index": 0}}, as the training operator of Kubeflow sets '
            "it. On one machine use trainer.distribution: none or mirrored."
        )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise DistributionError(
            "trainer.distribution is multi_worker, which has to be set up before anything else of "
            f"TensorFlow runs in the process ({error}). Run CascadedTrainer in a process of its "
            "own, as Kubeflow does; csmf run has all nodes in one."
        ) from error


def is_chief() -> bool:
    """Whether this worker is the one that writes, under the strategy in whose scope this is."""
    resolver = tf.distribute.get_strategy().cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    jobs = resolver.cluster_spec().jobs
    first = "chief" if "chief" in jobs else "worker"
    return (resolver.task_type, resolver.task_id) == (first, 0)


def total(value: tf.Tensor) -> tf.Tensor:
    """The sum over all replicas; called by each of them, or where there is only one."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def are_many() -> bool:
    """Whether a replica asks, and there are others."""
    context = tf.distribute.get_replica_context()
    return context is not None and context.num_replicas_in_sync > 1


def rows_of_replica(batch: dict[str, Any]) -> dict[str, Any]:
    """The replica's share of a global batch's rows, maybe none; all candidates. See `Batch`."""
    if not are_many():
        return batch
    context = tf.distribute.get_replica_context()
    number = tf.cast(context.replica_id_in_sync_group, tf.int32)
    rows = tf.shape(batch["user_ids"])[0]
    start = number * rows // context.num_replicas_in_sync
    stop = (number + 1) * rows // context.num_replicas_in_sync
    columns = tf.size(batch["candidates"])
    places = batch["offset_places"]
    here = (places >= start * columns) & (places < stop * columns)
    return batch | {
        **{name: batch[name][start:stop] for name in _OF_ROWS},
        "features": {name: ids[start:stop] for name, ids in batch["features"].items()},
        "offset_places": tf.boolean_mask(places, here) - start * columns,
        "offsets_there": tf.boolean_mask(batch["offsets_there"], here),
    }


def chiefs(value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The value that the chief gives, on every worker; also waits until all of them have asked."""
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync == 1:
        return value
    return _of_first_replica(strategy)(value.ravel()).numpy().reshape(value.shape)


@functools.cache
def _of_first_replica(strategy: tf.distribute.Strategy) -> Callable[[Any], tf.Tensor]:
    def of_replica(value: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        return total(tf.where(tf.equal(context.replica_id_in_sync_group, 0), value, 0.0))

    def of_first(value: tf.Tensor) -> tf.Tensor:
        return strategy.experimental_local_results(strategy.run(of_replica, (value,)))[0]

    return tf.function(of_first, input_signature=[tf.TensorSpec([None], tf.float64)])
