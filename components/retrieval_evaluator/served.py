"""Which pushed version is served now: what a candidate would take the place of."""

from __future__ import annotations

from pathlib import Path

from schemas.names import STOCK_SUFFIX
from schemas.versions import versions_in
from serving.config_files import MODELS_FILE, pinned_versions


def served_version(serving_dir: Path, model_name: str) -> Path | None:
    """Directory of the served version, in the flavour that needs core ops only.

    The newest one, or the newest of those that a rollback has pinned. A pin on versions that are
    not there serves nothing; the newest is then the best that is known.

    Args:
      serving_dir: where Pusher puts models.
      model_name: served name.

    Returns:
      None if nothing was pushed yet.

    Raises:
      ConfigFileError: the file that says what is served is not understood.
    """
    found = versions_in(serving_dir / f"{model_name}{STOCK_SUFFIX}")
    if not found:
        return None
    pinned = pinned_versions(serving_dir / MODELS_FILE, model_name) & found.keys()
    return min(found[max(pinned or found)])
