"""Keys of SchemaWriter. Imports nothing, so that anything may refer to them."""

from __future__ import annotations

# --- outputs ---------------------------------------------------------------------------------
SCHEMA_KEY = "schema"  # Schema

# --- execution properties --------------------------------------------------------------------
CONTENT_KEY = "content"  # text of a tensorflow.metadata.v0.Schema

# --- files inside the output -----------------------------------------------------------------
SCHEMA_FILE = "schema.pbtxt"  # what StatisticsGen, ExampleValidator and Transform look for
