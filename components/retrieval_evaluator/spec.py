"""Keys of RetrievalEvaluator. Imports nothing, so that anything may refer to them."""

from __future__ import annotations

# --- inputs ----------------------------------------------------------------------------------
MODEL_KEY = "model"  # Model
EXAMPLES_KEY = "examples"  # Examples of InteractionGen, splits train and eval
ANOMALIES_KEY = "anomalies"  # ExampleAnomalies of train and eval
CATALOGUE_ANOMALIES_KEY = "catalogue_anomalies"  # ExampleAnomalies of the catalogue

# --- outputs ---------------------------------------------------------------------------------
EVALUATION_KEY = "evaluation"  # ModelEvaluation: evaluation.json
BLESSING_KEY = "blessing"  # ModelBlessing

# --- execution properties --------------------------------------------------------------------
SETTINGS_KEY = "settings"  # JSON of EvaluationSettings
OBJECTIVES_KEY = "objectives"  # JSON list of names, first of the funnel first
FEATURES_KEY = "features"  # JSON of models.features.FeatureKinds
INDEX_KEY = "index"  # JSON of models.settings.IndexSettings, those that the model was built with
SEED_KEY = "seed"  # int
SERVING_DIR_KEY = "serving_dir"  # str, where the served model lies
MODEL_NAME_KEY = "model_name"  # str

# --- files inside the outputs ----------------------------------------------------------------
REPORT_FILE = "evaluation.json"
