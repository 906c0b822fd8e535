"""Executor of StatisticsGen."""

from __future__ import annotations

import os
from typing import Any

import tensorflow_data_validation as tfdv
from tensorflow_data_validation.statistics.generators import stats_generator
from tensorflow_data_validation.statistics.generators.basic_stats_generator import (
    BasicStatsGenerator,
)
from tfx.components.statistics_gen.executor import DEFAULT_FILE_NAME
from tfx.components.util import examples_utils
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils, standard_component_specs
from tfx.types.artifact import Artifact

from components.record_batches import BatchedExamples
from components.statistics_gen.text_values import TextValues


class Executor(base_beam_executor.BaseBeamExecutor):
    """Computes what TensorFlow Data Validation computes by default, on the pipeline's runner."""

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Describes every split.

        Args:
          input_dict:
            - examples: tf.Examples in compressed TFRecord files.
          output_dict:
            - statistics: standard_artifacts.ExampleStatistics, the splits of the examples.
          exec_properties: those of TFX's StatisticsGen, at their defaults.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        keys = standard_component_specs
        examples = artifact_utils.get_single_instance(input_dict[keys.EXAMPLES_KEY])
        outputs = output_dict[keys.STATISTICS_KEY]
        statistics = artifact_utils.get_single_instance(outputs)
        statistics.split_names = examples.split_names
        statistics.span = examples.span
        with self._make_beam_pipeline() as pipeline:
            for split in artifact_utils.decode_split_names(examples.split_names):
                patterns = examples_utils.get_split_file_patterns([examples], split)
                path = os.path.join(artifact_utils.get_split_uri(outputs, split), DEFAULT_FILE_NAME)
                _ = (
                    pipeline
                    | f"Read[{split}]" >> BatchedExamples(patterns).BeamSource()
                    | f"Describe[{split}]" >> tfdv.GenerateStatistics(_options())
                    | f"Write[{split}]" >> tfdv.WriteStatisticsToBinaryFile(path)
                )


def _options() -> tfdv.StatsOptions:
    options = tfdv.StatsOptions(add_default_generators=False)
    options.generators = [
        BasicStatsGenerator(),
        stats_generator.TransformStatsGenerator(
            "TextValues",
            TextValues(
                options.num_top_values,
                options.frequency_threshold,
                options.num_rank_histogram_buckets,
            ),
        ),
    ]
    return options
