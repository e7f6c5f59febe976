"""DeliveryStats: what a delivery has done, at one moment."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DeliveryStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryStats:
    """Counts are since the delivery began."""

    sink: str  #: its name, for people
    running: bool
    workers: int  #: batches in flight at most
    limit: int  #: batches in flight that pay at present
    in_flight: int  #: batches that the sink has now
    batches_taken: int
    events_taken: int
    #: Calls of the sink that failed, or that it answered with a rejection.
    failures: int
    failing_for: float  #: seconds since it began to fail; 0.0: its last answer was good
    last_error: str | None  #: of the last failure
    error: str | None  #: what ended the delivery before its time
