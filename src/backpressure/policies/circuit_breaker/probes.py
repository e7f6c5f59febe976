"""The probes of a half-open circuit: how many may be out, for how long, and what came
back.

Each probe that goes out gets a number, which is never used again, and a slot with a
lease. Probes that are out plus results never exceed the slots. A slot comes back where
its probe is ignored, where its lease is over and another one wants it, or where it was
dropped: `dropped` takes a note from a finaliser, which may run in the middle of
anything, and needs no lock. All else is guarded by the circuit breaker's lock.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Probes"]


class Probes:
    """`slots` probes, each with a lease of `lease` seconds."""

    __slots__ = (
        "_lease",
        "_number",
        "_out",
        "_slots",
        "dropped",
        "failed",
        "lost",
        "results",
        "slow",
    )

    def __init__(self, slots: int, lease: float) -> None:
        self._slots = slots
        self._lease = lease
        self._number = 0
        # To the end of its lease; the oldest comes first, as all leases are equally
        # long.
        self._out: dict[int, float] = {}
        #: Numbers of probes whose permits are gone, whether they were reported or not;
        #: `append` is atomic.
        self.dropped: deque[int] = deque()
        #: Results of this half-open period, and of them the failures and the slow ones.
        self.results = self.failed = self.slow = 0
        #: Probes, since the beginning, that lost their slot without a result.
        self.lost = 0

    @property
    def out(self) -> int:
        return len(self._out)

    def clear(self) -> None:
        """A new period: whatever is out counts no more."""
        self._out.clear()
        self.results = self.failed = self.slow = 0

    def collect(self) -> None:
        """Take back the slots of dropped probes."""
        while self.dropped:
            if self._out.pop(self.dropped.popleft(), None) is not None:
                self.lost += 1

    def take(self, now: float) -> int | None:
        """The number of a new probe, or None where none may go out."""
        if self.results + len(self._out) >= self._slots:
            # With fewer results than slots, which holds until the period is decided, a
            # full house has a probe out.
            oldest = next(iter(self._out))
            if now < self._out[oldest]:
                return None
            del self._out[oldest]
            self.lost += 1
        self._number += 1
        self._out[self._number] = now + self._lease
        return self._number

    def has(self, number: int) -> bool:
        """Whether a probe is out."""
        return number in self._out

    def give_back(self, number: int) -> bool:
        """A probe is no longer out; False where it had no slot any more."""
        return self._out.pop(number, None) is not None

    def count(self, failed: int, slow: int) -> None:
        """One result of a probe that gave its slot back."""
        self.results += 1
        self.failed += failed
        self.slow += slow

    def wait(self, now: float, glance: float) -> float:
        """Seconds until it is worth asking for a slot: 0.0 where one is free, else to
        the end of a lease or for a `glance`.
        """
        if self.results + len(self._out) < self._slots:
            return 0.0
        # None is out while a period is being decided, which a call within sees.
        return max(0.0, min(next(iter(self._out.values()), now) - now, glance))
