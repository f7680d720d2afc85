"""Whether torch's order of sums is known for this processor."""

from __future__ import annotations

from pathlib import Path

KNOWN = "those with AVX512_BF16 and AMD's without AVX-512"


def has_known_order() -> bool:
    """Whether it is one of `KNOWN`, as far as the operating system tells."""
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    is_amd_without = "AuthenticAMD" in facts and " avx2" in facts and " avx512f" not in facts
    return " avx512_bf16" in facts or is_amd_without
