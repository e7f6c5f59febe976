"""Admission: what became of the events of one call."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Admission"]


class Admission(NamedTuple):
    """What became of the events of one call. The accepted ones are always a prefix: retry `events[admission.accepted:]`.

    accepted, rejected: events. `reason`: None where all were accepted, else why the rest was not: "full" (the lane), "rate",
    "share", "delay" or "emergency" (flow control), or "closed". `retry_after`: seconds after which a retry can succeed, 0.0 where
    that is not known. `first_seq`: the lane's number of the first accepted event, None where none was.
    `consumed`: for `add_lines`, how many bytes of the chunk were taken: go on at `chunk[admission.consumed:]`.
    """

    accepted: int
    rejected: int
    reason: str | None = None
    retry_after: float = 0.0
    first_seq: int | None = None
    consumed: int = 0
