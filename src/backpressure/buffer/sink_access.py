"""SinkAccess: what a buffer knows of its sink, and whether it is asked out of turn.

A close, a flush or a stop has no time for the circuit's clock and for pauses: while it
lasts the sink is asked at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from backpressure.buffer.size_limit import SizeLimit
from backpressure.lanes.attempts import Attempts, SinkRecord

__all__ = ["ASKING_WAIT", "SinkAccess"]

#: While the sink is asked, it is called again after that time (seconds): one that comes
#: back meanwhile gets most of what is left.
ASKING_WAIT: Final = 0.05
_NEVER: Final = float("-inf")


class SinkAccess:
    """Of one buffer; shared by what hands out and what settles. Safe for any thread.

    record: what the sink has taken, as the lanes have it. most_bytes: of a batch.
    """

    def __init__(self, record: SinkRecord, most_bytes: int) -> None:
        self.record: Final = record
        self.size: Final = SizeLimit(most_bytes)
        #: The sink fails whatever it is given, and rejects no event: nothing is to be
        #: found by halving, and what fails is sent again in its place.
        self.keeps_order = False
        #: The buffer closes, which is asking without an end.
        self.closing = False
        #: The sink has asked to be left alone until then.
        self.away_until = _NEVER
        self._once = False
        self._lock = threading.RLock()  # re-entrant: a signal's handler may flush
        self._asking = 0

    @property
    def asked(self) -> bool:
        """Whether the sink is to be called whatever the circuit and pauses say."""
        return self.closing or self._asking > 0 or self._once

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Within this it is."""
        with self._lock:
            self._asking += 1
        try:
            yield
        finally:
            with self._lock:
                self._asking -= 1

    def ask_once(self) -> None:
        """The next batch is to go out at once."""
        self._once = True

    def handed_out(self) -> None:
        """A batch is on its way to the sink."""
        self._once = False

    def left_alone(self, now: float) -> bool:
        """Whether the sink has asked not to be called now, and nothing asks it."""
        return now < self.away_until and not self.asked

    def end_pauses(self) -> None:
        """It may be called again."""
        self.away_until = _NEVER

    def bounded(self, pause: float) -> float:
        """That pause (seconds), or less while the sink is asked."""
        return min(pause, ASKING_WAIT) if self.asked else pause

    def took(self, attempts: Attempts, nbytes: int) -> None:
        """The sink took the batch of these attempts, or some of it: `nbytes` in all,
        0 where it does not tell.
        """
        self.record.took(attempts)
        self.size.took(nbytes)
        self.away_until = _NEVER
