"""Admission: what became of the events of one call."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from backpressure.base.errors import BufferClosed, BufferFull, NeverAdmitted, RateLimited
from backpressure.base.reasons import RejectReason

__all__ = ["Admission"]

# What flow control's reasons mean, and what to do beside waiting.
_LIMITED: Final[dict[str, str]] = {
    "rate": "over the rate; raise it (adjust_flow_control_rate) or offer less",
    "share": "the tokens that are left belong to other priorities; offer less",
    "delay": "they would wait longer than delay_target; offer less, or at a more urgent priority",
    "emergency": (
        "the sink fails, and the least urgent are shed; offer less, or at a more urgent priority"
    ),
}


class Admission(NamedTuple):
    """What became of the events of one call. The accepted ones are always a prefix:
    retry `events[admission.accepted:]`.

    accepted, rejected: events. `reason`: None where all were accepted, else why the
    rest was not: "full" (the lane), "rate", "share", "delay" or "emergency" (flow
    control), or "closed". `retry_after`: seconds after which a retry can succeed, 0.0
    where that is not known. `first_seq`: the lane's number of the first accepted event,
    None where none was. `consumed`: for `add_lines`, how many bytes of the chunk were
    taken: go on at `chunk[admission.consumed:]`.

    It is true where nothing was rejected: `if not buffer.add_events(events): …`.
    """

    accepted: int
    rejected: int
    reason: RejectReason | None = None
    retry_after: float = 0.0
    first_seq: int | None = None
    consumed: int = 0

    def __bool__(self) -> bool:
        """Whether nothing was rejected."""
        return not self.rejected

    def raise_for_rejection(self) -> None:
        """Raise what says why events were rejected; nothing where all were accepted.

        BufferFull for "full"; RateLimited for "rate", "share", "delay" and "emergency";
        both are NotNow and have the `retry_after` of this admission. NeverAdmitted
        where the rate is 0 and the burst is spent, so that waiting cannot help;
        BufferClosed for "closed". Whatever is raised, what was accepted stays accepted:
        only the rest is to be tried again.

        >>> Admission(accepted=3, rejected=0).raise_for_rejection()
        >>> refused = Admission(accepted=1, rejected=2, reason="rate", retry_after=0.5)
        >>> refused.raise_for_rejection()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        backpressure.base.errors.RateLimited: 2 of 3 events were rejected: over ...
        """
        if not self.rejected:
            return
        offered = self.accepted + self.rejected
        what = f"{self.rejected:,} of {offered:,} events were rejected"
        taken = ""
        if self.accepted:
            taken = (
                f"the first {self.accepted:,} {'was' if self.accepted == 1 else 'were'} accepted: "
            )
        if self.reason == "closed":
            raise BufferClosed(f"{what}: the buffer is closed and accepts no more")
        if self.reason == "full":
            raise BufferFull(
                f"{what}: the lane is full; {taken}try {'the rest' if taken else 'them'} again "
                "when consumers have made room, or wait for that with a longer timeout",
                self.retry_after,
            )
        if self.reason == "rate" and self.retry_after == math.inf:
            raise NeverAdmitted(
                f"{what}: the rate is 0 and the burst is spent, so waiting cannot help; {taken}"
                f"raise the rate (adjust_flow_control_rate) before you try "
                f"{'the rest' if taken else 'them'} again"
            )
        # A rate of 0 leaves nothing to reckon with, but what others leave of the burst
        # may be had some time.
        wait = self.retry_after if self.retry_after < math.inf else 0.0
        why = _LIMITED.get(self.reason or "rate", self.reason)
        when = f"in {wait:.3g} s" if wait else "later"
        raise RateLimited(
            f"{what}: {why}; {taken}try {'the rest' if taken else 'them'} again {when}", wait
        )
