"""Process-wide settings of the tests: they must be in place before the first TensorFlow import."""

import os

# Assigned, not defaulted: TensorFlow Recommenders and TFT fail under Keras 3.
os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault(
    "TF_ENABLE_ONEDNN_OPTS", "0"
)  # one rounding on every CPU, and no start-up notice
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
