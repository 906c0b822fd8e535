"""Keys of InputFingerprint. Imports nothing, so that anything may refer to them."""

from __future__ import annotations

# --- outputs ---------------------------------------------------------------------------------
FINGERPRINT_KEY = "fingerprint"  # String, see `digest`

# --- execution properties --------------------------------------------------------------------
DATA_KEY = "data"  # JSON of schemas.logs.DataSettings
