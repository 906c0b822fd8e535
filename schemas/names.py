"""Names of features, splits and serving signatures, defined once.

Imports nothing, so that a thin client can use it without TensorFlow.
"""

# --- tf.Example features of one user timeline (splits `train` and `eval`) -------------------
USER_ID = "user_id"  # bytes[1]
ITEM_IDS = "item_ids"  # bytes[T], chronological
LEVELS = "levels"  # int64[T], funnel level reached by this event, 0 = first objective
TIMESTAMPS = "timestamps"  # int64[T], milliseconds since the epoch, UTC
TARGET_LEVELS = "target_levels"  # int64[T], level to predict at this event, or CONTEXT

CONTEXT = -1  # in TARGET_LEVELS: the event is history only, never a target

# --- tf.Example features of one catalogue item (split `catalogue`) --------------------------
ITEM_ID = "item_id"  # bytes[1]
ITEM_TITLE = "item_title"  # bytes[1]

# --- splits of the Examples artifact --------------------------------------------------------
TRAIN_SPLIT = "train"
EVAL_SPLIT = "eval"
CATALOGUE_SPLIT = "catalogue"

# --- serving signatures, their inputs and outputs -------------------------------------------
SIGNATURE_RECOMMEND = "serving_default"
SIGNATURE_EMBED_USER = "embed_user"
SIGNATURE_SCORE_ITEMS = "score_items"
SIGNATURE_EXAMPLES = "examples"
SIGNATURE_ITEM_TITLES = "item_titles"
SIGNATURE_USER_HISTORY = "user_history"

HISTORY_ITEM_IDS = "history_item_ids"  # string[B, H], padded with ""
HISTORY_LEVELS = "history_levels"  # int64[B, H]
OBJECTIVE_WEIGHTS = "objective_weights"  # float[B, K]
EXCLUDE_ITEM_IDS = "exclude_item_ids"  # string[B, X], padded with ""
EXAMPLES = "examples"  # string[B], serialised tf.Examples

SCORES = "scores"  # float[B, N], fused
OBJECTIVE_SCORES = "objective_scores"  # float[B, M, K]
BLOCKS = "blocks"  # float[B, D], the objectives' blocks one after the other
BLOCK_SIZES = "block_sizes"  # int64[K]
TITLES = "titles"  # string[B, M]

STOCK_SUFFIX = "_stock"  # served model name of the flavour without ScaNN ops

# --- the servable: two SavedModels of one model, and the vectors of its index ----------------
SCANN_FLAVOUR = "scann"  # with ScaNN ops
STOCK_FLAVOUR = "stock"  # TensorFlow core ops only
FLAVOURS = (SCANN_FLAVOUR, STOCK_FLAVOUR)
VECTORS_FILE = "vectors.npz"

# --- files beside a SavedModel --------------------------------------------------------------
MANIFEST_FILE = "assets.extra/manifest.json"
USERS_FILE = "assets/users"  # the vocabularies of Transform, one id a line
ITEMS_FILE = "assets/items"
WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"  # TensorFlow Serving's name


def user_feature(name: str) -> str:
    """tf.Example key and signature input of the user feature `name`."""
    return f"user_{name}"


def item_feature(name: str) -> str:
    """tf.Example key of the catalogue feature `name`."""
    return f"item_{name}"
