"""One short value for the hashes of all input files.

Short, because it travels on the command line of a container, where the hashes of a few hundred
files would not fit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping


def digest(hashes: Mapping[str, str]) -> str:
    """Returns "sha256:.." of path -> SHA-256, whatever the order."""
    content = json.dumps(dict(hashes), sort_keys=True).encode()
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
