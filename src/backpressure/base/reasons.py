"""Why events were not accepted, and why accepted ones were given up: one list each."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

__all__ = [
    *("DROP_REASONS", "LIMIT_REASONS", "REJECT_REASONS"),
    *("DropReason", "LimitReason", "RejectReason"),
]

#: What flow control refuses for: no token is left ("rate"), those that are left belong
#: to other priorities ("share"), the event would wait too long ("delay"), or demand is
#: shed because the sink fails ("emergency").
LimitReason: TypeAlias = Literal["rate", "share", "delay", "emergency"]

#: Why an event was not accepted: its lane has no room ("full"), flow control refuses
#: it, or the buffer is closed ("closed").
RejectReason: TypeAlias = Literal["full", "rate", "share", "delay", "emergency", "closed"]

#: Why an accepted event was given up: it made room for newer ones ("oldest") or for
#: more urgent ones ("priority"), the buffer was closed in memory ("closed"), its bytes
#: on disk are damaged ("damaged"), or it was older than it may be ("age").
DropReason: TypeAlias = Literal["oldest", "closed", "damaged", "priority", "age"]

#: All of them, in the order in which tables and metrics list them.
LIMIT_REASONS: Final[tuple[LimitReason, ...]] = get_args(LimitReason)
REJECT_REASONS: Final[tuple[RejectReason, ...]] = get_args(RejectReason)
DROP_REASONS: Final[tuple[DropReason, ...]] = get_args(DropReason)
