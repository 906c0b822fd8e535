"""Keys and names of the ServingValidator, importable without TFX."""

# --- inputs ---------------------------------------------------------------------------------
MODEL_KEY = "model"
EXAMPLES_KEY = "examples"

# --- outputs --------------------------------------------------------------------------------
BLESSING_KEY = "blessing"

# --- execution properties -------------------------------------------------------------------
OBJECTIVES_KEY = "objectives"  # JSON list of names
SAMPLE_SIZE_KEY = "sample_size"
SEED_KEY = "seed"
TIMEOUT_SECONDS_KEY = "timeout_seconds"
MINIMUM_RECALL_KEY = "minimum_recall"

DEFAULT_SAMPLE_SIZE = 32
DEFAULT_TIMEOUT_SECONDS = 180.0
DEFAULT_MINIMUM_RECALL = 0.95

# --- the blessing (TFX's convention for InfraBlessing) --------------------------------------
BLESSED_PROPERTY = "blessed"
FAILED_PROPERTY = "failed"  # names of the failed checks, "; " between them
CHECKS_PROPERTY = "checks"  # JSON: name, passed and detail of every check
BLESSED_FILE = "INFRA_BLESSED"
NOT_BLESSED_FILE = "INFRA_NOT_BLESSED"
REPORT_FILE = "report.json"

# --- folders and files of the model artifact ------------------------------------------------
ITEM_IDS_ARRAY = "item_ids"  # bytes [n]
ITEM_VECTORS_ARRAY = "item_vectors"  # float32 [n, D]

# --- checks, in the order of the report -----------------------------------------------------
CHECK_MANIFEST = "manifest"
CHECK_SERVER = "server"
CHECK_KNOWN_USER = "known_user"
CHECK_HISTORIES = "histories"
CHECK_UNKNOWN_USER = "unknown_user"
CHECK_UNKNOWN_ITEMS = "unknown_items"
CHECK_EXCLUSIONS = "exclusions"
CHECK_FULL_LISTS = "full_lists"
CHECK_UNIQUE_IDS = "unique_ids"
CHECK_SCORES = "scores"
CHECK_EXACTNESS = "exactness"
CHECK_ANN_RECALL = "ann_recall"
CHECKS = {
    CHECK_MANIFEST: "both flavours name the same model and the configured objectives",
    CHECK_SERVER: "the server starts, loads both flavours and stays up",
    CHECK_KNOWN_USER: "users of the data get an answer by id alone",
    CHECK_HISTORIES: "histories sent with the request are answered under every weighting",
    CHECK_UNKNOWN_USER: "an unknown user without history gets an answer",
    CHECK_UNKNOWN_ITEMS: "unknown items in the history do no harm",
    CHECK_EXCLUSIONS: "neither seen nor excluded items come back",
    CHECK_FULL_LISTS: "lists are full while items remain, then padded with '' and 0",
    CHECK_UNIQUE_IDS: "no item comes twice, and every item is in the catalogue",
    CHECK_SCORES: "scores are finite and descending",
    CHECK_EXACTNESS: "the stock flavour's list is that of NumPy brute force",
    CHECK_ANN_RECALL: "the scann flavour finds what brute force finds",
}
