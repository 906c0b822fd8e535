"""Keys and names of the Pusher, importable without TFX."""

# --- inputs ---------------------------------------------------------------------------------
MODEL_KEY = "model"
MODEL_BLESSING_KEY = "model_blessing"
INFRA_BLESSING_KEY = "infra_blessing"

# --- outputs --------------------------------------------------------------------------------
PUSHED_MODEL_KEY = "pushed_model"

# --- execution properties -------------------------------------------------------------------
SERVING_DIR_KEY = "serving_dir"
MODEL_NAME_KEY = "model_name"
KEEP_VERSIONS_KEY = "keep_versions"
ADDRESS_KEY = "address"
POLL_TIMEOUT_SECONDS_KEY = "poll_timeout_seconds"

DEFAULT_KEEP_VERSIONS = 3
DEFAULT_POLL_TIMEOUT_SECONDS = 120.0

# --- custom properties of the blessings (TFX's convention) ----------------------------------
BLESSED_PROPERTY = "blessed"
FAILED_PROPERTY = "failed"  # names of the failed checks; ours, and optional
MODEL_BLESSED_FILE = "BLESSED"
INFRA_BLESSED_FILE = "INFRA_BLESSED"

# --- custom properties of the PushedModel ---------------------------------------------------
PUSHED_PROPERTY = "pushed"
PUSHED_VERSION_PROPERTY = "pushed_version"
PUSHED_DESTINATION_PROPERTY = "pushed_destination"
MODEL_NAME_PROPERTY = "model_name"
MODEL_ID_PROPERTY = "model_id"
REASON_PROPERTY = "reason"

# --- files of the PushedModel ---------------------------------------------------------------
PUSH_FILE = "push.json"
