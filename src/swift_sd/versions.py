"""What depends on the installed versions of torch and transformers."""

from __future__ import annotations

import transformers
from packaging.version import Version

# Since 5.17 `generate` asks its stopping criteria before the streamer hears of a token, and marks a
# cache that its caller gave.
CRITERIA_COME_FIRST = CACHES_ARE_MARKED = Version("5.17") <= Version(transformers.__version__)

EXACT_TORCH = (
    "2.9",
    "2.14",
)  # the first and last whose order of sums compiled code is known to have


def has_known_order(version: str) -> bool:
    """Whether this version of torch is one of those."""
    first, last = map(Version, EXACT_TORCH)
    return first.release <= Version(version).release[:2] <= last.release
