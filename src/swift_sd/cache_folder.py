"""Where files that can be made again are kept."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_root() -> Path:
    """`$SWIFT_SD_CACHE`, or a folder in the user's cache directory; it may not exist yet."""
    override = os.environ.get("SWIFT_SD_CACHE")
    if not override:
        return platformdirs.user_cache_path("swift-sd")
    return Path(os.path.expanduser(override))  # which leaves users it does not know as they are
