"""The pipeline on Kubeflow Pipelines: compiled here, run there."""
