"""`csmf compile`: the pipeline for an orchestrator."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from pipeline.options import config_option


@click.command("compile")
@click.option(
    "--runner",
    type=click.Choice(["kubeflow"]),
    required=True,
    help="kubeflow: Kubeflow Pipelines 2, and what else runs its pipeline specs.",
)
@config_option()
@click.option("--image", required=True, help="Container image, with a tag or a digest.")
@click.option("--pipeline-root", required=True, help="Where artifacts go: gs://BUCKET/PATH.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="YAML file to write.",
)
def compile_command(
    runner: str, config_path: Path, image: str, pipeline_root: str, output: Path
) -> None:
    """Compile the pipeline to a file that an orchestrator runs.

    Nothing is read but the configuration: the data need not be reachable from here.
    """
    from pipeline.config import load_config

    config = load_config(config_path)
    if importlib.util.find_spec("kfp") is None:
        raise click.ClickException(
            "compiling needs kfp, which is not installed: pip install 'csmf[kubeflow]'"
        )
    from pipeline.kubeflow.compiler import compile_pipeline
    from schemas.files import write_atomically

    content = compile_pipeline(config, image, pipeline_root)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, content.encode())
    click.echo(f"Written: {output}. Upload it with `kfp pipeline create` or the user interface.")
