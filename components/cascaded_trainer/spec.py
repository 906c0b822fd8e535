"""Keys of CascadedTrainer. Imports nothing, so that anything may refer to them."""

from __future__ import annotations

# --- inputs ----------------------------------------------------------------------------------
TRANSFORM_GRAPH_KEY = "transform_graph"
TRANSFORMED_EXAMPLES_KEY = "transformed_examples"
PREVIOUS_KEY = "previous"  # CascadeStage; absent for the first objective

# --- outputs ---------------------------------------------------------------------------------
STAGE_KEY = "stage"  # CascadeStage

# --- execution properties --------------------------------------------------------------------
STAGE_INDEX_KEY = "stage_index"  # int, 0 = first objective
OBJECTIVES_KEY = "objectives"  # JSON list of names, first of the funnel first
SETTINGS_KEY = "settings"  # JSON of models.settings.StageSettings, of this objective only
MODEL_KEY = "model"  # JSON of models.settings.ModelSettings
FEATURES_KEY = "features"  # JSON of models.features.FeatureKinds
ORDERED_KEY = "ordered"  # int, 0 = the log has no times
SEED_KEY = "seed"  # int
DISTRIBUTION_KEY = "distribution"  # see models.settings.TrainerSettings

# --- files inside the output -----------------------------------------------------------------
REPORT_FILE = "stage.json"
