"""DeadLetter: one event that was given up after its last attempt."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DeadLetter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One event that was given up."""

    event: bytes
    error: str  #: what the last attempt failed with
    attempts: int
    priority: int  #: of the lane that it comes from
    seq: int  #: its number there
    time_ns: int  #: when it was given up, in ns since 1970
    id: int = -1  #: its number in this store; -1 before it is in one
