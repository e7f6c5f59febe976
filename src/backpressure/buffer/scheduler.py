"""LaneScheduler: which lane a consumer is served from, and how long it may sleep when
there is none.

The most urgent lane that has something goes first; one that has been passed over often
enough goes before it, once: no lane starves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from backpressure.lanes.lane import Lane

__all__ = ["LaneScheduler"]

# A lane that was passed over this often in favour of more urgent ones is served next:
# one batch in 32 is a price that the urgent do not feel.
_PATIENCE: Final = 31


class LaneScheduler:
    """Of all lanes of a buffer, the most urgent first. Counts may be off by one where
    consumers choose at the same moment.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = lanes
        self._passed_over = [0] * len(lanes)

    def choose(self, now: float) -> Lane | None:
        """The lane whose turn it is, or None where no lane has anything ready."""
        chosen: Lane | None = None
        passed = self._passed_over
        at = 0
        for index, lane in enumerate(self._lanes):
            if not lane.ready(now):
                continue
            if chosen is None:
                chosen, at = lane, index
            else:
                passed[index] += 1
                if passed[index] > _PATIENCE:
                    chosen, at = lane, index
                    break
        if chosen is not None:
            passed[at] = 0
        return chosen

    def any_ready(self, now: float) -> bool:
        """Whether any lane has something ready."""
        return any(lane.ready(now) for lane in self._lanes)

    def any_asks(self, now: float) -> bool:
        """Whether any lane has something to send although the circuit is open."""
        return any(lane.asks(now) for lane in self._lanes)

    def next_retry(self, now: float) -> float:
        """Seconds until the pause of a nacked batch ends; inf where none pauses."""
        return min(
            (at - now for lane in self._lanes if (at := lane.retry_at(now)) is not None),
            default=float("inf"),
        )
