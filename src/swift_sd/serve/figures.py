"""What the server has seen of one model: for its page and for Prometheus."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass
from statistics import median
from typing import Any

from swift_sd.decoding.trace import Step
from swift_sd.model.layer_set import LayerSet

RECENT = 128  # steps that a speed is taken from


@dataclass(frozen=True)
class Speeds:
    """Tokens per second, prefills left out; None where nothing was measured yet.

    Attributes:
        now: over the latest steps, with all that drafting and adapting took.
        plain: without drafts: the median of the latest steps that had none.
    """

    now: float | None
    plain: float | None


class Figures:
    """Counts the steps of all responses of one model. Written by one thread, read by any.

    Args:
        layer_set: what drafts skip before anything is known.
    """

    def __init__(self, layer_set: LayerSet) -> None:
        self._lock = threading.Lock()
        self._layer_set = layer_set
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)  # tokens, seconds
        self._plain: deque[float] = deque(maxlen=RECENT)
        self._accepted: Counter[int] = Counter()
        self._drafters: Counter[str] = Counter()
        self._tokens = self._drafted = self._steps = self._responses = 0

    def add(self, step: Step, seconds: float, layer_set: LayerSet) -> None:
        """Count a step that took `seconds` of wall time and left drafts skipping `layer_set`."""
        with self._lock:
            self._steps += 1
            self._tokens += len(step.tokens)
            self._layer_set = layer_set
            if step.prefill:
                self._responses += 1
                return
            self._recent.append((len(step.tokens), seconds))
            if step.drafter is None:
                self._plain.append(step.seconds - step.draft)
                return
            self._drafted += step.drafted
            self._drafters[step.drafter] += 1
            self._accepted[step.accepted] += 1

    def speeds(self) -> Speeds:
        """How fast it is, beside plain decoding."""
        with self._lock:
            tokens = sum(count for count, _ in self._recent)
            seconds = sum(time for _, time in self._recent)
            plain = median(self._plain) if self._plain else None
        return Speeds(tokens / seconds if seconds else None, 1 / plain if plain else None)

    def state(self) -> dict[str, Any]:
        """A JSON-ready picture of now; the page shows it."""
        speeds = self.speeds()
        with self._lock:
            return {
                "tokens_per_second": speeds.now,
                "plain_tokens_per_second": speeds.plain,
                "depth": self._layer_set.depth,
                "attention": sorted(self._layer_set.attention),
                "mlp": sorted(self._layer_set.mlp),
                "accepted_histogram": {str(n): self._accepted[n] for n in sorted(self._accepted)},
                "drafters": dict(self._drafters),
                "responses": self._responses,
                "steps": self._steps,
                "tokens": self._tokens,
                "drafted_tokens": self._drafted,
            }
