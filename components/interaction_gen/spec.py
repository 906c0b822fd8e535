"""Keys of InteractionGen. Imports nothing, so that anything may refer to them."""

from __future__ import annotations

# --- outputs ---------------------------------------------------------------------------------
EXAMPLES_KEY = "examples"
DEAD_LETTERS_KEY = "dead_letters"
SUMMARY_KEY = "summary"

# --- execution properties --------------------------------------------------------------------
DATA_KEY = "data"  # JSON of schemas.logs.DataSettings
OBJECTIVES_KEY = "objectives"  # JSON list of names, first of the funnel first
SEED_KEY = "seed"  # int
# So that a changed file is not a cache hit: JSON {path: sha256}, or a digest of InputFingerprint.
FINGERPRINT_KEY = "fingerprint"

# --- files inside the outputs ----------------------------------------------------------------
SUMMARY_FILE = "summary.json"
DEAD_LETTERS_FILE = "dead_letters.jsonl"
EXAMPLES_PREFIX = "data_tfrecord"  # what StatisticsGen and Transform look for

# --- tables a record can come from -----------------------------------------------------------
INTERACTIONS = "interactions"
CATALOGUE = "catalogue"
USERS = "users"
TABLES = (INTERACTIONS, CATALOGUE, USERS)
