"""Executor of InteractionGen."""

from __future__ import annotations

import json
from typing import Any

from apache_beam.io.filesystems import FileSystems
from tfx.components.util import examples_utils
from tfx.dsl.components.base import base_beam_executor
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils
from tfx.types.artifact import Artifact

from components.artifacts import compact_json
from components.input_fingerprint.digest import digest
from components.interaction_gen import spec
from components.interaction_gen.files import fingerprint_inputs
from components.interaction_gen.ingest import Outputs, ingest
from schemas.logs import DataError, DataSettings
from schemas.names import CATALOGUE_SPLIT, EVAL_SPLIT, TRAIN_SPLIT

SPLITS = [TRAIN_SPLIT, EVAL_SPLIT, CATALOGUE_SPLIT]


class Executor(base_beam_executor.BaseBeamExecutor):
    """Runs `ingest` on the Beam runner of the pipeline."""

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Reads logs and writes examples, dead letters and the summary.

        Args:
          input_dict: empty.
          output_dict:
            - examples: standard_artifacts.Examples, splits train, eval, catalogue.
            - dead_letters: DeadLetters.
            - summary: IngestionSummary; `IngestionReport.facts` as JSON in custom properties.
          exec_properties:
            - data: JSON of DataSettings.
            - objectives: JSON list of names, first of the funnel first.
            - seed: int.
            - fingerprint: JSON {path: SHA-256} of the inputs, or the digest of that.

        Raises:
          ConfigError: sources and objectives do not fit together.
          DataError: the data cannot be used; names a directory with dead letters and summary. Or
            files have changed since the fingerprint was taken.
        """
        examples = artifact_utils.get_single_instance(output_dict[spec.EXAMPLES_KEY])
        summary = artifact_utils.get_single_instance(output_dict[spec.SUMMARY_KEY])
        outputs = Outputs(
            examples=examples.uri,
            dead_letters=artifact_utils.get_single_uri(output_dict[spec.DEAD_LETTERS_KEY]),
            summary=summary.uri,
        )
        data = DataSettings.parse(json.loads(exec_properties[spec.DATA_KEY]))
        hashes = _hashes(data, exec_properties[spec.FINGERPRINT_KEY])
        try:
            report = ingest(
                data,
                json.loads(exec_properties[spec.OBJECTIVES_KEY]),
                exec_properties[spec.SEED_KEY],
                self._make_beam_pipeline,
                outputs,
                hashes,
            )
        except DataError as error:
            kept = _keep_evidence(outputs)
            if kept is None:
                raise
            raise DataError(f"{error}\nAll dead letters and the counts: {kept}") from error
        examples.split_names = artifact_utils.encode_split_names(SPLITS)
        examples_utils.set_payload_format(examples, example_gen_pb2.FORMAT_TF_EXAMPLE)
        for key, value in report.facts().items():
            summary.set_string_custom_property(key, compact_json(value))


def _hashes(data: DataSettings, fingerprint: str) -> dict[str, str]:
    """Returns path -> SHA-256, which a digest stands for only while the files stay as they are."""
    if fingerprint.startswith("{"):
        given: dict[str, str] = json.loads(fingerprint)
        return given
    hashes = fingerprint_inputs(data)
    if digest(hashes) != fingerprint:
        # Read all the same, they would be taken for the old ones by whoever looks into the cache.
        raise DataError(
            f"The input files are not those that this run began with ({fingerprint} expected, "
            f"{digest(hashes)} found): something writes to them. Run again when they are complete."
        )
    return hashes


def _keep_evidence(outputs: Outputs) -> str | None:
    """Copies dead letters and summary to where TFX, which deletes a failed run's outputs, does not.

    Returns:
      The directory, or None where the ingestion failed before it wrote anything.
    """
    sources = [
        FileSystems.join(outputs.dead_letters, spec.DEAD_LETTERS_FILE),
        FileSystems.join(outputs.summary, spec.SUMMARY_FILE),
    ]
    if not all(FileSystems.exists(source) for source in sources):
        return None
    # <node>/dead_letters/<execution> -> <node>/failed/<execution>
    parent, execution = FileSystems.split(outputs.dead_letters.rstrip("/"))
    kept = FileSystems.join(FileSystems.split(parent.rstrip("/"))[0], "failed", execution)
    if not FileSystems.exists(kept):
        FileSystems.mkdirs(kept)
    for source in sources:
        target = FileSystems.join(kept, FileSystems.split(source)[1])
        with FileSystems.open(source) as reading, FileSystems.create(target) as writing:
            while block := reading.read(1 << 20):
                writing.write(block)
    return kept
