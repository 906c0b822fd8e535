"""Keys of IndexBuilder. Imports nothing, so that anything may refer to them."""

from __future__ import annotations

# --- inputs ----------------------------------------------------------------------------------
TRANSFORM_GRAPH_KEY = "transform_graph"
TRANSFORMED_EXAMPLES_KEY = "transformed_examples"
STAGE_KEY = "stage"  # CascadeStage of the last objective

# --- outputs ---------------------------------------------------------------------------------
MODEL_KEY = "model"  # Model: scann/, stock/, vectors.npz, manifest.json

# --- execution properties --------------------------------------------------------------------
SETTINGS_KEY = "settings"  # JSON of models.settings.IndexSettings
OBJECTIVES_KEY = "objectives"  # JSON list of names, first of the funnel first
FEATURES_KEY = "features"  # JSON of models.features.FeatureKinds
