"""What stands behind a pushed version: ML Metadata alone, walked between logs and pushes.

Reads no file of a run and needs neither TFX nor TensorFlow, so `csmf lineage` answers in under a
second, also where the files are gone.
"""
